"""Every error of an application can be logged, and has a text for the state."""

import json
from collections.abc import Iterator

import pytest
import structlog
from pymongo.errors import ConfigurationError

from dispatcher.core.error_text import text_of, trace_of, words_of
from dispatcher.core.output import logs
from dispatcher.core.output.logs import configure_logging, log
from dispatcher.core.redaction import redacted
from dispatcher.delivery.transactions import is_transient


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Resets logging after a test. Otherwise later tests would write to the capture file of that test."""
    yield
    logs.log.own = None


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class Untruthful(Exception):
    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")


def in_a_circle() -> Exception:
    one, other = ValueError("a"), ValueError("b")
    one.__cause__, other.__cause__ = other, one
    return one


ERRORS = [Unprintable(), Untruthful("odd"), in_a_circle(), ValueError("no \ud800 luck")]


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_has_a_text(error):
    assert type(error).__name__ in text_of(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_traceback_names_the_origin_of_the_error(error):
    trace = trace_of(raised(error))
    assert "in raised" in trace
    assert type(error).__name__ in trace


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_error_can_be_logged(error, log_format, capsys):
    configure_logging(log_format, "info")
    log.error("failed", action="test.failed", exc_info=raised(error))
    said = capsys.readouterr().err
    assert "in raised" in (json.loads(said)["exception"] if log_format == "json" else said)


def test_credentials_in_a_traceback_are_not_logged(capsys):
    configure_logging("json", "info")
    log.error("failed", action="test.failed", exc_info=raised(ValueError("mongodb://me:secret@host/")))
    assert "secret" not in capsys.readouterr().err


SECRETS = [
    "mongodb://me:secret@host/",
    "mongodb+srv://me:secret@host/?retryWrites=true",
    "could not connect to 'mongodb://me:se/cr:secret@host:27017/shop'",
    "mongodb://me:pass@word:secret@host",
    "mongodb://host/?tls=true&tlsCertificateKeyFilePassword=secret&w=1",
    "mongodb://host/?authMechanismProperties=AWS_SESSION_TOKEN:secret",
]


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("text", SECRETS)
def test_credentials_are_not_logged_from_any_place(text, log_format, capsys):
    configure_logging(log_format, "debug")
    log.debug(text, action="test.failed")
    log.info("in a value", action="test.failed", url=text)
    log.warning("deep inside", action="test.failed", settings={"urls": [text]}, error=ValueError(text))
    log.error("in a cause", action="test.failed", exc_info=chained(ConfigurationError(text)))
    said = capsys.readouterr().err
    assert "secret" not in said
    assert said.count("host") >= 4 or "'mongodb" in said
    assert "://" in redacted(text)


def chained(cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except Exception as error:
            raise RuntimeError(f"it failed: {error}") from error
    except Exception as caught:
        return caught


@pytest.mark.parametrize("of", [text_of, trace_of, words_of])
def test_the_text_of_an_error_has_no_secret_and_a_bounded_length(of):
    error = raised(ValueError("x" * 1_000_000 + " password=hunter2 mongodb://me:hunter2@host/"))
    assert "hunter2" not in of(error)
    assert "host" in of(error)
    assert len(of(error)) < 60_000


def test_nested_values_are_logged_without_secrets(capsys):
    configure_logging("json", "info")
    nested = {"options": [{"password": "hunter2", "n": 1}], "Authorization": "hunter2", "list": ["token=hunter2"]}
    log.error("failed", action="test.failed", nested=nested, odd={1: Unprintable("hunter2")})
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert json.loads(said)["nested"]["options"] == [{"password": "...", "n": 1}]


CONTROLS = "\x1b]0;x\x07\x1b[2J\x9b31m\u202eevil\r\n2026-01-01T00:00:00Z [info] all is well"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_control_characters_and_line_breaks_of_values_are_escaped(log_format, capsys):
    configure_logging(log_format, "info")
    error = raised(ValueError(CONTROLS))
    log.error(CONTROLS, action="test.failed", text=CONTROLS, some=[CONTROLS], odd=error, exc_info=error)
    said = capsys.readouterr().err
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(said)
    assert "x1b" in said if log_format == "console" else "001b" in said
    assert not any(line.startswith("2026-01-01") for line in said.splitlines())
    assert len([line for line in said.splitlines() if not line.startswith("    ")]) == 1


def test_the_length_of_a_line_is_bounded(capsys):
    configure_logging("json", "info")
    log.error("failed", action="test.failed", error="x" * 10_000_000)
    said = capsys.readouterr().err
    assert len(said) < 21_000
    assert json.loads(said)["error"].startswith("xxx")


def test_the_search_in_a_circular_chain_of_errors_ends():
    assert not is_transient(in_a_circle())
    assert not is_transient(Untruthful())


def refuse(*_: object) -> None:
    raise ValueError("a processor of the application")


@pytest.fixture
def configured_by_the_application() -> Iterator[None]:
    structlog.configure(processors=[refuse], wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.reset_defaults()


def test_the_structlog_configuration_of_an_application_does_not_change_our_lines(
    capsys, configured_by_the_application
):
    configure_logging("json", "info")
    structlog.configure(processors=[refuse])
    log.warning("it goes on", action="test.went_on")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["action"] == "test.went_on"


def test_our_configuration_does_not_change_the_loggers_of_an_application(configured_by_the_application):
    configure_logging("json", "info")
    with pytest.raises(ValueError, match="a processor of the application"):
        structlog.wrap_logger(structlog.ReturnLogger()).critical("theirs")


def test_a_failing_log_line_falls_back_to_plain_text(capsys):
    structlog.configure(processors=[refuse])
    try:
        log.error("it goes on", action="test.went_on")
    finally:
        structlog.reset_defaults()
    assert "it goes on (not all of it can be logged: ValueError: a processor" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [1_000, 10_000])
def test_a_long_message_is_cut_after_its_beginning(limit):
    said = text_of(ValueError("m" * 30_000_000), limit)
    assert said.startswith("ValueError: mmm")
    assert limit / 3 < len(said) <= limit + 20
