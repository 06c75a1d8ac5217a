"""The public API for mypy and pyright: right uses pass, and wrong uses are errors."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.timeout(400)  # the limit of a first run on a busy machine

HERE = Path(__file__).parent
RIGHT, WRONG = HERE / "public_api.py", HERE / "wrong_uses.py"
CHECKED = (RIGHT, WRONG, *sorted((ROOT / "examples" / "shop").glob("*.py")))

Found = dict[tuple[str, int], str]
"""(file name, line) -> what the checker says about it."""


def mypy(scratch: Path, *, plugins: str = "") -> Found:
    """Mypy's strict mode, without this project's configuration."""
    config = scratch / "mypy.ini"
    config.write_text(f"[mypy]\nstrict = true\nplugins = {plugins}\n")
    cache = ROOT / ".mypy_cache" / f"public_api_{plugins}"  # kept, because a run without a cache takes a minute
    output = run("mypy", "--config-file", str(config), "--cache-dir", str(cache), *map(str, CHECKED))
    lines = [re.fullmatch(r".*?(\w+\.py):(\d+): error: (.*)", line) for line in output.splitlines()]
    return {(line[1], int(line[2])): line[3] for line in lines if line}


def mypy_with_pydantics_plugin(scratch: Path) -> Found:
    """Mypy with the plugin that applications with pydantic use. Errors about missing annotations do not count."""
    found = mypy(scratch, plugins="pydantic.mypy")
    return {place: message for place, message in found.items() if not message.endswith("[pydantic-field]")}


def pyright(scratch: Path) -> Found:
    """Pyright's strict mode."""
    config = scratch / "pyrightconfig.json"
    config.write_text(json.dumps({"include": [*map(str, CHECKED)], "typeCheckingMode": "strict"}))
    output = run("basedpyright", "--pythonpath", sys.executable, "--project", str(config), "--outputjson")
    found = [line for line in json.loads(output)["generalDiagnostics"] if line["severity"] == "error"]
    return {(Path(line["file"]).name, line["range"]["start"]["line"] + 1): line["message"] for line in found}


def run(module: str, *arguments: str) -> str:
    if importlib.util.find_spec(module) is None:
        if os.environ.get("CI"):
            pytest.fail(f"{module} is not installed; it belongs to the dev extra")
        pytest.skip(f"{module} is not installed")
    process = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1, f"wrong uses must be found: {process.stdout}{process.stderr}"
    return process.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "checker", [mypy, pytest.param(mypy_with_pydantics_plugin, marks=pytest.mark.exhaustive), pyright]
)
def test_right_uses_pass_and_wrong_ones_are_found(checker: Callable[[Path], Found], tmp_path: Path) -> None:
    lines = enumerate(WRONG.read_text().splitlines(), start=1)
    marked = {(WRONG.name, number) for number, line in lines if line.endswith("# error")}
    assert len(marked) > 15
    found = checker(tmp_path)
    assert {place: message for place, message in found.items() if place not in marked} == {}
    assert sorted(marked - found.keys()) == [], "the checker does not find these errors"


@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_no_checked_file_silences_a_checker(path: Path) -> None:
    assert re.search(r"#\s*(type|pyright|mypy|basedpyright):|\bcast\(", path.read_text()) is None


def test_right_uses_also_run() -> None:
    importlib.import_module("tests.typing.public_api")
