"""Another package is imported as `mongoz`, too. An installation that has files of both is refused."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.exceptions import ExitCode
from tests.support import ROOT

OTHER = "raise AssertionError('the other package is imported')\n"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory into which both packages of this project are installed."""
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("mongoz", "dispatcher"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    (tmp_path / "mongoz_dispatcher-0.1.0.dist-info").mkdir()
    return tmp_path


def python(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a directory. Python finds the packages of this directory first."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=directory, capture_output=True, text=True, timeout=110, check=False
    )


def other_was_installed(directory: Path, *, last: bool) -> None:
    """Adds files of the other package. If `last`, a file of the other package replaces one of this project."""
    (directory / "mongoz-9.9.dist-info").mkdir()
    (directory / "mongoz" / "core" / "signals").mkdir()
    (directory / "mongoz" / "core" / "signals" / "__init__.py").touch()
    if last:
        (directory / "mongoz" / "__init__.py").write_text(OTHER)


def test_this_package_alone_is_imported(installed: Path) -> None:
    result = python(installed, "-c", "import mongoz; print(mongoz.__file__)")
    assert result.stdout.strip() == str(installed / "mongoz" / "__init__.py"), result.stderr
    assert python(installed, "-m", "dispatcher", "--version").returncode == ExitCode.OK


def test_an_import_beside_the_other_package_names_both_and_the_remedy(installed: Path) -> None:
    other_was_installed(installed, last=False)
    result = python(installed, "-c", "import mongoz")
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert error.startswith("ImportError: Two packages are installed as ")
    assert "mongoz-9.9.dist-info" in error
    assert "pip uninstall mongoz mongoz-dispatcher" in error


@pytest.mark.parametrize("last", [False, True], ids=["other package first", "other package last"])
@pytest.mark.parametrize("command", [("check", "app:registry"), ("--help",)], ids=["check", "help"])
def test_each_command_refuses_a_mixed_installation(installed: Path, command: tuple[str, ...], last: bool) -> None:
    other_was_installed(installed, last=last)
    result = python(installed, "-m", "dispatcher", *command)
    assert result.returncode == ExitCode.NOT_INSTALLED
    error, remedy = result.stderr.splitlines()
    assert "mongoz-9.9.dist-info" in error
    assert "pip uninstall mongoz mongoz-dispatcher" in remedy


def test_a_command_refuses_the_other_package_if_python_finds_it_first(tmp_path: Path) -> None:
    """`dispatcher` is a link to this repository, as in an editable installation."""
    (tmp_path / "mongoz").mkdir()
    (tmp_path / "mongoz" / "__init__.py").write_text(OTHER)
    (tmp_path / "dispatcher").symlink_to(ROOT / "dispatcher")
    result = python(tmp_path, "-m", "dispatcher", "check", "app:registry")
    assert result.returncode == ExitCode.NOT_INSTALLED
    assert f"In {tmp_path / 'mongoz'} are files of another package" in result.stderr
