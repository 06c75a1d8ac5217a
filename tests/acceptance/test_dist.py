"""The wheel works in a fresh environment of each installed Python, and has the licences."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.slow

PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy without leftovers of earlier builds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("mongoz", "dispatcher", "examples"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")
    run(*pip, "-w", source, source, cwd=source)
    (built,) = source.glob("*.whl")
    return built


def test_the_wheel_has_both_packages_the_example_and_all_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "mongoz",
        "dispatcher",
        "mongoz_dispatcher",
    }
    assert "dispatcher/examples/shop/app.py" in names
    licences = [Path(name).name for name in names if ".dist-info/licenses/" in name]
    assert sorted(licences) == ["LICENSE", "uPlot.LICENSE"]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_wheel_works_in_a_fresh_environment(python: str, wheel: Path, tmp_path: Path) -> None:
    found = shutil.which(python)
    # `which` may find a shim of pyenv. The shim fails if pyenv has not selected this version.
    if found is None or subprocess.run((found, "--version"), capture_output=True, check=False).returncode:
        pytest.skip(f"{python} is not installed")
    run(found, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    installed = tmp_path / "venv" / "bin"
    constraints = ("-c", str(ROOT / "constraints.txt")) if python == "python3.11" else ()
    pip = (installed / "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, *constraints, wheel, cwd=tmp_path)
    version = run(installed / "dispatcher", "--version", cwd=tmp_path)
    assert version.split() == ["mongoz-dispatcher", wheel.name.split("-")[1]]
    where = run(installed / "python", "-c", "import mongoz; print(mongoz.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    reading = "from mongoz.core.signals import post_save; from dispatcher.examples.shop import app"
    run(installed / "python", "-c", reading, cwd=tmp_path)
