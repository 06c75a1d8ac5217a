"""Each known error of a change stream has exactly one classification."""

import pytest
from pymongo.errors import (
    AutoReconnect,
    ConfigurationError,
    CursorNotFound,
    ExecutionTimeout,
    NotPrimaryError,
    OperationFailure,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)

from dispatcher.core import driver_errors
from dispatcher.core.driver_errors import KINDS, Kind, fatal, kind_of
from dispatcher.exceptions import AccessDenied, HistoryLost, PositionError, ServerError

# The error codes of change streams, measured or documented, with their classification.
EXPECTED = {
    9: Kind.BAD_TOKEN,
    13: Kind.NO_ACCESS,
    15: Kind.BAD_TOKEN,
    18: Kind.NOT_LET_IN,
    43: Kind.PASSING,
    47: Kind.TOO_LARGE,
    91: Kind.PASSING,
    136: Kind.HISTORY_LOST,
    189: Kind.PASSING,
    222: Kind.PASSING,
    234: Kind.PASSING,
    237: Kind.PASSING,
    260: Kind.BAD_TOKEN,
    280: Kind.BAD_TOKEN,
    286: Kind.HISTORY_LOST,
    326: Kind.HISTORY_LOST,
    346: Kind.NOT_SUPPORTED,
    10107: Kind.PASSING,
    10334: Kind.TOO_LARGE,
    11600: Kind.PASSING,
    11602: Kind.PASSING,
    13435: Kind.PASSING,
    13436: Kind.PASSING,
    40324: Kind.NOT_SUPPORTED,
    40573: Kind.NOT_SUPPORTED,
    50811: Kind.BAD_TOKEN,
}


def failure(code: int) -> OperationFailure:
    return OperationFailure("said the server", code, {"code": code, "errmsg": "said the server."})


@pytest.mark.parametrize(("code", "kind"), EXPECTED.items())
def test_every_code_is_classified(code, kind):
    assert kind_of(failure(code)) is kind


def test_no_code_is_in_two_sets():
    sets = {name: codes for name, codes in vars(driver_errors).items() if name.endswith("_CODES")}
    assert sum(map(len, sets.values())) == len(KINDS) == len(frozenset().union(*sets.values()))
    assert set(KINDS.values()) == set(Kind) - {Kind.UNKNOWN}


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (Kind.HISTORY_LOST, HistoryLost),
        (Kind.BAD_TOKEN, PositionError),
        (Kind.NO_ACCESS, AccessDenied),
        (Kind.NOT_LET_IN, AccessDenied),
        (Kind.TOO_LARGE, ServerError),
        (Kind.NOT_SUPPORTED, ServerError),
    ],
)
def test_a_permanent_error_has_a_reason_and_a_remedy(kind, error):
    for code in (code for code, its in KINDS.items() if its is kind):
        verdict = fatal(failure(code), "db:27017")
        assert type(verdict) is error
        assert "db:27017" in verdict.message
        assert "said the server" in verdict.message
        assert verdict.remedy


@pytest.mark.parametrize("code", [code for code, kind in KINDS.items() if kind is Kind.PASSING])
def test_a_transient_error_is_tried_again(code):
    assert fatal(failure(code), "db:27017") is None


@pytest.mark.parametrize(
    "error",
    [
        AutoReconnect("connection reset"),
        ServerSelectionTimeoutError("no primary"),
        WaitQueueTimeoutError("pool"),
        NotPrimaryError("not primary", {"code": 10107, "errmsg": "not primary"}),
        CursorNotFound("gone", 43, {"code": 43}),
        ExecutionTimeout("late", 50, {"code": 50}),
    ],
)
def test_errors_of_the_classes_of_the_driver_are_transient(error):
    assert kind_of(error) is Kind.PASSING
    assert fatal(error, "db:27017") is None


def test_an_unknown_error_is_tried_again():
    assert kind_of(failure(999_999)) is Kind.UNKNOWN
    assert fatal(failure(999_999), "db:27017") is None
    assert kind_of(OperationFailure("without a code")) is Kind.UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "Sessions are not supported by this MongoDB deployment",
        "The resolution lifetime expired after 5.1 seconds",
        "Server at db:27017 reports wire version 6, but this version of PyMongo requires at least 8",
        "round_trip_time for server ('db', 27017) is unexpectedly None",
    ],
)
def test_a_configuration_error_of_the_driver_is_transient(text):
    """The error is about the discovered servers, not about the URL."""
    assert kind_of(ConfigurationError(text)) is Kind.PASSING
    assert fatal(ConfigurationError(text), "db:27017") is None
