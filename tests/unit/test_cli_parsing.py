"""Points in time on the command line."""

from datetime import UTC, datetime

import pytest
import typer
from bson import Timestamp

from dispatcher.cli.parsing import point


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-31T12:00:00Z", Timestamp(1769860800, 0)),
        ("2026-01-31T12:00:00", Timestamp(1769860800, 0)),
        ("2026-01-31T13:00:00+01:00", Timestamp(1769860800, 0)),
        ("1769860800,7", Timestamp(1769860800, 7)),
        ("Timestamp(1769860800, 7)", Timestamp(1769860800, 7)),
        ("82697DEEC00000000729296E04", Timestamp(0x697DEEC0, 7)),
    ],
)
def test_points_in_time_are_parsed(text, expected):
    assert point(text, "--since") == expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("-2h", 7200), ("1.5h", 5400), ("30min", 1800), ("7d", 604800)]
)
def test_a_duration_is_counted_back_from_now(text, seconds):
    assert abs(datetime.now(UTC).timestamp() - seconds - point(text, "--since").time) < 5


@pytest.mark.parametrize("text", ["", "yesterday", "82ZZ", "2026-13-01", "5", "99999999999999d", "1e9999h"])
def test_a_text_that_is_no_point_in_time_is_refused(text):
    with pytest.raises(typer.BadParameter, match="not a point in time"):
        point(text, "--since")
