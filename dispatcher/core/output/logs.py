"""The structured log of the daemon.

A thread writes the lines: the dispatcher never waits for the log, and continues if the log fails.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial, partialmethod
from itertools import islice
from typing import Any, Final

from dispatcher.core.error_text import text_of, trace_of, words_of
from dispatcher.core.output.commands import completed
from dispatcher.core.output.writer import replace_stream
from dispatcher.core.redaction import escaped, names_a_secret, redacted, shortened

# Maximum number of items, and maximum depth, of lists and mappings in a log line.
_MOST_VALUES: Final = 1_000
_DEEPEST: Final = 5

# Keys whose values have several lines.
_BLOCKS: Final = ("exception", "stack")
_INDENTED: Final = "\n    "


_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_Line = dict[str, Any]


class _Lines:
    """Writes the lines of a process.

    Args:
        lowest: the lowest level that is written, as a number of `_LEVELS`.
        render: makes the text of a line.
        names: values that every line has.
        write: writes a text.
    """

    def __init__(
        self, lowest: int, render: Callable[[_Line], str], names: _Line, write: Callable[[str], object]
    ) -> None:
        self._lowest = lowest
        self._render = render
        self._names = names
        self._write = write

    def add(self, level: str, event: str, values: _Line) -> None:
        """Write a line, unless its level is too low."""
        if _LEVELS[level] >= self._lowest:
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            line = {**self._names, **values, "event": event, "level": level, "timestamp": now}
            self._write(f"{self._render(_described(_with_complete_commands(_with_traceback(line))))}\n")


class _Log:
    """The logger. It never raises. A receiver that configures structlog does not change our lines.

    Args:
        own: writes the lines. While it is None, structlog writes them, with the configuration of the process.
    """

    def __init__(self, own: _Lines | None = None) -> None:
        self.own = own

    def _write(self, level: str, event: str, /, **values: Any) -> None:
        try:
            if self.own is not None:
                self.own.add(level, event, values)
            else:
                import structlog  # noqa: PLC0415 - it takes megabytes, and JSON lines do not need it

                getattr(structlog.get_logger("dispatcher"), level)(event, **values)
        except Exception as error:  # a processor that the application added, or a value, may raise
            with suppress(Exception):
                print(f"[{level}] {event} (not all of it can be logged: {text_of(error)})", file=sys.stderr)  # noqa: T201

    debug = partialmethod(_write, "debug")
    info = partialmethod(_write, "info")
    warning = partialmethod(_write, "warning")
    error = partialmethod(_write, "error")


log: Final[Any] = _Log()
"""The logger. Every line has the key `action`. The meaning of an action never changes."""


def configure_logging(log_format: str, level: str, *, process: str = "", terminal: bool | None = None) -> None:
    """Configure our logger for this process; it writes to stderr. The application's structlog stays as it is.

    From then on, a thread writes everything that is written to `sys.stderr`. Warnings and errors of other loggers
    become lines of our logger, unless the application has set a handler for them.

    Args:
        log_format: `"console"`, `"json"`, or `"auto"`: console on a terminal, JSON otherwise.
        process: the name of this process among the processes of a supervisor. Every line has it as `process`.
        terminal: whether lines are shown on a terminal; None to check whether stderr is a terminal.
    """
    colours = sys.stderr.isatty() if terminal is None else terminal
    console = log_format == "console" or (log_format == "auto" and colours)
    render = _console_renderer(colours=colours) if console else _as_json
    names: _Line = {"process": process} if process else {}
    replace_stream("stderr", _named_dropped(render, names))
    write = partial(print, end="", file=sys.stderr, flush=True)
    log.own = _Lines(_LEVELS[level.lower()], render, names, write)
    logging.lastResort = _LibraryHandler(logging.WARNING)


def _as_json(line: _Line) -> str:
    return json.dumps(line).replace("\x7f", "\\u007f")  # JSON does not escape DEL


def _console_renderer(*, colours: bool) -> Callable[[_Line], str]:
    """A function that makes lines for people."""
    from structlog.dev import ConsoleRenderer, plain_traceback  # noqa: PLC0415 - see `_Log`

    render = ConsoleRenderer(colors=colours, exception_formatter=plain_traceback)
    return lambda line: render(None, line["level"], _escaped(line))


def _named_dropped(render: Callable[[_Line], str], names: _Line) -> Callable[[int], str]:
    """Return a function that makes the line about dropped lines. This line is written at every log level."""
    texts: list[str] = []
    log: Any = _Log(_Lines(0, render, names, texts.append))

    def named(count: int) -> str:
        log.error(
            f"{count} log lines were dropped: stderr could not be written", action="log.dropped", dropped=count
        )
        return texts.pop()

    return named


class _LibraryHandler(logging.Handler):
    """Turns log records of libraries into lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # the arguments of the record do not fit its format
            text = words_of(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        if record.levelno >= logging.ERROR:
            log.error(text, action="library.error", logger=record.name, exc_info=error)
        else:
            log.warning(text, action="library.warning", logger=record.name, exc_info=error)


def _with_traceback(line: _Line) -> _Line:
    error = line.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        line["exception"] = trace_of(error)
    return line


def _with_complete_commands(line: _Line) -> _Line:
    if isinstance(remedy := line.get("remedy"), str):
        line["remedy"] = completed(remedy, elsewhere=True)
    return line


def _described(line: _Line) -> _Line:
    """Convert the values of a line to plain types, shorten them, and remove secrets."""
    return {key: _plain(value) for key, value in line.items()}


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return redacted(shortened(value))
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping) and depth < _DEEPEST:
        some = islice(value.items(), _MOST_VALUES)
        return {words_of(k): "..." if names_a_secret(words_of(k)) else _plain(v, depth + 1) for k, v in some}
    if isinstance(value, list | tuple | set | frozenset) and depth < _DEEPEST:
        return [_plain(one, depth + 1) for one in islice(value, _MOST_VALUES)]
    return words_of(value)


def _escaped(line: _Line) -> _Line:
    """Escape values for terminals, so that no value moves the cursor or looks like a line of ours."""
    return {key: _on_terminal(key, value) for key, value in line.items()}


def _on_terminal(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if key in _BLOCKS:
        return f"    {escaped(str(value).rstrip(), _INDENTED)}"
    return escaped(str(value))
