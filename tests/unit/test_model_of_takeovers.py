"""The model knows which takeovers later writes may supersede."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.model.model import STAMP, Told
from tests.model.runs import with_superseded

_PLAIN = Told("any", "post_save", False, None, ("", 0, ()), ("", 0, ()), "post", is_known=True, is_taken=True)
_SUPERSEDED = _PLAIN.as_superseded()


def change(row: dict[str, Any] | None) -> Any:
    return SimpleNamespace(after=row)


@pytest.mark.parametrize("seen", [[_SUPERSEDED, _PLAIN], [_PLAIN, _PLAIN]])
def test_the_earlier_of_two_equal_saves_may_be_superseded(seen: list[Told]) -> None:
    assert with_superseded([[_PLAIN], [_PLAIN]], seen, [change({STAMP: b""}), change({STAMP: b""})]) == seen


@pytest.mark.parametrize("seen", [[_PLAIN, _SUPERSEDED], [_SUPERSEDED, _SUPERSEDED]])
def test_the_last_save_is_not_superseded(seen: list[Told]) -> None:
    assert with_superseded([[_PLAIN], [_PLAIN]], seen, [change({STAMP: b""}), change({STAMP: b""})]) != seen


@pytest.mark.parametrize("seen", [[_SUPERSEDED, _PLAIN], [_PLAIN, _SUPERSEDED], [_SUPERSEDED, _SUPERSEDED]])
def test_both_of_two_equal_saves_may_be_superseded_before_a_third_one(seen: list[Told]) -> None:
    later = Told("any", "post_save", False, None, ("", 0, ()), ("", 0, ()), "post")
    changes = [change({STAMP: b""}), change({STAMP: b""}), change({STAMP: b""})]
    assert with_superseded([[_PLAIN], [_PLAIN], [later]], [*seen, later], changes) == [*seen, later]


def test_a_foreign_write_supersedes_nothing() -> None:
    assert with_superseded([[_PLAIN]], [_SUPERSEDED], [change({STAMP: b""}), change({})]) == [_PLAIN]
