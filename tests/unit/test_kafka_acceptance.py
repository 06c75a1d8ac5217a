"""The rule by which readers of a topic accept records, alone and in simulated runs (see
`tests/model/topic.py`)."""

import os
import random
from dataclasses import replace

import pytest

from dispatcher.kafka.acceptance import BEGINNING, Decision, LogPosition, RecordPlace, accept, resume
from tests.model.topic import Faults, Rules, Simulation

SEED = int(os.environ.get("MODEL_SEED") or random.randrange(10**6))
RUNS = 1_000
MANY_RUNS = 60_000
PARTS = 4

READER = LogPosition(offset=10, term=5, number=7, token="m")


def place(term: int, number: int, token: str = "n", offset: int = 10) -> RecordPlace:
    return RecordPlace(offset, term, number, token)


@pytest.mark.parametrize(
    ("record", "decision"),
    [
        pytest.param(place(5, 8), Decision.DELIVER, id="next number"),
        pytest.param(place(6, 0), Decision.DELIVER, id="number 0 of the next term"),
        pytest.param(place(9, 0), Decision.DELIVER, id="number 0 of a much higher term"),
        pytest.param(place(5, 8, "m"), Decision.DUPLICATE, id="next number, same token"),
        pytest.param(place(6, 0, "a"), Decision.DUPLICATE, id="number 0 of a higher term, earlier token"),
    ],
)
def test_accepted_records_move_term_and_number(record: RecordPlace, decision: Decision) -> None:
    position = LogPosition(11, record.term, record.number, max(record.token, "m"))
    assert accept(READER, record) == (decision, position)


@pytest.mark.parametrize(
    ("record", "decision"),
    [
        pytest.param(place(5, 9), Decision.AHEAD, id="a number is missing"),
        pytest.param(place(6, 1), Decision.AHEAD, id="number 0 of a higher term is missing"),
        pytest.param(place(5, 7), Decision.STALE, id="the last number again"),
        pytest.param(place(5, 0), Decision.STALE, id="number 0 of the same term again"),
        pytest.param(place(4, 0), Decision.STALE, id="number 0 of a lower term"),
        pytest.param(place(4, 8), Decision.STALE, id="a zombie with the next number"),
    ],
)
def test_refused_records_move_the_offset_only(record: RecordPlace, decision: Decision) -> None:
    assert accept(READER, record) == (decision, READER._replace(offset=11))


@pytest.mark.parametrize(
    ("record", "decision"),
    [
        pytest.param(place(6, 0, offset=12), Decision.JUMP, id="records are gone"),
        pytest.param(place(5, 8, offset=9), Decision.STALE, id="an offset that was read before"),
    ],
)
def test_a_record_at_another_offset_moves_nothing(record: RecordPlace, decision: Decision) -> None:
    assert accept(READER, record) == (decision, READER)


def test_a_record_after_a_missing_one_is_accepted_when_a_higher_term_repeats_it() -> None:
    position, decisions = BEGINNING, []
    for offset, (term, number, token) in enumerate(
        [(1, 0, "a"), (1, 2, "c"), (1, 3, "d"), (2, 0, "b"), (1, 1, "b"), (2, 1, "c"), (1, 4, "e"), (2, 2, "d")]
    ):
        decision, position = accept(position, RecordPlace(offset, term, number, token))
        if decision is Decision.DELIVER:
            decisions.append(token)
    assert decisions == ["a", "b", "c", "d"]
    assert position == LogPosition(8, 2, 2, "d")


def test_a_group_starts_in_the_middle_of_a_term_and_accepts_its_next_number() -> None:
    start = resume(BEGINNING, READER, beginning=3)
    assert start == READER
    assert accept(start, place(5, 8))[0] is Decision.DELIVER


def test_a_reader_continues_at_the_position_of_the_relay_if_the_relay_passed_lost_records() -> None:
    behind = LogPosition(2, 5, 0, "c")
    assert resume(behind, READER, beginning=4) == READER
    assert resume(behind, READER, beginning=12) == READER._replace(offset=12)


def test_a_reader_that_is_ahead_of_the_position_of_the_relay_keeps_its_high_water_mark() -> None:
    assert resume(LogPosition(2, 4, 3, "z"), READER, beginning=4) == READER._replace(token="z")


@pytest.mark.parametrize("relay", [READER, READER._replace(number=6, token="k"), READER._replace(token="z")])
def test_nothing_is_lost_if_the_relay_passed_no_missing_record(relay: LogPosition) -> None:
    assert resume(READER, relay, beginning=15) == READER._replace(offset=15, token=max(relay.token, READER.token))


def test_a_reader_whose_log_lost_an_acknowledged_record_goes_on_after_it() -> None:
    position = READER
    for offset, number in enumerate((9, 10, 11), start=10):  # the broker lost number 8
        decision, position = accept(position, place(5, number, f"n{number:02}", offset))
        assert decision is Decision.AHEAD
    relay = LogPosition(offset=12, term=5, number=10, token="n10")
    assert relay.offset <= position.offset
    position = resume(position, relay, beginning=0)
    assert position == relay
    assert accept(position, place(5, 11, "n11", 12))[0] is Decision.DELIVER


def finds(finding: str, rules: Rules, *, runs: int = 20_000) -> bool:
    """Whether the simulation finds a fault. It finds most faults in 10 runs, and the rarest in 1,300 runs."""
    return any(finding in Simulation(seed, rules).run() for seed in range(runs))


def all_keep_the_promise(seeds: range) -> Faults:
    total = Faults()
    for seed in seeds:
        simulation = Simulation(seed)
        assert simulation.run() == set(), "\n".join([f"seed {seed}", *simulation.trace])
        total.add(simulation.faults)
    print(f"{len(seeds)} runs from MODEL_SEED={seeds.start}: {total}")
    return total


def test_no_event_is_lost_disordered_or_repeated() -> None:
    faults = all_keep_the_promise(range(SEED, SEED + RUNS))
    assert min(vars(faults).values()) > RUNS // 100, "a fault hardly happens"


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_no_event_is_lost_disordered_or_repeated_in_many_runs(part: int) -> None:
    runs = MANY_RUNS // PARTS
    begin = SEED + RUNS + part * runs
    all_keep_the_promise(range(begin, begin + runs))


def naive(position: LogPosition, record: RecordPlace) -> tuple[Decision, LogPosition]:
    """Drops each event that is not later than the high-water mark. Ignores terms and numbers."""
    if record.offset > position.offset:
        return Decision.JUMP, position
    new = record.token > position.token
    moved = LogPosition(record.offset + 1, record.term, record.number, max(record.token, position.token))
    return Decision.DELIVER if new else Decision.DUPLICATE, moved


def accepts_missing_numbers(position: LogPosition, record: RecordPlace) -> tuple[Decision, LogPosition]:
    decision, moved = accept(position, record)
    if decision is Decision.AHEAD and record.term == position.term:
        return naive(position, record)
    return decision, moved


def accepts_lower_terms(position: LogPosition, record: RecordPlace) -> tuple[Decision, LogPosition]:
    decision, moved = accept(position, record)
    if decision is Decision.STALE and record.term < position.term:
        return naive(position, record)
    return decision, moved


def accepts_number_0_of_lower_terms(position: LogPosition, record: RecordPlace) -> tuple[Decision, LogPosition]:
    decision, moved = accept(position, record)
    if decision is Decision.STALE and record.term < position.term and record.number == 0:
        return naive(position, record)
    return decision, moved


def accepts_any_number_of_higher_terms(position: LogPosition, record: RecordPlace) -> tuple[Decision, LogPosition]:
    decision, moved = accept(position, record)
    if decision is Decision.AHEAD and record.term > position.term:
        return naive(position, record)
    return decision, moved


def reads_on_after_a_jump(position: LogPosition, record: RecordPlace) -> tuple[Decision, LogPosition]:
    return accept(position._replace(offset=record.offset), record)


def delivers_duplicates(position: LogPosition, record: RecordPlace) -> tuple[Decision, LogPosition]:
    decision, moved = accept(position, record)
    return (Decision.DELIVER if decision is Decision.DUPLICATE else decision), moved


def test_the_naive_rule_loses_events() -> None:
    assert finds("lost", Rules(accept=naive))


RIGHT = Rules()


@pytest.mark.parametrize(
    ("rules", "finding"),
    [
        pytest.param(replace(RIGHT, accept=accepts_missing_numbers), "lost", id="accept a missing number"),
        pytest.param(replace(RIGHT, accept=accepts_lower_terms), "lost", id="accept a lower term"),
        pytest.param(replace(RIGHT, accept=accepts_number_0_of_lower_terms), "lost", id="go back to a lower term"),
        pytest.param(replace(RIGHT, accept=accepts_any_number_of_higher_terms), "lost", id="begin at any number"),
        pytest.param(replace(RIGHT, accept=reads_on_after_a_jump), "lost", id="read on after a jump"),
        pytest.param(replace(RIGHT, accept=delivers_duplicates), "twice in a run", id="deliver duplicates"),
        pytest.param(
            replace(RIGHT, restored=lambda saved: saved._replace(term=0, number=-1)), "lost", id="save no term"
        ),
        pytest.param(
            replace(RIGHT, first=lambda relay, _: relay._replace(term=0, number=-1)),
            "lost",
            id="start without a number",
        ),
    ],
)
def test_the_simulation_finds_the_fault_of_a_weaker_reader(rules: Rules, finding: str) -> None:
    assert finds(finding, rules)


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(replace(RIGHT, waits_for_all=False), id="move past the highest acknowledged record"),
        pytest.param(replace(RIGHT, marks_at_position=False), id="save the last acknowledged number"),
        pytest.param(replace(RIGHT, save_is_fenced=False), id="save while a higher term exists"),
        pytest.param(replace(RIGHT, term_is_fenced=False), id="begin a term after an unsaved position"),
        pytest.param(replace(RIGHT, lands_in_order=False), id="land out of order"),
        pytest.param(replace(RIGHT, renews=False), id="keep the term after a failed record"),
        pytest.param(replace(RIGHT, token_of=lambda event: f"{event // 2:03}"), id="publish a token twice"),
    ],
)
def test_the_simulation_finds_the_fault_of_a_weaker_relay(rules: Rules) -> None:
    assert finds("lost", rules)
