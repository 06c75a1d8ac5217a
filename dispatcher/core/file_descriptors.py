"""Checks the limit of file descriptors: each open file and each connection takes one."""

import errno
import os
import sys
from typing import Final

from dispatcher.core.error_text import chain_of, words_of
from dispatcher.exceptions import TooManyFiles

if sys.platform != "win32":
    import resource  # imported early: an import fails when no more files can be opened

# Number of descriptors that a start needs, with a reserve.
_NEEDED: Final = 32


def require_descriptors() -> None:
    """Require as many free descriptors as a start needs: without them uvloop aborts the process."""
    opened: list[int] = []
    try:
        while len(opened) < _NEEDED:
            opened.append(os.dup(2))
    except OSError as error:
        raise lack_in(error) or error from None
    finally:
        for descriptor in opened:
            os.close(descriptor)


def lack_in(error: BaseException) -> TooManyFiles | None:
    """The error for the operator if an error comes from a lack of descriptors; None otherwise."""
    for one in chain_of(error):
        number = one.errno if isinstance(one, OSError) else None
        text = words_of(one)  # the errors of the driver and of the dynamic loader have only the text
        if number == errno.EMFILE or os.strerror(errno.EMFILE) in text:
            return TooManyFiles(
                f"Too many open files: this process may have {_limit()} of them, sockets included.",
                remedy="Raise the limit above this number: `ulimit -n` in a shell, LimitNOFILE= in a systemd "
                "unit.",
            )
        if number == errno.ENFILE or os.strerror(errno.ENFILE) in text:
            return TooManyFiles(
                "Too many open files on this machine, in all processes together.",
                remedy="Raise fs.file-max with sysctl, or end the process that has most of them open (see lsof).",
            )
    return None


def _limit() -> str:
    return "a limited number" if sys.platform == "win32" else str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
