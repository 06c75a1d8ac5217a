"""The order of deliveries that wait for claims, without a server."""

from collections.abc import Hashable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from dispatcher.claims import waiting as waiting_module
from dispatcher.claims import watch as watch_module
from dispatcher.claims.verdict import TAKEN, ClaimVerdict
from dispatcher.claims.waiting import ClaimStages, ClaimTools, WaitingClaims, WaitingRoom
from dispatcher.core.events import Calls, Change, Errand, Job
from dispatcher.core.stats import ClaimGauges, Stats
from dispatcher.delivery.attempt import HeldDelivery
from dispatcher.delivery.outcome import Waiting
from mongoz.signals.receivers import Receiver
from mongoz.stamps import Call, Claim
from tests.unit.test_origins import NOW, change, stamp


async def receive(sender: Any, **kwargs: Any) -> None:
    """Stands for a receiver."""


MAIL = Receiver(receive, "mail", 1, id=b"mail" * 2)
INDEX = Receiver(receive, "index", 2, id=b"index678")


class Scene:
    """Waiting claims, with substitutes for other objects. The substitutes record what happens."""

    def __init__(self, park_after: float = 60.0) -> None:
        self.verdicts: dict[int, ClaimVerdict] = {}
        self.delivered: list[tuple[str, str, bool]] = []
        self.parked: list[tuple[str, str, str]] = []
        self.finished: list[Job] = []
        self.errands: list[tuple[Hashable, Errand]] = []
        self.stats = Stats()
        self.capacity = SimpleNamespace(waiting=0, queued_bytes=0, watched=None, crowded=False)
        self.lanes: set[tuple[Hashable, str]] = set()
        self.hastened: dict[str, str] = {}
        watch = SimpleNamespace(
            verdict=lambda claim: self.verdicts.get(claim.number, ClaimVerdict.WAIT),
            named=lambda claim: claim.receivers,
            receivers_of=lambda claim: (),
            wake=lambda: None,
            load=self._load,
        )
        routes = SimpleNamespace(
            claimed=self._claimed,
            is_listed=lambda namespace, receiver, ids: receiver.id in ids,
            stamped_ids=lambda namespace: frozenset(),
        )
        takeovers: Any = SimpleNamespace(prepare=self._prepare)
        self.claims = WaitingClaims(
            ClaimTools(watch, takeovers, routes, self, self.stats),  # type: ignore[arg-type]
            WaitingRoom(self.capacity, lambda: self.capacity.crowded, park_after),  # type: ignore[arg-type]
            ClaimStages(
                lambda key, errand: self.errands.append((key, errand)),
                self._deliver,
                self._deliver_held,
                self._finished,
            ),
        )

    async def _load(self, changes: Any) -> None: ...

    def _finished(self, job: Job) -> None:
        assert job.awaited <= job.parts
        if job.finish_part():
            self.finished.append(job)

    def _claimed(self, change: Change, ids: frozenset[bytes]) -> tuple[Calls, ...]:
        receivers = tuple(one for one in (MAIL, INDEX) if one.id in ids)
        return (Calls(None, "post_save", True, receivers),) if receivers else ()

    async def _prepare(self, change: Change) -> Change:
        return change._replace(takeover=True)

    async def _deliver(self, job: Job) -> None:
        assert job.change is not None
        for calls in job.calls:
            for receiver in calls.receivers:
                assert not self.claims.defers(job, job.change, calls, receiver)
                self.delivered.append((job.token, receiver.name, job.change.takeover))

    async def _deliver_held(self, held: HeldDelivery) -> bool:
        self.delivered.append((held.change.token, "held", held.change.takeover))
        return True

    async def holds(self, change: Change, calls: Calls, receiver: Receiver) -> bool:
        if (change.key, receiver.name) not in self.lanes:
            return False
        self.parked.append((change.token, receiver.name, "following"))
        return True

    async def park(self, change: Change, calls: Calls, receiver: Receiver, waiting: Waiting) -> None:
        self.lanes.add((change.key, receiver.name))
        self.parked.append((change.token, receiver.name, waiting.reason))

    def hasten(self, lanes: Mapping[str, str]) -> None:
        self.hastened.update(lanes)

    def write(
        self, number: int, *receivers: Receiver, id_: Any = 1, process: bytes = b"incarnat", wall: float = NOW
    ) -> Job:
        """A claimed write enters."""
        claim = Claim(process, number, frozenset(one.id for one in receivers))
        one = change("insert", time=number, id_=id_, wall=wall)
        one = one._replace(origin=stamp(Call.CREATED, id_=id_, receivers=claim.receivers, claim=claim))
        job = Job(one.token, one, ())
        self.claims.enter(job, one, self.claims.judge(claim))
        return job

    def foreign(self, number: int, receiver: Receiver, id_: Any = 1) -> tuple[Job, bool]:
        """A delivery of another write; returns whether it waits."""
        one = change("insert", time=number, id_=id_)
        calls = Calls(None, "post_save", True, (receiver,))
        job = Job(one.token, one, (calls,))
        return job, self.claims.defers(job, one, calls, receiver)

    def decide(self, number: int, verdict: ClaimVerdict) -> None:
        self.verdicts[number] = verdict
        self.claims.decide()

    async def run(self) -> None:
        """Runs all errands, one after another."""
        while self.errands:
            _, errand = self.errands.pop(0)
            await errand.run()
            if errand.on_finished is not None:
                errand.on_finished()


def token(number: int) -> str:
    return change("insert", time=number).token


async def test_a_claim_that_is_done_finishes_its_change_and_delivers_nothing():
    scene = Scene()
    job = scene.write(1, MAIL, INDEX)
    assert scene.capacity.waiting == 1
    scene.decide(1, ClaimVerdict.DONE)
    await scene.run()
    assert (scene.finished, scene.delivered, scene.capacity.waiting) == ([job], [], 0)
    assert not scene.claims.has(change("insert", id_=1).key)


async def test_a_claim_that_is_taken_over_is_delivered():
    scene = Scene()
    scene.write(1, MAIL, INDEX)
    scene.decide(1, ClaimVerdict.TAKE)
    await scene.run()
    assert scene.delivered == [(token(1), "mail", True), (token(1), "index", True)]


async def test_later_deliveries_of_the_document_to_the_receiver_wait_for_a_claim():
    scene = Scene()
    scene.write(1, MAIL)
    assert [scene.foreign(2, MAIL)[1], scene.foreign(3, MAIL)[1]] == [True, True]
    scene.decide(1, ClaimVerdict.TAKE)
    await scene.run()
    assert scene.delivered == [(token(1), "mail", True), (token(2), "mail", False), (token(3), "mail", False)]


async def test_deliveries_to_other_receivers_and_of_other_documents_do_not_wait():
    scene = Scene()
    scene.write(1, MAIL)
    assert not scene.foreign(2, INDEX)[1]
    assert not scene.foreign(3, MAIL, id_=2)[1]
    assert scene.claims.has(change("insert", id_=1).key)
    assert not scene.claims.has(change("insert", id_=2).key)


async def test_deliveries_of_replays_and_backfills_do_not_wait():
    """Otherwise a crash would lose them: their progress is saved apart from the position."""
    scene = Scene()
    scene.write(1, MAIL)
    one = change("insert", time=2, id_=1)
    calls = Calls(None, "post_save", True, (MAIL,), run="backfill")
    assert not scene.claims.defers(Job("", one, (calls,)), one, calls, MAIL)


async def test_other_receivers_of_the_same_write_do_not_wait():
    scene = Scene()
    job = scene.write(1, MAIL)
    assert not scene.claims.defers(job, job.change, Calls(None, "post_save", True, (INDEX,)), INDEX)
    assert (job.parts, scene.capacity.waiting) == (1, 1)


async def test_only_deliveries_that_wait_for_a_claim_are_urgent():
    scene = Scene()
    scene.write(1, MAIL, INDEX)
    assert not scene.claims.is_urgent
    scene.foreign(2, MAIL)
    assert scene.claims.is_urgent
    scene.decide(1, ClaimVerdict.DONE)
    await scene.run()
    assert not scene.claims.is_urgent
    scene.write(3, MAIL)
    scene.capacity.crowded = True
    assert scene.claims.is_urgent


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("verdict", [ClaimVerdict.DONE, ClaimVerdict.TAKE])
async def test_only_the_writing_process_may_deliver_a_change_until_its_claim_is_decided(follows, verdict):
    scene = Scene()
    job = scene.write(1, MAIL, INDEX)
    if follows:
        scene.foreign(2, MAIL)
    assert job.is_awaited
    scene.decide(1, verdict)
    if verdict is ClaimVerdict.TAKE:
        assert (job.parts, job.awaited) == (2, 0)
    await scene.run()
    assert scene.finished == [job]
    assert (job.awaited, scene.capacity.waiting, scene.capacity.queued_bytes) == (0, 0, 0)


async def test_the_decision_ends_a_claim_without_known_receivers():
    scene = Scene()
    job = scene.write(1)
    scene.decide(1, ClaimVerdict.TAKE)
    assert scene.finished == [job]
    assert not scene.claims.has(change("insert", id_=1).key)


async def test_a_claim_is_taken_over_after_an_earlier_open_claim_of_its_document_and_receiver():
    scene = Scene()
    scene.write(1, MAIL)
    scene.verdicts[2] = ClaimVerdict.TAKE
    scene.write(2, MAIL)
    await scene.run()
    assert scene.delivered == []
    scene.decide(1, ClaimVerdict.TAKE)
    await scene.run()
    assert scene.delivered == [(token(1), "mail", True), (token(2), "mail", True)]


async def test_a_delivery_that_arrives_during_a_takeover_waits_for_it():
    scene = Scene()
    scene.write(1, MAIL)
    scene.decide(1, ClaimVerdict.TAKE)
    assert scene.foreign(2, MAIL)[1]
    scene.claims.decide()
    assert len(scene.errands) == 1
    await scene.run()
    assert scene.delivered == [(token(1), "mail", True), (token(2), "mail", False)]


@pytest.mark.parametrize(
    "reason", ["a follower waits for long", "the claim waits for long", "the lanes are crowded"]
)
async def test_a_claim_and_its_followers_are_parked_in_order_after_a_long_wait(reason, monkeypatch):
    scene = Scene(park_after=0.0 if reason == "a follower waits for long" else 60.0)
    if reason == "the claim waits for long":
        monkeypatch.setattr(waiting_module, "_LONGEST", 0.0)
    if reason == "the lanes are crowded":
        monkeypatch.setattr(waiting_module, "_LONG_WAIT", 0.0)
        scene.capacity.crowded = True
    job = scene.write(1, MAIL)
    scene.foreign(2, MAIL)
    scene.claims.decide()
    await scene.run()
    assert scene.finished == [job]
    assert scene.parked == [(token(1), "mail", "claimed"), (token(2), "mail", "following")]
    assert (scene.capacity.waiting, scene.capacity.queued_bytes) == (0, 0)
    assert not scene.claims.has(change("insert", id_=1).key)


async def test_a_claim_without_followers_is_not_parked_soon():
    scene = Scene(park_after=0.0)
    scene.write(1, MAIL)
    scene.claims.decide()
    await scene.run()
    assert scene.parked == []


@pytest.mark.parametrize("begun", [True, False])
async def test_a_stop_parks_claims_of_changes_that_other_receivers_have_got(begun):
    scene = Scene()
    job = scene.write(1, MAIL)
    job.passed = int(begun)
    await scene.claims.park_begun()
    assert scene.parked == ([(token(1), "mail", "claimed")] if begun else [])
    assert scene.finished == ([job] if begun else [])


async def test_after_a_stop_no_takeover_is_repeated_if_other_claims_of_its_change_wait():
    scene = Scene()
    scene.write(1, INDEX)
    job = scene.write(2, MAIL, INDEX)
    scene.decide(2, ClaimVerdict.TAKE)
    await scene.run()
    assert scene.delivered == [(token(2), "mail", True)]
    await scene.claims.park_begun()
    assert scene.parked == [(token(2), "index", "claimed")]
    assert scene.finished == [job]


async def test_after_a_stop_no_parked_claim_is_repeated_if_other_claims_of_its_change_wait():
    scene = Scene(park_after=0.0)
    scene.write(1, MAIL)
    job = scene.write(2, MAIL, INDEX)
    scene.foreign(3, MAIL)
    scene.claims.decide()
    await scene.run()
    assert [name for _, name, _ in scene.parked] == ["mail"] * 3
    await scene.claims.park_begun()
    assert scene.parked[3:] == [(token(2), "index", "claimed")]
    assert scene.finished[1:] == [job]


async def test_a_stop_parks_nothing_of_a_change_without_a_finished_delivery():
    scene = Scene()
    scene.write(1, MAIL, id_=1)
    scene.write(2, MAIL, INDEX, id_=1)
    scene.decide(1, ClaimVerdict.DONE)
    await scene.claims.park_begun()
    assert scene.parked == []


@pytest.mark.parametrize(
    ("verdict", "decision", "delivered"),
    [
        (ClaimVerdict.DONE, True, []),
        (ClaimVerdict.TAKE, True, [(token(1), "held", True)]),
        (ClaimVerdict.WAIT, "claimed", []),
    ],
)
async def test_a_parked_claim_is_judged_when_it_is_due(verdict, decision, delivered):
    scene = Scene()
    scene.verdicts[1] = verdict
    found = await scene.claims.deliver_held(parked_claim(1))
    assert (found.reason if isinstance(found, Waiting) else found) == decision
    assert scene.delivered == delivered
    assert scene.claims.incarnations == ({b"incarnat"} if decision == "claimed" else set())


def parked_claim(number: int) -> Any:
    claim = Claim(b"incarnat", number, frozenset({MAIL.id}))
    one = change("insert")._replace(origin=stamp(Call.CREATED, receivers=claim.receivers, claim=claim))
    calls = Calls(None, "post_save", True, (MAIL,))
    return HeldDelivery(one, calls, Waiting("claimed"), None, None, None, f"lane {number}", f"id {number}")  # type: ignore[arg-type]


async def test_parked_claims_are_judged_again_when_their_books_decide_them():
    """Each judgement reads and writes the database. So claims that are not decided yet are not judged early."""
    scene = Scene()
    pauses = [(await scene.claims.deliver_held(parked_claim(number))).seconds for number in (1, 2, 3)]
    assert min(pauses) >= 60
    scene.claims.decide()
    assert scene.hastened == {}
    scene.verdicts[1] = ClaimVerdict.DONE
    scene.decide(3, ClaimVerdict.TAKE)
    assert scene.hastened == {"lane 1": "id 1", "lane 3": "id 3"}
    scene.hastened.clear()
    scene.claims.decide()
    assert scene.hastened == {}, "a decided claim is made due once"
    assert await scene.claims.deliver_held(parked_claim(1))
    scene.decide(2, ClaimVerdict.TAKE)
    assert scene.hastened == {"lane 2": "id 2"}


async def test_the_books_of_parked_claims_are_read_until_the_next_judgement(monkeypatch):
    scene = Scene()
    at = waiting_module.now()
    seconds = (await scene.claims.deliver_held(parked_claim(1))).seconds
    monkeypatch.setattr(waiting_module, "now", lambda: at + 1.5 * seconds)
    assert scene.claims.incarnations == {b"incarnat"}
    monkeypatch.setattr(waiting_module, "now", lambda: at + 3 * seconds)
    assert scene.claims.incarnations == set(), "another process judges the claim now"


@pytest.mark.parametrize("seconds", [1.0, 15.0])
def test_a_parked_claim_is_taken_over_at_most_five_seconds_after_the_timeout(seconds):
    """The claim is parked and judged. Then its book is found silent, which makes the claim due."""
    longest = waiting_module._AGAIN + TAKEN * seconds + watch_module._PACE
    assert longest <= seconds + 5


async def test_a_delivery_does_not_wait_for_a_claim_of_a_later_change():
    """Both changes entered before the lane of the document reached the first one."""
    scene = Scene()
    scene.write(2, MAIL)
    _, waits = scene.foreign(1, MAIL)
    assert not waits
    _, waits = scene.foreign(3, MAIL)  # this delivery waits behind the claim
    assert waits
    _, waits = scene.foreign(1, MAIL)
    assert not waits


async def test_a_delivery_that_waits_keeps_its_place_between_the_claims():
    scene = Scene()
    scene.write(1, MAIL)
    scene.write(3, MAIL)
    _, waits = scene.foreign(2, MAIL)
    assert waits
    for number in (3, 1):
        scene.decide(number, ClaimVerdict.TAKE)
    await scene.run()
    assert [token for token, *_ in scene.delivered] == [token(1), token(2), token(3)]


# -- gauges


async def test_the_gauges_count_the_deliveries_that_wait_for_each_process():
    scene = Scene()
    assert scene.claims.gauges(NOW) == ClaimGauges()
    scene.write(1, MAIL, INDEX, wall=NOW - 5)
    scene.foreign(2, MAIL)
    scene.write(3, MAIL, id_=2, process=b"another ", wall=NOW - 1)
    gauges = scene.claims.gauges(NOW)
    assert gauges == ClaimGauges(4, 5.0, {b"incarnat".hex(): 3, b"another ".hex(): 1})
    scene.decide(1, ClaimVerdict.DONE)
    await scene.run()
    assert scene.claims.gauges(NOW) == ClaimGauges(1, 1.0, {b"another ".hex(): 1})
    scene.decide(3, ClaimVerdict.TAKE)
    await scene.run()
    assert scene.claims.gauges(NOW) == ClaimGauges()


async def test_a_delivery_after_a_claim_that_is_done_does_not_wait_for_a_process():
    scene = Scene()
    scene.write(1, MAIL)
    scene.foreign(2, MAIL)
    scene.decide(1, ClaimVerdict.DONE)
    assert scene.claims.gauges(NOW) == ClaimGauges()  # the delivery is in the lane of its document


async def test_the_gauges_name_at_most_20_processes():
    scene = Scene()
    for number in range(30):
        scene.write(number + 1, MAIL, id_=number, process=number.to_bytes(8, "big"))
    gauges = scene.claims.gauges(NOW)
    assert (gauges.waiting, len(gauges.processes)) == (30, 20)


async def test_takeovers_are_counted():
    scene = Scene()
    scene.write(1, MAIL, INDEX)
    scene.foreign(2, MAIL)
    scene.decide(1, ClaimVerdict.TAKE)
    await scene.run()
    assert (scene.stats.taken_over, scene.stats.orphaned) == (2, 0)
