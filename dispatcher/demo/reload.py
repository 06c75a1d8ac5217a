"""`dispatcher dev`: a dispatcher on an embedded MongoDB, restarted whenever code changes."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from dispatcher.core.installation import how_to_install
from dispatcher.core.output.terminal import Terminal, shown
from dispatcher.embedded.processes import Child, stopped_by_signals
from dispatcher.embedded.server import embedded_mongo
from dispatcher.exceptions import EmbeddedError
from dispatcher.settings import AUTO
from dispatcher.web.links import new_token, place_for

# Milliseconds between two checks that the dispatcher still runs.
_LOOK_MS: Final = 200
# Seconds that a running receiver gets before a restart. If the receiver needs longer, its delivery is repeated. A
# developer can set another value in the environment.
_GRACE: Final = ("DISPATCHER_GRACE", "5")
_HTTP: Final = "DISPATCHER_HTTP"
_TOKEN: Final = "DISPATCHER_HTTP_TOKEN"  # noqa: S105 - the name of the variable


def develop(app: str, imports: Sequence[str], *, port: int | None, data: str | None, log_level: str) -> None:
    """Run the dispatcher until SIGINT or SIGTERM, and restart it whenever code changes.

    Code is all Python files below the working directory, except in a virtual environment. If the dispatcher ends
    by itself, its error is on the terminal, and the next change restarts it.

    Args:
        app: `"package.module:registry"`.
        port: the port of the embedded MongoDB; a free one by default.
        data: the directory for the data of the embedded MongoDB; by default a temporary one.

    Raises:
        EmbeddedError: MongoDB can't be started, or watchfiles is not installed.
    """
    console = Terminal(soft_wrap=True)
    with stopped_by_signals() as stop:
        changes = _changes(Path.cwd(), stop)
        # Watching begins before the first start, so that no change is missed.
        next(changes, None)
        with embedded_mongo(port=port, directory=Path(data) if data else None) as server:
            console.print(shown(f"{server.notice}: ") + shown(server.url, "bold"))
            token = os.environ.get(_TOKEN) or new_token()
            place = place_for(os.environ.get(_HTTP, AUTO), token)
            if place.url is not None:
                console.print(shown("Dashboard: ") + shown(place.url, "bold"))
            command = _command(app, imports, server.url, log_level)
            environment = {**_environment(), _HTTP: place.http, _TOKEN: token}
            while not stop.is_set():
                with Child("dispatcher", command, env=environment) as daemon:
                    changed = _wait_for_change(changes, daemon, console)
                if changed and not stop.is_set():
                    console.print(shown(f"{changed} changed, restarting", "dim"))


def _command(app: str, imports: Sequence[str], url: str, log_level: str) -> list[str]:
    command = [sys.executable, "-m", "dispatcher", "run", app, "--url", url]
    for module in imports:
        command += ["--import", module]
    return [*command, "--log-level", log_level]


def _environment() -> dict[str, str]:
    # Python compares bytecode with the source only by size and by time in whole seconds. So of two saves within a
    # second, Python could miss the later one.
    return {**dict([_GRACE]), **os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def _wait_for_change(changes: Iterator[frozenset[str]], daemon: Child, console: Terminal) -> str:
    """Wait until files change, even if the dispatcher ended. Returns their names, or "" at SIGINT or SIGTERM."""
    reported = False
    for files in changes:
        if files:
            return ", ".join(sorted(files))
        if daemon.exit_code is not None and not reported:
            reported = True
            text = f"the dispatcher ended (exit code {daemon.exit_code}); waiting for a change"
            console.print(shown(text, "yellow"))
    return ""


def _changes(directory: Path, stop: threading.Event) -> Iterator[frozenset[str]]:
    """Yields names of changed Python files, relative to `directory`, and regularly an empty set."""
    try:
        from watchfiles import PythonFilter, watch  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise EmbeddedError(
            "Watching for changes of the code needs watchfiles, which is not installed.",
            remedy=how_to_install("embedded"),
        ) from error
    # Several saves in a row, for example by a git checkout, are one change: watchfiles waits for a pause.
    for found in watch(
        directory,
        # A virtual environment in the project can have any name.
        watch_filter=PythonFilter(ignore_paths=[sys.prefix]),
        stop_event=stop,
        rust_timeout=_LOOK_MS,
        yield_on_timeout=True,
        raise_interrupt=False,
    ):
        yield frozenset(os.path.relpath(path, directory) for _, path in found)
