"""Runs a program that the kernel kills when whoever started it dies, by SIGKILL too.

    python -I -S leash.py PID PROGRAM [ARGUMENT ...]

PID is the starter's. It becomes the program: same process, same signals. On Linux only; elsewhere it just runs it.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

__all__ = ["on_a_leash"]

_PR_SET_PDEATHSIG = 1


def on_a_leash() -> list[str]:
    """What to put before a command."""
    return [sys.executable, "-I", "-S", str(Path(__file__)), str(os.getpid())]


def main() -> None:
    starter, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(starter):  # it died before we were on the leash
        sys.exit(1)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
