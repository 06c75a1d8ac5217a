"""Earlier versions of both packages, for tests of upgrades."""

import fcntl
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT

__all__ = ["SEVERAL_COLLECTIONS", "WITHOUT_CLAIMS", "WITHOUT_CONTEXTS", "earlier_source", "earlier_version"]

SEVERAL_COLLECTIONS = "87fead0"
"""The last commit whose dispatcher has several collections of held deliveries."""

WITHOUT_CLAIMS = "49bec0c"
"""The last commit without claims."""

WITHOUT_CONTEXTS = "86e6698"
"""The last commit whose stamps have no contexts."""


def earlier_source(directory: Path, commit: str) -> Path:
    """The directory, with the files of a commit from the Git history."""
    asked = ["git", "-C", str(ROOT), "archive", commit]
    ran = subprocess.run(asked, capture_output=True, check=False)
    if ran.returncode:
        reason = f"the history of the repository is needed: {ran.stderr.decode()}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tarfile.open(fileobj=io.BytesIO(ran.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory


def earlier_version(factory: pytest.TempPathFactory, commit: str) -> Path:
    """A directory with the installed wheel of a commit, and the present test applications.

    The first test that asks for a commit builds the wheel. The other tests of the run use it, in all workers.
    """
    base = factory.getbasetemp()
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    installed = run / f"version-{commit}"
    with (run / f"{commit}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (installed / "tests").exists():
            _unpack(_wheel(earlier_source(factory.mktemp("source"), commit)), installed)
            (installed / "tests").symlink_to(ROOT / "tests")
    return installed


def _wheel(source: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps")
    subprocess.run((*pip, "-w", "built", "."), cwd=source, check=True)
    (wheel,) = (source / "built").glob("*.whl")
    return wheel


def _unpack(wheel: Path, directory: Path) -> None:
    """Installs a wheel of pure Python: its files are in the places where they are imported."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
