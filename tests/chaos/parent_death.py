"""Runs a program that the kernel kills when its parent dies, even if the parent is killed by SIGKILL.

    python -I -S parent_death.py PID PROGRAM [ARGUMENT ...]

PID is the process id of the parent. The process becomes the program by exec. Only Linux kills the program; on
other systems it just runs.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

__all__ = ["tied_to_parent"]

_PR_SET_PDEATHSIG = 1


def tied_to_parent() -> list[str]:
    """The prefix of a command that must die with this process."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid())]


def main() -> None:
    starter, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(starter):  # the parent died before the call of prctl
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
