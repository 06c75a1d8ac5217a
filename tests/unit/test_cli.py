"""The command line: its flags come from the settings, and its help starts fast."""

import json
import re
import subprocess
import sys

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from dispatcher.cli import app
from dispatcher.settings import Settings

HELP = """
import sys
from dispatcher.cli import app
try:
    app(["--help"])
finally:
    late = {"bson", "mongoz", "pydantic_settings", "pymongo", "structlog"}
    print("loaded:", sorted(late & sys.modules.keys()))
"""

DAEMON = """
import sys
import dispatcher.cli
import dispatcher.runtime.service
import dispatcher.web.app
from dispatcher.core.output.logs import configure_logging, log
configure_logging("json", "info")
log.info("started", action="test.started")
print("loaded:", sorted({"pydantic_settings", "pygments", "structlog"} & sys.modules.keys()))
"""


ASKING = {
    "claims release",
    "dead-letters drop",
    "position reset",
    "position set",
    "position switch",
    "replay",
}


def commands(group: object = None, path: str = "") -> dict[str, object]:
    """All commands by name."""
    found = {}
    for name, each in (group or typer.main.get_command(app)).commands.items():
        whole = f"{path} {name}".strip()
        found |= commands(each, whole) if hasattr(each, "commands") else {whole: each}
    return found


def flags_of(command: str) -> dict[str, object]:
    commands = typer.main.get_command(app).commands
    return {one.name: one for one in commands[command].params}


def test_the_help_loads_neither_the_driver_nor_the_odm():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_daemon_that_writes_json_loads_no_modules_for_terminals():
    """These modules would use three megabytes while the daemon runs."""
    done = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "loaded: []"
    assert json.loads(done.stderr)["action"] == "test.started"


def test_run_has_a_flag_for_each_setting_except_the_http_token():
    assert Settings.model_fields.keys() - flags_of("run").keys() == {"http_token"}


def test_a_flag_has_the_default_the_help_and_the_variable_of_its_setting():
    flags = flags_of("run")
    for name in ("concurrency", "on_history_lost", "adopt", "partitions"):
        field, flag = Settings.model_fields[name], flags[name]
        assert (flag.default, flag.help) == (field.default, field.description)
        assert (flag.opts, flag.envvar) == ([f"--{name.replace('_', '-')}"], f"DISPATCHER_{name.upper()}")


def test_a_setting_without_an_argument_has_the_value_of_its_variable(monkeypatch):
    monkeypatch.setenv("DISPATCHER_CONCURRENCY", "7")
    monkeypatch.setenv("DISPATCHER_KAFKA_CONFIG", "kafka.properties")
    monkeypatch.setenv("DISPATCHER_HTTP_TOKEN", "")  # a compose file sets a missing variable to an empty text
    monkeypatch.setenv("DISPATCHER_NO_SETTING", "1")
    found = Settings(attempts=3)
    assert (found.concurrency, found.attempts, str(found.kafka_config)) == (7, 3, "kafka.properties")
    assert found.http_token is None
    assert Settings(concurrency=8).concurrency == 8
    monkeypatch.setenv("DISPATCHER_CONCURRENCY", "many")
    with pytest.raises(ValidationError, match="concurrency"):
        Settings()


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="no_setting"):
        Settings(no_setting=1)


def test_a_command_can_override_the_default_of_a_setting():
    assert (flags_of("replay")["log_level"].default, flags_of("dev")["log_level"].default) == ("warning", "info")


def test_all_commands_that_ask_have_the_same_flag_to_skip_the_question():
    flags = {name: one for name, command in commands().items() for one in command.params if one.name == "yes"}
    assert flags.keys() == ASKING
    assert {(*one.opts, one.help, one.default) for one in flags.values()} == {
        ("--yes", "-y", "Do not ask. Without a terminal, this flag is required.", False)
    }


@pytest.mark.parametrize("name", commands())
def test_the_help_of_a_command_has_an_example_with_its_flags(name):
    command = commands()[name]
    found = re.search(rf"Example: `dispatcher {name}( [^`]*)?`", " ".join(command.help.split()))
    assert found, command.help
    known = {opt for one in command.params for opt in one.opts}
    assert {word for word in (found[1] or "").split() if word.startswith("--")} <= known


@pytest.mark.parametrize("name", commands())
def test_the_usage_of_a_command_has_no_doubled_brackets(name):
    usage = CliRunner().invoke(app, [*name.split(), "--help"]).stdout.split("\n\n")[0]
    assert "[[" not in usage
    assert f"dispatcher {name}" in usage.replace("root", "dispatcher")
