"""A virtual environment for each peer, made when it is first needed.

Peers are not installed into our environment or into each other's: they can need other versions of pydantic or
PyMongo, and our code must not depend on them by accident. peers.txt has all versions.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from benchmarks.contestants import BenchmarkFailed

__all__ = ["DIRECTORY", "PACKAGES", "VERSIONS", "Peers", "existing_peers", "set_up_peers"]

VERSIONS: Final = Path(__file__).parent / "peers.txt"
DIRECTORY: Final = Path(__file__).parent.parent / ".venv-bench"

# All sides run on uvloop.
PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "motor": ("motor", "uvloop"),
    "beanie": ("beanie", "email-validator", "uvloop"),
    "mongoengine": ("mongoengine", "uvloop"),
    "django": ("django", "uvloop"),
    "blinker": ("blinker", "uvloop"),
}

_PATIENCE_SECONDS: Final = 400


class Peers:
    """Environments that are complete.

    Attributes:
        versions: the versions of all installed packages, by peer and package.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.versions: dict[str, dict[str, str]] = {
            peer: dict(sorted(_installed(directory / peer))) for peer in PACKAGES
        }

    def python(self, peer: str) -> str:
        """The interpreter of a peer's environment."""
        return _python(self._directory / peer)


def existing_peers(directory: Path = DIRECTORY) -> Peers | None:
    """The environments, if they exist and fit peers.txt and this Python."""
    return Peers(directory) if all(_is_complete(directory / peer) for peer in PACKAGES) else None


def set_up_peers(say: Callable[[str], None], directory: Path = DIRECTORY) -> Peers:
    """The environments. Missing and outdated ones are made now, in parallel.

    Raises:
        BenchmarkFailed: the packages could not be installed.
    """
    missing = [peer for peer in PACKAGES if not _is_complete(directory / peer)]
    if missing:
        say(f"making the environments of {', '.join(missing)} in {directory}")
        directory.mkdir(exist_ok=True)
        (directory / ".gitignore").write_text("*\n", encoding="utf-8")
        with ThreadPoolExecutor(len(missing)) as pool:
            list(pool.map(partial(_make, directory), missing))
    return Peers(directory)


def _make(directory: Path, peer: str) -> None:
    made = directory / peer
    what = f"Make the environment of {peer}"
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(made)], what)
    pip = [sys.executable, "-m", "pip", "--python", _python(made), "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--constraint", str(VERSIONS), *PACKAGES[peer]]
    _run(pip, f"{what} (--no-peers does without them)")
    (made / ".complete").write_text(_wanted(peer), encoding="utf-8")


def _is_complete(made: Path) -> bool:
    mark = made / ".complete"
    return mark.exists() and mark.read_text("utf-8") == _wanted(made.name)


def _wanted(peer: str) -> str:
    """The text that identifies the content of an environment."""
    return f"{sys.implementation.cache_tag}\n{' '.join(PACKAGES[peer])}\n{VERSIONS.read_text('utf-8')}"


def _installed(made: Path) -> Iterator[tuple[str, str]]:
    for packages in made.glob("lib/python*/site-packages"):
        for one in distributions(path=[str(packages)]):
            yield one.name.lower(), one.version


def _python(made: Path) -> str:
    return str(made / "bin" / "python")


def _run(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchmarkFailed(f"{what}: {error}") from error
    if done.returncode:
        words = "\n".join(f"  {line}" for line in done.stderr.splitlines()[-10:])
        raise BenchmarkFailed(f"{what}: exit code {done.returncode}. Its last lines:\n{words}")
