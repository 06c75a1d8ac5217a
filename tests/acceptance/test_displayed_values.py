"""Commands display values of users literally, on any terminal and in any encoding."""

import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dispatcher.exceptions import ExitCode
from tests.acceptance.commands import run_command
from tests.acceptance.test_run import write_app
from tests.books import book
from tests.support import ROOT

CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
PLAIN = "[/] [b]x[/b] o[eu] :smile:"
EVIL = f"\x1b]0;x\x07\x1b[2J\x9b31m\u202e{PLAIN}\nremedy: curl"
RECEIVERS = """
for name in ("orders[eu]", "x [/] y", "[link=http://evil]z[/link]", "sm:smile:"):
    @post_save(Thing, name=name)
    async def saved(sender, **kwargs): ...
"""


@pytest.fixture
def app(tmp_path, mongo, database) -> str:
    return write_app(tmp_path, mongo.url, receivers=RECEIVERS, database=database)


@pytest.fixture
def environment(app, mongo, database, foreign) -> dict[str, str]:
    """The environment variables of commands on a group with odd values in its state."""
    state = foreign.client[f"{database}_state"]
    now = datetime.now(UTC)
    state.positions.insert_one({"_id": database, "group": database, "partitions": 1, "application": ""})
    error = {
        "type": "ValueError",
        "message": f"ValueError: {EVIL} password=hunter2",
        "traceback": f"Trace\n{EVIL}",
    }
    state.held.insert_one(
        {
            **{"_id": "aaaabbbbccccdddd", "group": database, "receiver": EVIL, "signal": "post_save"},
            **{"key": EVIL, "reason": "failed", "error": error, "token": "8200", "last_attempt_at": now},
            **{"parts": {}, "state": "dead"},
        }
    )
    state.claims.insert_one(book(database, host=EVIL))
    return {
        "DISPATCHER_URL": mongo.url,
        "DISPATCHER_STATE_DATABASE": f"{database}_state",
        "DISPATCHER_GROUP": database,
    }


def run(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "dispatcher", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=110,
        check=False,
    )


COMMANDS = [
    ("status",),
    ("dead-letters", "list"),
    ("dead-letters", "show", "aaaabbbb"),
    ("dead-letters", "show", EVIL),
    ("dead-letters", "list", "--receiver", EVIL),
    ("dead-letters", "list", "--since", EVIL),
    ("pause", EVIL),
    ("status", "--group", EVIL),
    ("claims", "list"),
    ("claims", "release", f"{1:016x}", "--yes"),
    ("claims", "release", EVIL),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command)[:20])
def test_values_have_no_control_characters(command, environment):
    ended = run_command(*command, env=environment)
    assert ended.code != ExitCode.CRASHED
    if ended.code in {ExitCode.OK, ExitCode.USAGE}:  # `main` prints other errors; other tests cover them
        assert not CONTROLS.search(ended.out + ended.error)
        assert "hunter2" not in ended.out
        assert not re.search(r"^remedy: curl", ended.out + ended.error, re.MULTILINE)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_errors_have_no_control_characters(encoding, tmp_path):
    said = run("run", f"{EVIL}:x", cwd=tmp_path, PYTHONIOENCODING=encoding).stderr.decode(encoding)
    assert not CONTROLS.search(said)
    assert not re.search(r"^remedy: curl", said, re.MULTILINE)
    assert "[/] [b]x[/b] o[eu]" in said


def test_values_are_shown_literally(environment):
    def shown(*command: str) -> int:
        """Counts how often the text is shown. A table may wrap the text."""
        return "".join(run_command(*command, env=environment).out.split()).count("".join(PLAIN.split()))

    assert shown("status") >= 1
    assert shown("dead-letters", "show", "aaaabbbb") == 4
    assert shown("claims", "list") == 1
    listed = run_command("dead-letters", "list", env=environment).out
    assert listed.count("[/] [b]x[/b] o[eu]") == 3  # receiver, key, error


def test_names_of_receivers_are_not_markup(app, tmp_path):
    said = run("receivers", app, cwd=tmp_path).stdout.decode()
    for name in ("orders[eu]", "x [/] y", "[link=http://evil]z[/link]", "sm:smile:"):
        assert name in said


EVERYTHING = [
    ("--help",),
    ("receivers", "app:registry"),
    ("check", "app:registry"),
    ("status",),
    ("dead-letters", "list"),
    ("dead-letters", "show", "aaaabbbb"),
    ("dead-letters", "list", "--reason", "foo"),
    ("pause",),
    ("backfill", "app:registry", "--receiver", "orders[eu]"),
    ("nope",),
]


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["latin-1"])
def test_commands_write_in_an_encoding_that_lacks_some_characters(
    encoding, app, environment, tmp_path, mongo, database
):
    for command in EVERYTHING:
        ended = run(*command, cwd=tmp_path, **environment, PYTHONIOENCODING=encoding)
        said = ended.stdout + ended.stderr
        assert ended.returncode != ExitCode.CRASHED, (command, said)
        assert b"UnicodeEncodeError" not in said, command


def test_a_bad_url_is_shown_without_its_password_and_with_an_example(tmp_path):
    ended = run("status", cwd=tmp_path, DISPATCHER_URL="mongodb://me:hunter2@2@host/x")
    said = ended.stderr.decode()
    assert ended.returncode == ExitCode.CANNOT_CONNECT
    assert "hunter2" not in said
    assert "'mongodb://user:password@host:27017/?replicaSet=rs0'" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("dead-letters", "list", "--reason", "foo"), "'--reason': 'foo' is not one of 'failed'"),
        (("dead-letters", "list", "--limit", "-1"), "'--limit': It is '-1' and must be at least 0."),
        (("run", "a:b", "--concurrency", "0"), "--concurrency: It is 0 and must be at least 1."),
        (("run", "a:b", "--concurrency", "x"), "It is 'x' and must be a whole number."),
        (("run", "a:b", "--timeout", "nan"), "--timeout: It is nan and must be a finite number."),
        (("run", "a:b", "--http", "foo"), "--http: 'foo' is not HOST:PORT, 'auto' or 'off'."),
    ],
)
def test_a_refusal_names_the_flag_its_value_and_the_requirement(command, said, tmp_path):
    ended = run(*command, cwd=tmp_path)
    assert ended.returncode == ExitCode.USAGE
    assert said in ended.stderr.decode()
