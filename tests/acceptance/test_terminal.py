"""Commands on a terminal have colours, a live screen, progress bars and questions; in a pipe they have none."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dispatcher.exceptions import ExitCode
from tests.ledger import APP, Ledger
from tests.support import PATIENCE, ROOT

RECEIVER = "tests.acceptance.apps.ledger.note"
ESCAPE = "\x1b["


class Terminal:
    """A command on a pseudo terminal.

    Attributes:
        shown: its output so far, including escapes.
    """

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        self.shown = ""
        self._is_closed = False
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "dispatcher", *arguments],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color", **environment},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def read_until(self, enough: Callable[[str], Any], within: float = PATIENCE) -> str:
        """Reads the output until the condition is true."""
        deadline = time.monotonic() + within
        while not enough(self.shown):
            assert time.monotonic() < deadline, self.shown
            if select.select([self._ours], [], [], 0.1)[0] and not self._read():
                assert enough(self.shown), self.shown
        return self.shown

    def ends(self) -> int:
        """Waits for the end of the command, and returns the exit code. Then `shown` has all output."""
        deadline = time.monotonic() + 30
        while not self._is_closed:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._ours], [], [], 0.1)[0]:
                self._is_closed = not self._read()
        return self.process.wait(PATIENCE)

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 65_536)
        except OSError:  # EIO means on Linux that the other end is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


@pytest.fixture
def ledger(mongo, database, tmp_path):
    return Ledger(tmp_path / "ledger", mongo.url, database)


@pytest.fixture
def environment(ledger, mongo, database, foreign) -> dict[str, str]:
    """The environment variables of commands for a group that has a state."""
    layout = {"_id": database, "group": database, "partitions": 1, "application": ""}
    foreign.client[f"{database}_state"].positions.insert_one(layout)
    return {**ledger.environment, "DISPATCHER_URL": mongo.url, "DISPATCHER_GROUP": database}


@contextmanager
def on_terminal(*arguments: str, **environment: str) -> Iterator[Terminal]:
    terminal = Terminal(arguments, environment)
    try:
        yield terminal
    finally:
        terminal.close()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


def in_pipe(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "dispatcher", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_colours_are_for_terminals(environment):
    with on_terminal("status", **environment) as terminal:
        assert terminal.ends() == ExitCode.OK
    assert ESCAPE in terminal.shown
    assert "0 alive" in plain(terminal.shown)
    with on_terminal("status", NO_COLOR="1", **environment) as terminal:
        assert terminal.ends() == ExitCode.OK
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", terminal.shown)
    piped = in_pipe("status", **environment)
    assert (piped.returncode, ESCAPE in piped.stdout, "0 alive" in piped.stdout) == (ExitCode.OK, False, True)


def test_errors_are_red_on_a_terminal_and_plain_in_a_pipe(environment):
    with on_terminal("run", "no.such:registry", **environment) as terminal:
        assert terminal.ends() == ExitCode.APPLICATION
    assert f"{ESCAPE}1;31merror:" in terminal.shown
    piped = in_pipe("run", "no.such:registry", **environment)
    assert (piped.returncode, piped.stdout, ESCAPE in piped.stderr) == (ExitCode.APPLICATION, "", False)


def test_status_is_watched_until_ctrl_c(environment, foreign, database):
    with on_terminal("status", "--watch", "--interval", "0.1", **environment) as terminal:
        terminal.read_until(lambda shown: "0 alive" in plain(shown))
        state = foreign.client[f"{database}_state"]
        letter = {"group": database, "receiver": "mail", "signal": "post_save", "reason": "failed"}
        state.held.insert_one(letter)
        terminal.read_until(lambda shown: "Dead letters" in plain(shown))
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.ends() == ExitCode.OK
    assert "\x1b[?1049h" in terminal.shown  # an alternate screen,
    assert "\x1b[?1049l" in terminal.shown  # which is closed afterwards
    assert "Traceback" not in terminal.shown


@pytest.mark.slow
@pytest.mark.parametrize("what", ["backfill", "replay"])
def test_long_work_has_a_bar(what, environment, foreign):
    foreign["accounts"].insert_many([{"name": f"a{n}", "n": n} for n in range(200)])
    arguments = (what, APP, "--receiver", RECEIVER, "--rate", "400")
    arguments += ("--since", "1min", "--yes") if what == "replay" else ()
    with on_terminal(*arguments, **environment) as terminal:
        assert terminal.ends() == ExitCode.OK
    assert "━" in terminal.shown
    assert len(set(re.findall(r"(\d+) delivered, 0 failed", plain(terminal.shown)))) > 2  # the bar moves
    assert "delivered 200, failed 0" in plain(terminal.shown)
    piped = in_pipe(*arguments, *(() if what == "replay" else ("--new",)), **environment)
    assert (piped.returncode, "━" in piped.stdout, ESCAPE in piped.stdout) == (ExitCode.OK, False, False)


@pytest.mark.parametrize(("answer", "left"), [("n", 1), ("y", 0)])
def test_irreversible_actions_ask_for_confirmation(answer, left, environment, foreign, database):
    letters = foreign.client[f"{database}_state"].held
    letters.insert_one(
        {
            "_id": "one",
            "group": database,
            "receiver": "mail",
            "signal": "post_save",
            "token": "8200",
            "reason": "failed",
        }
    )
    with on_terminal("dead-letters", "drop", "--all", **environment) as terminal:
        terminal.read_until(lambda shown: "[y/N]" in shown)
        assert letters.count_documents({}) == 1
        terminal.type(f"{answer}\n")
        code = terminal.ends()
    assert (code == ExitCode.OK) == (answer == "y")
    assert letters.count_documents({}) == left


@pytest.mark.parametrize(("answer", "delivered"), [("n", 0), ("y", 3)])
def test_a_replay_for_all_receivers_lists_them_and_asks(answer, delivered, environment, ledger, foreign):
    foreign["accounts"].insert_many([{"name": f"a{n}", "n": n} for n in range(3)])
    with on_terminal("replay", APP, "--since", "1min", **environment) as terminal:
        asked = plain(terminal.read_until(lambda shown: "[y/N]" in shown))
        assert re.search(rf"{foreign.name}.accounts +post_save +{re.escape(RECEIVER)}", asked)
        assert re.search(r"Since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC until now: 3 changes\.", asked)
        assert ledger() == []
        terminal.type(f"{answer}\n")
        code = terminal.ends()
    assert code == (ExitCode.OK if delivered else ExitCode.FAILED)
    assert ("Nothing was changed." in terminal.shown) == (not delivered)
    assert len(ledger()) == delivered


def test_a_remedy_has_no_line_break_on_a_terminal(environment, foreign, mongo, database):
    foreign["accounts"].insert_one({"name": "a", "n": 1})  # a collection without images
    place = ("--url", f"{mongo.url}&appName={'long' * 30}", "--state-database", f"{database}_another_state")
    with on_terminal("check", APP, *place, **environment) as terminal:
        assert terminal.ends() == ExitCode.OK
    shown = [line for line in plain(terminal.shown).splitlines() if "dispatcher setup" in line]
    assert shown
    for line in shown:
        assert f"`dispatcher setup {APP} --url '{place[1]}' --state-database {place[3]}`" in line
