"""The peers' environment: a virtual environment of their own, made when it is first needed.

Ours never gets them: they may want other versions of pydantic or PyMongo, and nothing that we ship is to depend on
what happens to be importable here. What goes in is in peers.txt, to the last version.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.contestants import BenchmarkFailed

__all__ = ["DIRECTORY", "PACKAGES", "Peers", "existing_peers", "set_up_peers"]

PACKAGES: Final = Path(__file__).parent / "peers.txt"
DIRECTORY: Final = Path(__file__).parent.parent / ".venv-bench"

_PATIENCE_SECONDS: Final = 400


class Peers:
    """An environment that is complete.

    Attributes:
        python: its interpreter.
        versions: of everything in it, by the packages' names.
    """

    def __init__(self, directory: Path) -> None:
        self.python = _python(directory)
        listed = _run([self.python, "-m", "pip", "list", "--format", "json"], "List the peers' versions")
        self.versions: dict[str, str] = {one["name"].lower(): one["version"] for one in json.loads(listed)}


def existing_peers(directory: Path = DIRECTORY) -> Peers | None:
    """The environment, if it is there and is what peers.txt and this Python ask for."""
    mark = directory / ".complete"
    return Peers(directory) if mark.exists() and mark.read_text("utf-8") == _wanted() else None


def set_up_peers(say: Callable[[str], None], directory: Path = DIRECTORY) -> Peers:
    """The environment; made now, if it is not there or not what is asked for.

    Raises:
        BenchmarkFailed: the packages could not be installed.
    """
    found = existing_peers(directory)
    if found is not None:
        return found
    say(f"making the peers' environment in {directory}")
    _run([sys.executable, "-m", "venv", "--clear", str(directory)], "Make the peers' environment")
    (directory / ".gitignore").write_text("*\n", encoding="utf-8")
    pip = [_python(directory), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--requirement", str(PACKAGES)], "Install the peers (--no-peers does without them)")
    (directory / ".complete").write_text(_wanted(), encoding="utf-8")
    return Peers(directory)


def _python(directory: Path) -> str:
    return str(directory / "bin" / "python")


def _wanted() -> str:
    """What an environment must have been made for."""
    return f"{sys.implementation.cache_tag}\n{PACKAGES.read_text('utf-8')}"


def _run(command: list[str], what: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkFailed(f"{what}: {error}") from error
    if done.returncode:
        words = "\n".join(f"  {line}" for line in done.stderr.splitlines()[-10:])
        raise BenchmarkFailed(f"{what}: exit code {done.returncode}. Its last words:\n{words}")
    return done.stdout
