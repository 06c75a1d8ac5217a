"""The code of the documentation works as printed, on a real server."""

import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import typer
from pymongo import MongoClient

import mongoz
import mongoz.exceptions
from dispatcher.cli import app
from dispatcher.embedded.server import EmbeddedMongo
from dispatcher.exceptions import ExitCode
from tests.integration import test_operation_matrix as matrix
from tests.support import PATIENCE

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": ROOT / "README.md"} | {
    str(path.relative_to(ROOT)): path for path in sorted((ROOT / "docs").rglob("*.md"))
}

_BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_URL = "mongodb://127.0.0.1:27017/?replicaSet=rs0"
_DATABASE = '"shop"'

# A line of the log of a dispatcher that a page runs.
_LOG_LINE = re.compile(r"^\d{4}-\d\d-\d\d .* action=.*\n", re.MULTILINE)


class Block(NamedTuple):
    language: str
    title: str
    text: str
    line: int


def blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text()
    found = []
    for match in _BLOCK.finditer(text):
        language, _, rest = match["info"].partition(" ")
        title = re.search(r'title="([^"]*)"', rest)
        line = text[: match.start()].count("\n") + 2
        found.append(Block(language, title[1] if title else "", match["text"], line))
    return found


def run_tests(folder: Path, mongo: EmbeddedMongo) -> str:
    """Runs pytest in a folder with the files of a page, and returns the output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "-rA"],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "MONGOZ_TEST_URL": mongo.url},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr


def localized(text: str, mongo: EmbeddedMongo, database: str) -> str:
    """The code, changed to use the server and the database of this test."""
    return text.replace(_URL, mongo.url).replace(_DATABASE, repr(database))


async def run_block(block: Block, page: str, text: str, namespace: dict) -> str:
    """Runs the block, and returns its output without the log."""
    source = "\n" * (block.line - 1) + text
    code = compile(source, page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, namespace)
        if inspect.isawaitable(result):
            await result
    return _LOG_LINE.sub("", printed.getvalue())  # a dispatcher in the block writes its log


async def run_page(page: str, mongo: EmbeddedMongo, database: str) -> int:
    """Runs all untitled Python blocks in order, and compares their output with the output on the page.

    Returns:
        The number of blocks with output.
    """
    found = blocks(page)
    module = types.ModuleType(f"docs_{database}")
    outputs = 0
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block.language != "python" or block.title:
            continue
        printed = await run_block(block, page, localized(block.text, mongo, database), vars(module))
        expected = following.text if following and following.title == "output" else ""
        assert printed == expected, f"{page}:{block.line} prints\n{printed}"
        outputs += bool(expected)
    return outputs


# Pages whose Python blocks all run in order. The number is the minimum number of blocks with output.
GUIDES = {
    "docs/guide/delivery.md": 0,
    "docs/guide/dispatcher.md": 0,
    "docs/guide/documents.md": 5,
    "docs/guide/fields.md": 6,
    "docs/guide/queries.md": 10,
    "docs/guide/indexes.md": 4,
    "docs/guide/transactions.md": 6,
    "docs/guide/signals.md": 17,
    "docs/how-to/audit-trail.md": 1,
    "docs/how-to/collections.md": 0,
    "docs/how-to/failing-receivers.md": 0,
    "docs/how-to/requests.md": 5,
    "docs/how-to/scripts.md": 2,
    "docs/how-to/cache.md": 1,
    "docs/how-to/outbox.md": 1,
    "docs/how-to/search-index.md": 1,
    "docs/coming-from/mongoz.md": 1,
    "docs/coming-from/beanie.md": 1,
    "docs/coming-from/mongoengine.md": 1,
}


@pytest.mark.parametrize(("page", "outputs"), GUIDES.items())
async def test_guides_work_as_printed(page: str, outputs: int, mongo: EmbeddedMongo, database: str):
    assert await run_page(page, mongo, database) >= outputs


@pytest.mark.parametrize("page", list(PAGES))
def test_python_in_all_pages_compiles(page: str):
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, f"{page}:{block.line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_page_that_shows_code_is_run():
    """Titled blocks are files of an example; other tests run or check them."""
    shown = {page for page in PAGES for block in blocks(page) if block.language == "python" and not block.title}
    assert shown == set(GUIDES)


def code_of(page: str) -> str:
    """All Python of a page as one file with the line numbers of the page."""
    lines = [""] * (PAGES[page].read_text().count("\n") + 1)
    for block in blocks(page):
        if block.language == "python":
            lines[block.line - 1 : block.line - 1 + block.text.count("\n")] = block.text.splitlines()
    return "\n".join(lines) + "\n"


WITH_CODE = [page for page in PAGES if code_of(page).strip()]


@pytest.mark.parametrize("page", WITH_CODE)
def test_python_in_all_pages_has_no_undefined_names(page: str):
    """F821 is a name that the page neither imports nor defines above."""
    command = ["ruff", "check", "--isolated", "--select", "F821,F823", "--target-version", "py311"]
    ran = subprocess.run(
        [sys.executable, "-m", *command, "--output-format", "concise", "--stdin-filename", page + ".py", "-"],
        input=code_of(page),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("page", WITH_CODE)
def test_python_in_all_pages_imports_existing_names(page: str):
    own = {
        block.title.removesuffix(".py").replace("/", ".").split(".")[0] for block in blocks(page) if block.title
    }
    for node in ast.walk(ast.parse(code_of(page))):
        if isinstance(node, ast.Import):
            imported = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, name in imported:
            if module.split(".")[0] in own:
                continue
            found = importlib.import_module(module)
            assert name is None or hasattr(found, name), f"{page}:{node.lineno} imports {name} from {module}"


@contextlib.contextmanager
def running(
    arguments: list[str], folder: Path, log: Path, environment: dict[str, str]
) -> Iterator[Callable[[], str]]:
    """Runs a command in the background; yields a function that returns its output so far."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / arguments[0]), *arguments[1:]],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        try:
            yield log.read_text
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)


def wait_for(text: str, said: Callable[[], str], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while text not in said():
        assert time.monotonic() < deadline, f"{text!r} did not appear in\n{said()}"
        time.sleep(0.05)


@pytest.mark.parametrize("page", ["README.md", pytest.param("docs/quickstart.md", marks=pytest.mark.slow)])
async def test_quickstarts_deliver_as_printed(page: str, mongo: EmbeddedMongo, database: str, tmp_path: Path):
    """Writes the files of the page, starts the daemon, runs the other client, and compares the output."""
    found = blocks(page)
    for block in found:
        if block.language == "python" and block.title:
            text = localized(block.text, mongo, database)
            (tmp_path / block.title).write_text(text.replace("dispatched=True", f"dispatched={database!r}"))
    output = next(block.text for block in found if block.title == "output")
    assert "dispatcher run app:registry" in PAGES[page].read_text()
    with running(["dispatcher", "run", "app:registry"], tmp_path, tmp_path / "log", {}) as said:
        wait_for("dispatcher.started", said)
        for own in [block for block in found if block.title.startswith("output of ")]:
            ran = subprocess.run(
                [sys.executable, own.title.removeprefix("output of ")],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
            )
            assert ran.stdout == own.text
        with running(["python", "client.py"], tmp_path, tmp_path / "client.log", {}):
            for line in output.splitlines():
                wait_for(line, said)
    printed = [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith("{")]
    assert printed == output.splitlines()


def test_the_quickstart_has_the_same_write_for_mongosh_and_pymongo():
    shell = next(block for block in blocks("docs/quickstart.md") if block.language == "js")
    client = next(block for block in blocks("docs/quickstart.md") if block.title == "client.py")
    calls = re.findall(r"users\.(\w+)\(", client.text)
    assert [
        re.sub(r"(?<!^)([A-Z])", r"_\1", call).lower() for call in re.findall(r"users\.(\w+)\(", shell.text)
    ] == calls


# -- tables ------------------------------------------------------------------------------------------


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
        return
    for name, child in children.items():
        yield from commands(child, (*path, name))


ALL_COMMANDS = dict(commands(typer.main.get_command(app)))


def table_rows(page: str) -> list[str]:
    return [line for line in PAGES[page].read_text().splitlines() if line.startswith("|")]


def section(page: str, heading: str) -> str:
    text = PAGES[page].read_text()
    assert heading in text
    level = heading.partition(" ")[0]
    body = text.split(heading + "\n", 1)[1]
    return re.split(rf"^{level} ", body, maxsplit=1, flags=re.MULTILINE)[0]


def named(page: str, heading: str, start: str = "") -> set[str]:
    """The names in code style in the first column of a section's tables.

    Args:
        start: the text before each name. With "Q." the name in `Q.eq(f, v)` is `eq`.
    """
    rows = [line for line in section(page, heading).splitlines() if line.startswith("|")]
    cells = " ".join(row.split("|")[1] for row in rows)
    return set(re.findall(rf"`{re.escape(start)}(\w+)", cells))


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_every_field_is_in_the_guide():
    factories = set(mongoz.fields.__all__) & set(mongoz.__all__)
    assert factories
    assert factories <= named("docs/guide/fields.md", "## The factories")


def test_every_lookup_and_operator_is_in_the_reference():
    page = "docs/reference/queries.md"
    assert named(page, "## Lookups") - {"field"} == set(mongoz.settings.operators)
    assert named(page, "## Expressions and Q") - {"Q"} == public(mongoz.Q)
    assert named(page, "## Atomic operators", "U.") == public(mongoz.U)


def test_every_method_of_queries_is_in_the_reference():
    page = "docs/reference/queries.md"
    documented = named(page, "## Builders") | named(page, "## Terminals")
    methods = {name for kind in mongoz.Manager.__mro__[:-1] for name in public(kind)} - {"get_queryset"}
    assert methods <= documented
    assert documented - {"await"} <= methods


def test_every_index_method_every_setting_and_every_error_is_in_its_table():
    indexing = {name for name in dir(mongoz.Document) if "index" in name and not name.startswith("_")}
    assert named("docs/guide/indexes.md", "## Creating and dropping") == indexing
    assert set(mongoz.MongozSettings.model_fields) <= named("docs/reference/settings.md", "# Settings")
    errors = set(mongoz.exceptions.__all__) - {"MongozException"}
    assert named("docs/guide/documents.md", "## Errors") == {name for name in errors if name[0].isupper()}


ROWS = {
    "`instance.create()`": matrix.INSTANCE["create"],
    "`instance.save()` without an id": matrix.INSTANCE["save of a new one"],
    "`instance.save()`": matrix.INSTANCE["save"],
    "`instance.update(...)`": matrix.INSTANCE["update"],
    "`instance.update()` of nothing": matrix.INSTANCE["update of nothing"],
    "`instance.delete()`": matrix.INSTANCE["delete"],
    "`instance.refresh()`": matrix.INSTANCE["refresh"],
    "`objects.delete()`": matrix.QUERY["delete"],
    "`objects.get_or_create(...)`, a miss": matrix.QUERY["get_or_create, a miss"],
    "`objects.get_or_create(...)`, a hit": matrix.QUERY["get_or_create, a hit"],
    "`objects.update_or_create(...)`, a miss": matrix.QUERY["update_or_create, a miss"],
    "`objects.update_or_create(...)`, a hit": matrix.QUERY["update_or_create, a hit"],
    "`objects.update_or_create()`, a hit without defaults": matrix.QUERY["update_or_create, no defaults"],
    **{
        f"`objects.{name}(...)`": matrix.QUERY[name]
        for name in (
            *("create", "create_many", "bulk_create"),
            *("update", "update_many", "bulk_update", "update_count"),
        )
    },
    **{f"`{name}(...)`": case for name, case in matrix.CLASS.items()},
}


def test_the_matrix_of_the_reference_equals_the_tested_matrix():
    lines = section("docs/reference/signals.md", "## Which call fires what").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    header, _, *rows = cells
    assert header[1:] == [f"`{name}`" for name in matrix.SIGNALS]
    assert {row[0] for row in rows} == set(ROWS)
    for call, *marks in rows:
        told = ROWS[call][1]
        expected = [told[name][0] if name in told else "" for name in matrix.SIGNALS]
        assert marks == ["•" if mark is None else str(mark) for mark in expected], call


def test_every_flag_of_run_is_in_the_reference_with_its_variable_and_default():
    body = section("docs/reference/cli.md", "## dispatcher run")
    rows = {line.split("|")[1].strip(): line for line in body.splitlines() if line.startswith("|")}
    for parameter in ALL_COMMANDS["run",].params:
        if parameter.param_type_name == "argument" or "--help" in parameter.opts:
            continue
        row = rows[f"`{parameter.opts[0]}`"]
        assert f"`{parameter.envvar}`" in row
        default = parameter.default
        if isinstance(default, str | int | float) and default is not False:
            assert f"`{default:g}`" in row if isinstance(default, float) else f"`{default}`" in row


def test_the_flag_table_has_no_flag_that_does_not_exist():
    known = {opt for command in ALL_COMMANDS.values() for parameter in command.params for opt in parameter.opts}
    known |= {"--help", "--version", "--install-completion", "--show-completion"}
    for row in table_rows("docs/reference/cli.md"):
        assert set(re.findall(r"`(--[a-z-]+)`", row.split("|")[1])) <= known


def test_the_reference_of_the_command_line_equals_the_help():
    made = subprocess.run(
        [sys.executable, "-m", "dispatcher.cli.reference"], capture_output=True, text=True, check=True
    )
    remedy = "make it again: .venv/bin/python -m dispatcher.cli.reference > docs/reference/cli.md"
    assert PAGES["docs/reference/cli.md"].read_text() == made.stdout, remedy


def test_the_table_of_exit_codes_is_complete():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGES["docs/reference/exit-codes.md"].read_text(), re.MULTILINE)
    assert rows == [(str(code.value), code.name) for code in ExitCode]


def test_the_state_reference_has_every_field_of_positions_and_members(
    mongo: EmbeddedMongo, database: str, tmp_path: Path
):
    (tmp_path / "app.py").write_text(
        f"""
import mongoz
from mongoz.core.signals import post_save
registry = mongoz.Registry({mongo.url!r}, dispatched={database!r})
class User(mongoz.Document):
    name: str = mongoz.String()
    class Meta:
        registry = registry
        database = {database!r}
@post_save(User)
async def listen(sender, **kwargs): ...
"""
    )
    with running(["dispatcher", "run", "app:registry"], tmp_path, tmp_path / "log", {}) as said:
        wait_for("dispatcher.started", said)
        wait_for("lease.claimed", said)
        with MongoClient(mongo.url) as client:
            position = client.mongoz_dispatcher.positions.find_one({"_id": f"{database}:0"})
            member = client.mongoz_dispatcher.members.find_one({"group": database})
    first_cells = [row.split("|")[1] for row in table_rows("docs/reference/state.md")]
    for name in {**position, **member}:
        assert any(f"`{name}`" in cell for cell in first_cells), name
