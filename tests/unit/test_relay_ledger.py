"""The position of a relay passes an event only when this event and all earlier ones are acknowledged."""

import random
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.kafka.relay_state import NO_RECORD, Mark, RelayPosition
from dispatcher.relay.ledger import Part, RecordLedger, Report

BEGIN = RelayPosition("a", "earlier", (NO_RECORD, Mark(5, 3, 9), NO_RECORD))
TERM = 7


def ledger() -> RecordLedger:
    return RecordLedger(TERM, BEGIN, "own")


def answer(report: Report, *offsets: int | None) -> None:
    for offset in offsets:
        report(None, SimpleNamespace(offset=lambda offset=offset: offset))


def refuse(report: Report) -> None:
    report(SimpleNamespace(name=lambda: "_MSG_TIMED_OUT", str=lambda: "timed out"), None)


def test_a_term_begins_at_its_position() -> None:
    assert ledger().position == BEGIN


def test_the_position_waits_for_all_earlier_records() -> None:
    one = ledger()
    [first, second] = one.add("b", [Part(0, 2, 1), Part(1, 1, 0)], 100)
    [third] = one.add("c", [Part(0, 1, 2)], 10)
    assert (one.records, one.size, one.oldest) == (4, 110, "b")
    answer(third, 12)
    answer(first, 10, 11)
    assert one.position == BEGIN
    answer(second, 5)
    assert one.position == RelayPosition("c", "own", (Mark(13, TERM, 2), Mark(6, TERM, 0), NO_RECORD))
    assert (one.records, one.size, one.oldest, one.is_empty) == (0, 0, None, True)


def test_the_marks_are_those_of_the_last_records_that_the_position_has_passed() -> None:
    one = ledger()
    [first] = one.add("b", [Part(0, 1, 0)])
    one.add("c", [Part(1, 1, 0)])
    [third] = one.add("d", [Part(0, 1, 1)])
    answer(first, 10)
    answer(third, 11)
    assert one.position == RelayPosition("b", "own", (Mark(11, TERM, 0), Mark(5, 3, 9), NO_RECORD))


def test_an_idle_stream_moves_the_position() -> None:
    one = ledger()
    one.add("b", [])
    assert one.position == RelayPosition("b", "own", BEGIN.marks)


def test_a_stream_that_begins_at_a_time_does_not_move_the_position_back() -> None:
    one = RecordLedger(TERM, BEGIN._replace(token="m"), "own")
    one.add("b", [])
    assert one.position == BEGIN._replace(token="m")
    one.add("n", [])
    assert one.position.token == "n"


def test_the_position_never_lies_between_a_marker_and_its_delete() -> None:
    one = ledger()
    [first] = one.add("b", [Part(0, 1, 0)], is_end=False)
    one.add("c", [], is_end=False)
    answer(first, 10)
    assert one.position == BEGIN
    [last] = one.add("d", [Part(2, 1, 0)])
    answer(last, 4)
    assert one.position == RelayPosition("d", "own", (Mark(11, TERM, 0), Mark(5, 3, 9), Mark(5, TERM, 0)))


def test_an_error_stops_the_position_before_its_record() -> None:
    one = ledger()
    [first, second] = one.add("b", [Part(0, 1, 0), Part(1, 1, 0)])
    [third] = one.add("c", [Part(0, 1, 1)])
    refuse(second)
    answer(first, 10)
    answer(third, 11)
    assert one.failure == "_MSG_TIMED_OUT: timed out"
    assert one.position == BEGIN


def test_if_offsets_begin_again_the_records_are_in_another_topic() -> None:
    one = ledger()
    [first] = one.add("b", [Part(1, 1, 0)])
    answer(first, 5)
    assert one.position.token == "b"
    [second] = one.add("c", [Part(0, 1, 0)])
    [third] = one.add("d", [Part(1, 1, 1)])
    answer(second, 0)
    answer(third, 0)
    assert "the offsets of partition 1 begin again, after 6: the topic was deleted" in one.failure
    assert one.position == RelayPosition("c", "own", (Mark(1, TERM, 0), Mark(6, TERM, 0), NO_RECORD))


def test_an_answer_without_an_offset_is_an_error() -> None:
    one = ledger()
    [report] = one.add("b", [Part(0, 1, 0)])
    answer(report, None)
    assert "offset" in one.failure
    assert one.position == BEGIN


@given(st.integers(0, 2**32))
def test_no_order_of_answers_moves_the_position_too_far(seed: int) -> None:
    """A model computes the expected position.

    The position is at the end of a span with `is_end`: the last such span before an unacknowledged one.
    """
    choose = random.Random(seed)
    one, numbers, offsets = ledger(), [0] * 3, [0, 5, 0]
    waiting: list[tuple[int, Report, list[int]]] = []
    spans: list[dict[str, Any]] = []
    for place in range(choose.randint(1, 12)):
        parts, marks = [], {}
        for partition in choose.sample(range(3), choose.randint(0, 3)):
            count = choose.randint(1, 3)
            numbers[partition] += count
            parts.append((Part(partition, count, numbers[partition] - 1), offsets[partition]))
            offsets[partition] += count
            marks[partition] = Mark(offsets[partition], TERM, numbers[partition] - 1)
        span = {"token": f"b{place:02}", "left": len(parts), "marks": marks, "is_end": choose.random() < 0.8}
        reports = one.add(span["token"], [part for part, _ in parts], is_end=span["is_end"])
        for report, (part, first) in zip(reports, parts, strict=True):
            waiting.append((place, report, list(range(first, first + part.records))))
        spans.append(span)
        while waiting and choose.random() < 0.6:
            at, report, some = waiting.pop(choose.randrange(len(waiting)))
            if choose.random() < 0.1:
                refuse(report)
                continue
            answer(report, *some)
            spans[at]["left"] -= 1
            expected = BEGIN
            marks = list(BEGIN.marks)
            for each in spans:
                if each["left"]:
                    break
                for partition, mark in each["marks"].items():
                    marks[partition] = mark
                if each["is_end"]:
                    expected = RelayPosition(each["token"], "own", tuple(marks))
            assert one.position == expected


def test_records_of_another_producer_between_those_of_the_term_are_noticed() -> None:
    one = ledger()
    for number, offset in enumerate((10, 11, 13, 14)):
        [report] = one.add(f"c{number}", [Part(0, 1, number)])
        answer(report, offset)
        assert one.mixed == ({0} if offset >= 13 else set())
    one.mixed.clear()
    [report] = one.add("d", [Part(0, 1, 4)])
    answer(report, 15)
    assert one.mixed == set()
