"""Malformed documents and hostile receivers, among ordinary changes that must reach all receivers."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import bson
from bson import ObjectId
from pymongo.database import Database

from dispatcher.embedded.server import embedded_mongo
from tests.chaos.figures import Figure, figures
from tests.chaos.hostile_inputs import BEHAVIOURS, CODEC_OPTIONS, DOCUMENTS, FAILING, LASTING, digest_of
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.chaos.world import World
from tests.ledger import IMAGES
from tests.malformed import IMAGELESS, WITH_IMAGES, stories, write

__all__ = ["SCENARIO"]

_APP = "tests.chaos.hostile_app:registry"
_PATIENCE_SECONDS = 60.0

# Malformed documents per hostile document: 20,000 in a full run.
_MALFORMED = 47

# One event of 15 MB with its pre image takes 30 MB, and a few copies exist at a time.
_MEMORY_MB = 400


class _Case(NamedTuple):
    """A hostile document.

    Attributes:
        kind: the kind of the hostile document.
        changes: the number of its changes.
        witnesses: receivers that must get each change.
    """

    kind: str
    changes: int
    witnesses: tuple[str, ...]


class HostileWrites:
    """Writes hostile documents, and records the expected deliveries."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._database: Database[Any] = world.database
        for name in ("odds", "preys", WITH_IMAGES):
            self._database.create_collection(name, **IMAGES)
        for name in ("unseen", IMAGELESS):
            self._database.create_collection(name)
        self._told = 0
        self.malformed_changes = 0
        self._next: list[tuple[str, str]] = []
        self.cases: dict[str, _Case] = {}

    def fault(self) -> None:
        """Writes a hostile document, and malformed ones. All kinds of hostile documents are equally frequent."""
        if not self._next:
            kinds = [("odds", kind) for kind in DOCUMENTS] + [("preys", kind) for kind in BEHAVIOURS]
            self._next = self._world.chance.sample(kinds, len(kinds))
        collection, kind = self._next.pop()
        self._world.note(f"documents: {kind}" if collection == "odds" else f"receivers: {kind}")
        if collection == "odds":
            self._odd(kind)
        else:
            self._prey(kind)
        tales = list(stories(self._world.chance, _MALFORMED, self._told))
        self._told += len(tales)
        self.malformed_changes += write(self._database, tales).total()

    def _odd(self, kind: str) -> None:
        document = DOCUMENTS[kind](self._world.chance)
        odds, id_ = self._database.get_collection("odds", codec_options=CODEC_OPTIONS), document["_id"]
        odds.insert_one(document)
        odds.update_one({"_id": id_}, {"$set": {"n": 1}})
        odds.delete_one({"_id": id_})
        self.cases[digest_of(id_)] = _Case(kind, 3, ("witness",))

    def _prey(self, kind: str) -> None:
        preys, id_ = self._database["preys"], ObjectId(self._world.chance.randbytes(12))
        preys.insert_one({"_id": id_, "kind": kind, "n": 0})
        preys.update_one({"_id": id_}, {"$set": {"n": 1}})
        self.cases[digest_of(id_)] = _Case(kind, 2, ("hostile", "witness"))


class Outcome:
    """The deliveries and dead letters of the hostile documents.

    Args:
        calls: the recorded lines of the receivers.
        letters: dead letters.
    """

    def __init__(self, calls: Iterable[str], letters: Iterable[dict[str, Any]]) -> None:
        self.delivered: dict[tuple[str, str], set[str]] = defaultdict(set)
        self.dead: dict[tuple[str, str], set[str]] = defaultdict(set)
        for line in calls:
            receiver, digest, delivery, *_ = line.split(" ")
            self.delivered[digest, receiver].add(delivery)
        for letter in letters:
            digest, receiver = _subject(letter)
            self.dead[digest, receiver].add(letter["delivery_id"])

    def missing(self, digest: str, case: _Case) -> int:
        """The number of deliveries that were not made, and that have no dead letter."""
        unreadable = self.dead[digest, "everybody"]
        return sum(
            max(0, case.changes - len(self.delivered[digest, one] | self.dead[digest, one] | unreadable))
            for one in case.witnesses
        )


def _subject(letter: dict[str, Any]) -> tuple[str, str]:
    """The document and the receiver of a dead letter."""
    if letter["receiver"] is None:
        key = bson.decode(letter["parts"]["event"], _RAW_DOCUMENTS)["documentKey"]["_id"]
        return digest_of(key), "everybody"
    key = letter["key"] if "key" in letter else bson.decode(letter["parts"]["key"], CODEC_OPTIONS)[""]
    return digest_of(key), letter["receiver"].rpartition(".")[2]


_RAW_DOCUMENTS: Any = CODEC_OPTIONS.with_options(unicode_decode_error_handler="replace")


def run(plan: Plan) -> Report:
    """Writes, with hostile documents among the writes, and counts."""
    with (
        embedded_mongo() as server,
        World(plan, server.url, app=_APP) as world,
    ):
        writes, calls, readings = HostileWrites(world), plan.directory / "calls", plan.directory / "readings"
        calls.touch()
        readings.touch()
        world.other_work = lambda: readings.stat().st_size

        def outcome() -> Outcome:
            with calls.open() as file:
                return Outcome(file, world.held.find(_ABOUT_OTHERS))

        def lost() -> int:
            known = outcome()
            missing = writes.malformed_changes - len(told())
            return missing + sum(known.missing(digest, case) for digest, case in writes.cases.items())

        def told() -> set[str]:
            """The malformed changes that the reader got, or that have a dead letter.

            The dead letter of an undecodable change must name the malformed value and a remedy.
            """
            return {*readings.read_text().split(), *world.held.distinct("delivery_id", _UNREADABLE)}

        world.break_at_random(writes.fault, delay=0.05)
        world.until(lambda: lost() == 0, patience=_PATIENCE_SECONDS)
        world.finish()
        evidence = world.evidence()
        counted = figures(evidence, faults="hostile documents", memory=_MEMORY_MB)
        counted[-4:-4] = [
            *_judged(writes.cases, outcome()),
            Figure("changes of malformed documents", writes.malformed_changes),
            Figure("  of them dead letters", world.held.count_documents(_UNREADABLE)),
            Figure("malformed changes lost", writes.malformed_changes - len(told()), most=0),
        ]
    return Report(counted, evidence.deaths)


_ABOUT_OTHERS = {"state": "dead", "namespace.coll": {"$nin": ["accounts", WITH_IMAGES, IMAGELESS]}}
_UNREADABLE = {
    "state": "dead",
    "namespace.coll": {"$in": [WITH_IMAGES, IMAGELESS]},
    "$or": [{"reason": {"$ne": "undecodable"}}, {"fault.path": {"$gt": ""}, "fault.remedy": {"$gt": ""}}],
}


def _judged(cases: dict[str, _Case], known: Outcome) -> list[Figure]:
    changes, missing, escaped = 0, Counter[str](), 0
    for digest, case in cases.items():
        changes += case.changes
        missing[case.kind] += known.missing(digest, case)
        if case.kind in FAILING:
            escaped += max(0, case.changes - len(known.dead[digest, "hostile"]))
    tails = [digest for digest, case in cases.items() if case.kind in LASTING]
    endless = sum(not known.dead[digest, "hostile"] for digest in tails)
    return [
        Figure("hostile changes", changes),
        Figure("  of them dead letters of some receiver", len(set().union(*known.dead.values()))),
        Figure("hostile changes lost", missing.total(), most=0),
        *(Figure(f"  {kind}", count) for kind, count in sorted(missing.items()) if count),
        Figure("failures without a dead letter", escaped, most=0),
        Figure("endless triggers without a dead letter", endless, most=0),
    ]


SCENARIO = Scenario(
    name="hostile",
    title="malformed documents and hostile receivers",
    faults="hostile documents",
    full=Size(writes=30_000, documents=500, faults=430),
    short=Size(writes=4_000, documents=200, faults=43),
    run=run,
)
