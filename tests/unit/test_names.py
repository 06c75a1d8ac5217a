"""Documentation, deploy files, dashboard and messages name only settings, commands and packages that exist."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from dispatcher.cli import app
from dispatcher.cli.secret_files import SECRETS
from dispatcher.core.installation import how_to_install
from dispatcher.settings import Settings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("benchmarks", "deploy", "dispatcher", "docs", "examples", "mongoz", "tools")
SUFFIXES = {".css", ".env", ".html", ".js", ".json", ".md", ".py", ".service", ".yaml", ".yml"}


def texts() -> Iterator[tuple[str, str]]:
    """The path and the text of every file whose names the tests check."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    found += [path for path in ROOT.iterdir() if path.suffix in {".md", ".yml"} or path.name == "Dockerfile"]
    for path in found:
        if "vendor" not in path.parts:
            yield str(path.relative_to(ROOT)), path.read_text()


TEXTS = dict(texts())


def commands(command: click.Command, path: str = "dispatcher") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_command(app)))
FLAGS = {opt for command in COMMANDS.values() for parameter in command.params for opt in parameter.opts}
FLAGS |= {"--help", "--version", "--install-completion", "--show-completion"}


def test_every_named_variable_of_the_dispatcher_exists():
    known = {f"DISPATCHER_{name.upper()}" for name in Settings.model_fields}
    for command in COMMANDS.values():
        for parameter in command.params:
            variables = parameter.envvar or ()
            known |= {variables} if isinstance(variables, str) else set(variables)
    known |= {f"{secret}_FILE" for secret in SECRETS}
    known |= set(re.findall(r"\$\{(DISPATCHER_\w+)", TEXTS["docker-compose.yml"]))  # docker compose reads these
    named = {
        (variable, place)
        for place, text in TEXTS.items()
        for variable in re.findall(r"(?<!\w)DISPATCHER_[A-Z_]*[A-Z]", text)
    }
    assert {variable for variable, _ in named} >= {"DISPATCHER_HTTP_TOKEN", "DISPATCHER_URL"}
    assert [one for one in sorted(named) if one[0] not in known] == []


def test_every_pip_command_names_a_folder_and_an_existing_extra():
    """No package registry has the project."""
    extras = set(PROJECT["optional-dependencies"])
    found = [
        (place, target.strip("'\""))
        for place, text in TEXTS.items()
        for line in re.findall(r"pip install ([^\n`#;&]*)", text)
        for target in re.findall(r"(?<=\s)['\"]?[.\w/-]+(?:\[[\w,]+\])?['\"]?(?=\s|$)", f" {line}")
        if "mongoz" in target or target.strip("'\"").startswith(".")
    ]
    assert found
    for place, target in found:
        folder, _, wanted = target.rstrip("]").partition("[")
        assert folder.startswith("."), f"{place}: {target} is in no registry"
        assert set(wanted.split(",")) - {""} <= extras, f"{place}: {target}"
    for extra in ("embedded", "otel"):
        assert extra in extras
        assert how_to_install(extra) == f"pip install '.[{extra}]' (in a checkout of the repository)"


@pytest.mark.parametrize("name", [PROJECT["name"], "mongoz"])
def test_no_text_installs_an_extra_by_the_name_of_the_project(name: str):
    # As in `pip install mongoz[extra]`: no registry has the project.
    assert [place for place, text in TEXTS.items() if re.search(rf"(?<![/\w-]){re.escape(name)}\[\w", text)] == []


def test_every_named_command_exists():
    named = {
        (place, quoted)
        for place, text in TEXTS.items()
        if not place.startswith("docs/benchmarks")
        for quoted in re.findall(r"`dispatcher ([a-z-][^`\n]*)`", text)
    }
    assert len(named) > 30
    for place, quoted in named:
        words = quoted.partition("|")[0].split()
        path = "dispatcher"
        while words and getattr(COMMANDS[path], "commands", None):
            if words[0].startswith("-"):
                break
            path = f"{path} {words.pop(0)}"
            assert path in COMMANDS, f"{place}: `dispatcher {quoted}`"
        flags = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        own = {opt for parameter in COMMANDS[path].params for opt in parameter.opts} | {"--help"}
        assert flags <= (own if path != "dispatcher" else FLAGS), f"{place}: `dispatcher {quoted}`"
