"""The last version of the dispatcher with several collections of held deliveries, for tests of the upgrade."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support import ROOT

__all__ = ["earlier_version"]

COMMIT = "87fead0"


def earlier_version(directory: Path) -> Path:
    """A directory with the packages of that version from the Git history."""
    asked = ["git", "-C", str(ROOT), "archive", COMMIT, "dispatcher", "mongoz"]
    ran = subprocess.run(asked, capture_output=True, check=False)
    if ran.returncode:
        reason = f"the history of the repository is needed: {ran.stderr.decode()}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tarfile.open(fileobj=io.BytesIO(ran.stdout)) as archive:
        archive.extractall(directory, filter="data")
    # The test applications are the present ones.
    (directory / "tests").symlink_to(ROOT / "tests")
    return directory
