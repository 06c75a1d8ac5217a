"""The structured log of the daemon.

A thread writes the lines: the dispatcher never waits for the log, and continues if the log fails.
"""

import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from functools import partialmethod
from itertools import islice
from typing import Any, Final

import structlog

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


class _Log:
    """The logger. Before `configure_logging`, it is structlog's logger, as the process has configured it.

    It never raises. A receiver that configures structlog does not change our lines.
    """

    def __init__(self) -> None:
        self.own: Any = None

    def _write(self, level: str, event: str, /, **values: Any) -> None:
        try:
            getattr(self.own or structlog.get_logger("dispatcher"), level)(event, **values)
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
        log_format: `"console"`, `"json"`, or `"auto"`: console on a terminal.
        process: the name of this process among the processes of a supervisor. Every line has it as `process`.
        terminal: whether lines are shown on a terminal; None to check whether stderr is a terminal.
    """
    colours = sys.stderr.isatty() if terminal is None else terminal
    console = log_format == "console" or (log_format == "auto" and colours)
    renderers: Sequence[Any] = (
        (
            _escaped,
            structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback),
        )
        if console
        else (structlog.processors.JSONRenderer(), _escape_delete)
    )
    processors = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _with_traceback,
        _with_complete_commands,
        _described,
        *renderers,
    ]
    number = logging.getLevelNamesMapping()[level.upper()]
    names: dict[str, Any] = {"process": process} if process else {}
    replace_stream("stderr", _named_dropped(processors, names))
    log.own = structlog.wrap_logger(
        structlog.PrintLogger(sys.stderr),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        context_class=dict,
        cache_logger_on_first_use=False,
        **names,
    )
    logging.lastResort = _LibraryHandler(logging.WARNING)


def _named_dropped(processors: Sequence[Any], names: Mapping[str, Any]) -> Callable[[int], str]:
    """Return a function that makes the line with the number of dropped lines. No level of the log hides it."""
    log: Any = structlog.wrap_logger(
        structlog.ReturnLogger(),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(0),
        **names,
    )

    def named(count: int) -> str:
        line: str = log.error(
            f"{count} log lines were dropped: stderr could not be written", action="log.dropped", dropped=count
        )
        return f"{line}\n"

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


def _with_traceback(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    error = event.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        event["exception"] = trace_of(error)
    return event


def _with_complete_commands(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    if isinstance(remedy := event.get("remedy"), str):
        event["remedy"] = completed(remedy, elsewhere=True)
    return event


def _described(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Convert the values of a line to plain types, shorten them, and remove secrets."""
    return {key: _plain(value) for key, value in event.items()}


def _escape_delete(_logger: Any, _method: str, line: str) -> str:
    """Escape DEL, the only control character that JSON does not escape."""
    return line.replace("\x7f", "\\u007f")


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


def _escaped(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape values for terminals, so that no value moves the cursor or looks like a line of ours."""
    return {key: _on_terminal(key, value) for key, value in event.items()}


def _on_terminal(key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if key in _BLOCKS:
        return f"    {escaped(str(value).rstrip(), _INDENTED)}"
    return escaped(str(value))
