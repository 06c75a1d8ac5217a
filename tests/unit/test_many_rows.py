"""Instances of many rows are made without garbage collections in between."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mongoz.persistence.rows.many import make_all

ROWS: list[dict[str, Any]] = [{"n": n} for n in range(1_000)]


@contextmanager
def collections_counted() -> Iterator[list[str]]:
    """Collect the phases of the garbage collector. Each new object may start a collection."""
    phases: list[str] = []

    def note(phase: str, _info: dict[str, int]) -> None:
        phases.append(phase)

    thresholds = gc.get_threshold()
    gc.callbacks.append(note)
    try:
        gc.set_threshold(1)
        yield phases
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(note)


def test_no_collection_starts_while_many_instances_are_made():
    during: list[int] = []
    with collections_counted() as phases:

        def make(row: dict[str, Any]) -> list[Any]:
            during.append(len(phases))
            return [row]

        made = make_all(make, ROWS)
    assert made == [[row] for row in ROWS]
    assert len(set(during)) == 1


def test_the_collector_works_again_after_an_error():
    def refuse(row: dict[str, Any]) -> None:
        raise ValueError(row)

    with pytest.raises(ValueError, match="0"):
        make_all(refuse, ROWS)
    assert gc.isenabled()


def test_a_collector_that_the_application_disabled_stays_disabled():
    gc.disable()
    try:
        assert len(make_all(list, ROWS)) == len(ROWS)
        assert not gc.isenabled()
    finally:
        gc.enable()
