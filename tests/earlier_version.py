"""Earlier versions of both packages, for tests of upgrades."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.support import ROOT

__all__ = ["SEVERAL_COLLECTIONS", "WITHOUT_CLAIMS", "WITHOUT_CONTEXTS", "earlier_version"]

SEVERAL_COLLECTIONS = "87fead0"
"""The last commit whose dispatcher has several collections of held deliveries."""

WITHOUT_CLAIMS = "49bec0c"
"""The last commit without claims."""

WITHOUT_CONTEXTS = "86e6698"
"""The last commit whose stamps have no contexts."""


def earlier_version(directory: Path, commit: str) -> Path:
    """A directory with the packages of a commit from the Git history."""
    asked = ["git", "-C", str(ROOT), "archive", commit, "dispatcher", "mongoz"]
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
