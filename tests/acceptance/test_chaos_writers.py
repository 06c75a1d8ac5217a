"""The judgement of the chaos scenario `writers`, and a short run of it."""

import json

import pytest

from tests.acceptance.test_chaos import chaos
from tests.chaos.writers_figures import (
    AUDIT,
    RECEIVERS,
    WRITES_EACH,
    Call,
    Commit,
    Fault,
    Fence,
    WritersEvidence,
    writers_figures,
)

SECOND = 10**9
WRITER, DISPATCHER, OTHER = 7, 8, 9

CLAIMED = Commit("a", WRITES_EACH + 1, 10 * SECOND, "t1", "book", frozenset(RECEIVERS))
UNCLAIMED = Commit("a", WRITES_EACH + 2, 11 * SECOND, "t2")
DELETED = Commit("a", None, 12 * SECOND, "t3", "book", frozenset(RECEIVERS))
FOREIGN = Commit("b", 1, 13 * SECOND)

KILLED = Fault("killed", WRITER, 14 * SECOND, 14 * SECOND)
FENCED = Fence(WRITER, "dispatcher", 19 * SECOND)
CUT = Fault("cut off from the state", WRITER, 9 * SECOND, 10 * SECOND)


def call(commit, receiver, origin="process", at=None, **changes):
    pid = WRITER if origin == "process" else DISPATCHER
    id_ = commit.token if origin != "stream" else f"event {commit.document} {commit.n}"
    signal = "post_update" if commit.n is not None else "post_delete"
    began = commit.at if at is None else at * SECOND
    plain = Call(receiver, id_, signal, commit.document, commit.n or 0, origin, pid, began, began + SECOND // 100)
    return plain._replace(**changes)


# The writer dies during the last receiver of the delete, and a dispatcher takes over all receivers of the delete.
GOOD = (
    *(call(commit, receiver) for commit in (CLAIMED, UNCLAIMED) for receiver in RECEIVERS),
    *(call(DELETED, receiver) for receiver in RECEIVERS[:2]),
    *(call(DELETED, receiver, "takeover", 20) for receiver in RECEIVERS),
    *(call(FOREIGN, receiver, "stream") for receiver in RECEIVERS),
    *(call(commit, AUDIT, "stream") for commit in (CLAIMED, UNCLAIMED, DELETED, FOREIGN)),
)


def without(commit, receiver):
    return tuple(one for one in GOOD if (one.signal, one.n, one.receiver) != _key(call(commit, receiver)))


def _key(one):
    return one.signal, one.n, one.receiver


def values_of(calls=GOOD, **changes):
    known = {
        "timeout": 15.0,
        "commits": (CLAIMED, UNCLAIMED, DELETED, FOREIGN),
        "writer_faults": (KILLED,),
        "starts": {WRITER: 0},
        "numbers": {1: WRITER},
        "fences": {"book": FENCED},
        "wanted": 1,
    }
    counted = writers_figures(WritersEvidence(**{**known, "calls": calls, **changes}))
    return {figure.name: figure.value for figure in counted if not figure.holds}, {
        figure.name: figure.value for figure in counted
    }


def test_correct_deliveries_pass():
    wrong, values = values_of()
    assert wrong == {}
    assert (values["writes of the processes"], values["  of them unclaimed"]) == (3, 1)
    assert (values["deliveries in process"], values["deliveries taken over"]) == (8, 3)
    assert values["repeated"] == values["  after: killed"] == 2
    assert values["slowest takeover after a death"] == 6


@pytest.mark.parametrize(
    ("calls", "wrong"),
    [
        (without(CLAIMED, "work"), {"claimed deliveries lost": 1}),
        (without(UNCLAIMED, "work"), {"  nothing": 1}),
        (without(FOREIGN, "work"), {"deliveries of dispatchers lost": 1}),
        (without(CLAIMED, AUDIT), {"deliveries of dispatchers lost": 1}),
        ((*GOOD, call(CLAIMED, "work", "takeover", 15, id="other")), {"delivered under two ids": 1}),
        ((*GOOD, call(DELETED, "work", at=21)), {"begun in process too late": 1}),
        ((*GOOD, call(CLAIMED._replace(token="t9", n=5), "work")), {"never written": 1}),
        ((*GOOD, call(UNCLAIMED, "work", pid=OTHER)), {"  after: nothing": 1}),
        ((*GOOD, call(CLAIMED, "work", "takeover", 21)), {"out of order in dispatchers": 1}),
        (
            tuple(
                one._replace(began=one.began + 15 * SECOND) if one.origin == "takeover" else one for one in GOOD
            ),
            {"slowest takeover after a death": 21},
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_errors_are_found(calls, wrong):
    assert values_of(calls)[0] == wrong


def test_unclaimed_deliveries_may_be_lost_if_the_state_was_cut_off():
    wrong, values = values_of(without(UNCLAIMED, "work"), writer_faults=(CUT, KILLED))
    assert wrong == {}
    assert values["deliveries lost while unclaimed"] == values["  the state was cut off"] == 1


def test_a_process_may_begin_one_late_delivery_for_each_stop():
    stopped = Fault("stopped for longer than the timeout", WRITER, 12 * SECOND, 30 * SECOND)
    late = (*GOOD, call(DELETED, "work", at=30))
    assert values_of(late, writer_faults=(KILLED, stopped))[0] == {}
    again = (*late, call(DELETED, "last", at=30))
    assert values_of(again, writer_faults=(KILLED, stopped))[0] == {"begun in process too late": 2}


def test_a_process_begins_nothing_after_the_fence():
    fenced = {"book": FENCED._replace(at=11 * SECOND)}
    assert values_of(fences=fenced)[0] == {"begun in process too late": 2}
    assert values_of(fences={"book": Fence(WRITER, "process", 11 * SECOND)})[0] == {}


@pytest.mark.parametrize(("held", "wrong"), [(True, {}), (False, {"slowest takeover after a death": 21})])
def test_a_takeover_may_wait_for_an_earlier_claim_of_its_document_and_receiver(held, wrong):
    """If `held`, the receivers of an earlier write of the document end just before the late takeover."""
    late = [one._replace(began=one.began + 15 * SECOND) if one.origin == "takeover" else one for one in GOOD]
    if held:
        late = [
            one._replace(ended=34 * SECOND) if (one.n, one.origin) == (CLAIMED.n, "process") else one
            for one in late
        ]
    assert values_of(tuple(late))[0] == wrong


def test_the_time_to_a_takeover_begins_at_the_last_fault_of_a_dispatcher():
    late = tuple(one._replace(began=one.began + 15 * SECOND) if one.origin == "takeover" else one for one in GOOD)
    restarted = Fault("dispatcher killed", OTHER, 30 * SECOND, 30 * SECOND)
    wrong, values = values_of(late, dispatcher_faults=(restarted,))
    assert wrong == {}
    assert values["slowest takeover after a death"] == 5


@pytest.mark.parametrize(
    ("faults", "fences", "cause"),
    [
        ((KILLED._replace(began=100 * SECOND),), {"book": FENCED}, "fenced by a dispatcher"),
        ((KILLED._replace(began=100 * SECOND),), {"book": Fence(WRITER)}, "nothing"),
        (
            (CUT._replace(began=11 * SECOND, ended=13 * SECOND),),
            {"book": Fence(WRITER)},
            "cut off from the state",
        ),
    ],
)
def test_a_repetition_is_caused_by_a_fault_at_its_time_and_otherwise_by_a_fence(faults, fences, cause):
    assert values_of(writer_faults=faults, fences=fences)[1][f"  after: {cause}"] == 2


@pytest.mark.exhaustive
def test_a_short_run_of_the_scenario_passes(mongo, tmp_path):
    where = tmp_path / "figures.json"
    result = chaos(
        "writers", "--seed", "11", "--writes", "600", "--documents", "50", "--faults", "3", "--json", str(where)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (told,) = json.loads(where.read_text())
    values = {figure["name"]: figure["value"] for figure in told["figures"]}
    assert values["claimed deliveries lost"] == 0
    assert values["deliveries in process"] > 500
