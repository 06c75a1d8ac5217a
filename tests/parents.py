"""Processes that start a private server and then die in different ways."""

import subprocess
import sys
from pathlib import Path

import psutil

from tests.support import ROOT, eventually_sync


def has_ended(process: psutil.Process) -> bool:
    """Whether the process has ended. Without an init process, an ended orphan may remain as a zombie."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Parent:
    """A separate process that starts a server and then runs the rest of its script.

    Args:
        start: Python code that starts a server, with its handle in the variable `server`.
    """

    def __init__(self, start: str, script: str) -> None:
        imports = "import os, signal, sys, time\n"
        announce = "print(server.pid, server.directory, flush=True)\n"
        self.process = subprocess.Popen(
            [sys.executable, "-c", imports + start + announce + script],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        pid, directory = self.line().split()
        self.server = psutil.Process(int(pid))
        self.guardian = self.server.parents()[0]
        self.directory = Path(directory)

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def assert_nothing_remains(self) -> None:
        eventually_sync(lambda: has_ended(self.server) and has_ended(self.guardian))
        assert not self.directory.exists()

    def __enter__(self) -> "Parent":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
