"""Steps of clients. Each step acts, and reports the action to the model.

Every step fits every state: a step without an effect (a delete of a missing document) is skipped at run time.
So hypothesis can remove any other steps to find the shortest failing sequence.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from bson import Decimal128, Int64, ObjectId
from hypothesis import strategies as st
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne

from mongoz import U
from mongoz.signals import muted
from tests.model.model import (
    CLIENTS,
    CREATED,
    DEFAULTS,
    DELETED,
    EVENTS,
    FATES,
    SAVED,
    STAMP,
    UPDATED,
    Fate,
    Key,
    Model,
    Row,
)
from tests.model.world import Gate, World

__all__ = ["Fated", "Held", "Own", "OwnBulk", "Run", "Start", "Step", "Stop", "Transaction", "sequences"]

_NUMBERS: Final = (0, 1, 2)
_SPELLINGS: Final[tuple[Callable[[int], Any], ...]] = (
    int,
    float,
    Int64,
    lambda number: Decimal128(str(number)),
    lambda number: Decimal128(f"{number}.0"),
)
"""Types of numbers. MongoDB considers a number equal in all of them."""
_WRITERS: Final = ("foreign", *CLIENTS)
_CLAIMING: Final = tuple(client.name for client in CLIENTS.values() if client.group is not None)
_MEMORY: Final = ("", 0)


@dataclass
class Run:
    """One running sequence.

    Attributes:
        world: the world of the sequence.
        model: the model of the sequence.
        ids: the `_id`s of its documents: ObjectIds, or numbers. If an `_id` is a number, its type differs from
            command to command.
        session: during a transaction, the session of raw writes.
        theirs: during a transaction that the driver opened, the session of the calls of the ODM.
        memory: the document that a client has read and kept: as the server had it, and as the model had it.
    """

    world: World
    model: Model
    ids: dict[int, Any]
    session: Any = None
    theirs: Any = None
    memory: tuple[Row, Row] | None = None
    commands: int = 0

    @classmethod
    def begin(cls, world: World, model: Model, *, numbers: bool) -> "Run":
        """Begins a sequence. The `_id`s of its documents are numbers or ObjectIds."""
        return cls(world, model, {n: world.number() if numbers else ObjectId() for n in _NUMBERS})

    def id_of(self, key: Key) -> Any:
        """The `_id` of a document."""
        id_ = self.ids[key[1]]
        if isinstance(id_, ObjectId):
            return id_
        self.commands += 1
        return _SPELLINGS[self.commands % len(_SPELLINGS)](id_)

    def row(self, key: Key) -> Row | None:
        """The document of the model."""
        return self.model.documents.get(key)

    async def kept(self, key: Key) -> tuple[Row, Row] | None:
        """A document with its stamp, twice: as the server has it, and as the model has it."""
        row = self.row(key)
        if row is None:
            return None
        found = await self.world.raw(key[0]).find_one({"_id": self.id_of(key)}, session=self.session)
        assert found is not None, f"the model has {key}, the server has not"
        return found, row


class Step(ABC):
    """An action of a client, or of the operator of the dispatcher."""

    @abstractmethod
    async def carry_out(self, run: Run) -> None:
        """Acts, and reports the action to the model."""

    @property
    def keys(self) -> frozenset[Key]:
        """The documents of the step. A step without documents must run alone."""
        return frozenset()


# Writes of clients without mongoz, and calls of mongoz that send the driver's requests


@dataclass(frozen=True)
class Write:
    """One request of the driver.

    Attributes:
        kind: `insert set inc push unset replace delete pipeline-set pipeline-replace unstamp pipeline-unstamp
            restamp`.
        key: the key of the document.
        values: for kinds that set values.
        upsert: whether it inserts a missing document.
    """

    kind: str
    key: Key
    values: Row = field(default_factory=dict)
    upsert: bool = False

    def foretell(self, run: Run) -> Any:
        """Reports the write to the model. Returns the request, or None if the request would have no effect."""
        id_, before = run.id_of(self.key), run.row(self.key)
        full = {**DEFAULTS, **self.values}
        if before is None:
            return self._of_nothing(run, id_, full)
        if self.kind == "insert":
            return None
        if self.kind == "delete":
            run.model.foreign(self.key, None, "delete")
            return DeleteOne({"_id": id_})
        if "replace" in self.kind:
            # If the values are equal, the order of the fields would decide whether this is a change.
            if {**before, STAMP: None} == {**full, STAMP: None}:
                return None
            if self.kind == "replace":
                run.model.foreign(self.key, full, "replace")
                return ReplaceOne({"_id": id_}, full, upsert=self.upsert)
            run.model.foreign(self.key, full, "update or replace")
            literal = {name: {"$literal": value} for name, value in full.items()}
            return UpdateOne({"_id": id_}, [{"$replaceWith": {"_id": "$_id", **literal}}])
        if "stamp" in self.kind:
            return self._stamp(run, id_, before)
        pipeline = self.kind.startswith("pipeline")
        run.model.foreign(self.key, self._updated(before), "update or replace" if pipeline else "update")
        return UpdateOne({"_id": id_}, self._update(), upsert=self.upsert)

    def _stamp(self, run: Run, id_: Any, before: Row) -> Any:
        """Like `foretell`, for a write that changes only the stamp."""
        if self.kind == "restamp":
            stamp = run.model.stamp()
            run.model.foreign(self.key, {**before, STAMP: stamp}, "update")
            return UpdateOne({"_id": id_}, {"$set": {STAMP: stamp}})
        if STAMP not in before:
            return None
        after = {name: value for name, value in before.items() if name != STAMP}
        pipeline = self.kind == "pipeline-unstamp"
        run.model.foreign(self.key, after, "update or replace" if pipeline else "update")
        return UpdateOne({"_id": id_}, [{"$unset": STAMP}] if pipeline else {"$unset": {STAMP: 1}})

    def _of_nothing(self, run: Run, id_: Any, full: Row) -> Any:
        """Like `foretell`, for a missing document."""
        if self.kind == "insert":
            run.model.foreign(self.key, full, "insert")
            return InsertOne({"_id": id_, **full})
        if not self.upsert:
            return None
        if self.kind == "replace":
            run.model.foreign(self.key, full, "insert")
            return ReplaceOne({"_id": id_}, full, upsert=True)
        if self.kind in ("set", "inc", "push"):
            run.model.foreign(self.key, self._updated({}), "insert")
            return UpdateOne({"_id": id_}, self._update(), upsert=True)
        return None

    def _updated(self, before: Row) -> Row:
        match self.kind:
            case "inc":
                return {**before, "n": before.get("n", 0) + 1}
            case "push":
                return {**before, "tags": [*before.get("tags", []), "pushed"]}
            case "unset":
                return {name: value for name, value in before.items() if name not in self.values}
        return {**before, **self.values}

    def _update(self) -> Any:
        match self.kind:
            case "inc":
                return {"$inc": {"n": 1}}
            case "push":
                return {"$push": {"tags": "pushed"}}
            case "unset":
                return {"$unset": dict.fromkeys(self.values, 1)}
            case "pipeline-set":
                return [{"$set": {name: {"$literal": value} for name, value in self.values.items()}}]
        return {"$set": self.values}


@dataclass(frozen=True)
class Raw(Step):
    """Requests of the driver, one bulk write per collection: of a foreign client, or of `Document.bulk_write`."""

    by: str
    writes: tuple[Write, ...]

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset(write.key for write in self.writes)

    async def carry_out(self, run: Run) -> None:
        requests: dict[str, list[Any]] = defaultdict(list)
        for write in self.writes:
            request = write.foretell(run)
            if request is not None:
                requests[write.key[0]].append(request)
        for collection, some in requests.items():
            if self.by == "foreign":
                await run.world.raw(collection).bulk_write(some, session=run.session)
            else:
                await run.world.model(self.by, collection).bulk_write(some, session=run.theirs)


# Copies of documents with their stamps


@dataclass(frozen=True)
class Keep(Step):
    """A foreign client reads a document and keeps it."""

    key: Key

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset({self.key, _MEMORY})

    async def carry_out(self, run: Run) -> None:
        run.memory = await run.kept(self.key) or run.memory


@dataclass(frozen=True)
class Copy(Step):
    """A foreign client writes a whole document that it read, including its stamp.

    Attributes:
        source: the document that it reads first; None means the kept one.
        key: the key of the written document.
        how: the kind of write: `insert set replace merge merge-replace`.
        by: for the two merges, the sender of the pipeline.
    """

    source: Key | None
    key: Key
    how: str
    by: str = "foreign"

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset({self.key, self.source or _MEMORY})

    async def carry_out(self, run: Run) -> None:
        found = run.memory if self.source is None else await run.kept(self.source)
        merges = self.how.startswith("merge")
        if found is None or (merges and (self.source is None or run.session is not None)):
            return
        id_, before = run.id_of(self.key), run.row(self.key)
        raw, row = {name: value for name, value in found[0].items() if name != "_id"}, found[1]
        whole = self.how in ("replace", "merge-replace")
        same = before is not None and {**before, STAMP: None} == {**row, STAMP: None}
        if before is not None and (self.how == "insert" or (whole and same)):
            return
        after = row if before is None or whole else {**before, **row}
        operation = "insert" if before is None else "replace" if whole else "update"
        if before is not None and merges:
            operation = "update or replace"
        run.model.foreign(self.key, after, operation)  # type: ignore[arg-type]
        collection = run.world.raw(self.key[0])
        if merges:
            there = await collection.find_one({"_id": id_}, {"_id": 1})  # a replace would change the type of `_id`
            await self._merge(run, found[0]["_id"], id_ if there is None else there["_id"])
        elif self.how == "insert":
            await collection.insert_one({"_id": id_, **raw}, session=run.session)
        elif self.how == "replace":
            await collection.replace_one({"_id": id_}, raw, upsert=True, session=run.session)
        else:
            await collection.update_one({"_id": id_}, {"$set": raw}, upsert=True, session=run.session)

    async def _merge(self, run: Run, source_id: Any, id_: Any) -> None:
        assert self.source is not None
        matched = "replace" if self.how == "merge-replace" else "merge"
        pipeline: list[dict[str, Any]] = [
            {"$match": {"_id": source_id}},
            {"$set": {"_id": id_}},
            {"$merge": {"into": self.key[0], "whenMatched": matched, "whenNotMatched": "insert"}},
        ]
        if self.by == "foreign":
            await run.world.raw(self.source[0]).aggregate(pipeline)
        else:
            await run.world.model(self.by, self.source[0]).aggregate(pipeline)


# Writes of the ODM


@dataclass(frozen=True)
class Own(Step):
    """A call on an instance that the client loads first.

    Attributes:
        by: the client.
        kind: `create save update inc push delete get_or_create`.
        key: the key of the document.
        values: for kinds that set values.
        mute: `all`, the name of a signal, or nothing.
    """

    by: str
    kind: str
    key: Key
    values: Row = field(default_factory=dict)
    mute: str = ""

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset({self.key})

    async def carry_out(self, run: Run) -> None:
        document, id_, before = run.world.model(self.by, self.key[0]), run.id_of(self.key), run.row(self.key)
        query = document.objects.filter(id=id_).using_session(run.theirs)
        if self.kind == "get_or_create":
            with _muted(self.mute):
                await query.get_or_create(self.values)
            if before is None:
                self._foretell(run, CREATED, {**DEFAULTS, **self.values})
            return
        if (before is None) != (self.kind == "create"):
            return
        instance = document(id=id_, **self.values) if before is None else await query.get()
        # A numeric id may have another type here than in the stored document.
        instance.id = id_
        with _muted(self.mute):
            await getattr(self, f"_{self.kind}")(run, instance, before or {})

    def _foretell(self, run: Run, call: Any, after: Row | None, names: frozenset[str] = frozenset()) -> None:
        is_muted = self.mute in ("all", call[0])
        run.model.own(CLIENTS[self.by], call, self.key, after, names=names, muted=is_muted)

    async def _create(self, run: Run, instance: Any, _: Row) -> None:
        self._foretell(run, CREATED, {**DEFAULTS, **self.values})
        await instance.create(session=run.theirs)

    async def _save(self, run: Run, instance: Any, before: Row) -> None:
        self._foretell(run, SAVED, {**before, **self.values})
        for name, value in self.values.items():
            setattr(instance, name, value)
        await instance.save(session=run.theirs)

    async def _update(self, run: Run, instance: Any, before: Row) -> None:
        if self.values:
            self._foretell(run, UPDATED, {**before, **self.values}, frozenset(self.values))
        await instance.update(**self.values, session=run.theirs)

    async def _inc(self, run: Run, instance: Any, before: Row) -> None:
        self._foretell(run, UPDATED, {**before, "n": before.get("n", 0) + 1}, frozenset({"n"}))
        await instance.update(U.inc(n=1), session=run.theirs)

    async def _push(self, run: Run, instance: Any, before: Row) -> None:
        self._foretell(run, UPDATED, {**before, "tags": [*before.get("tags", []), "pushed"]}, frozenset({"tags"}))
        await instance.update(U.push(tags="pushed"), session=run.theirs)

    async def _delete(self, run: Run, instance: Any, _: Row) -> None:
        self._foretell(run, DELETED, None)
        await instance.delete(session=run.theirs)


@dataclass(frozen=True)
class OwnBulk(Step):
    """A call on many documents.

    Attributes:
        by: the client.
        kind: `create_many update update_count delete`.
        collection: the collection of the documents.
        values: for kinds that set values.
        mute: as for `Own`.
    """

    by: str
    kind: str
    collection: str
    numbers: tuple[int, ...]
    values: Row = field(default_factory=dict)
    mute: str = ""

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset((self.collection, number) for number in self.numbers)

    async def carry_out(self, run: Run) -> None:
        document = run.world.model(self.by, self.collection)
        keys = [(self.collection, number) for number in self.numbers]
        if self.kind == "create_many":
            keys = [key for key in keys if run.row(key) is None]
            models = [document(id=run.id_of(key), **self.values) for key in keys]
            self._foretell(run, CREATED, {key: {**DEFAULTS, **self.values} for key in keys})
            with _muted(self.mute):
                await document.create_many(models, session=run.theirs)
            return
        found = {key: row for key in keys if (row := run.row(key)) is not None}
        ids = [run.id_of((self.collection, number)) for number in self.numbers]
        query = document.objects.filter(id__in=ids).using_session(run.theirs)
        with _muted(self.mute):
            if self.kind == "delete":
                self._foretell(run, DELETED, dict.fromkeys(found))
                await query.delete()
            elif self.values:
                after: dict[Key, Row | None] = {key: {**row, **self.values} for key, row in found.items()}
                self._foretell(run, UPDATED, after, frozenset(self.values))
                await getattr(query, self.kind)(**self.values)

    def _foretell(
        self,
        run: Run,
        call: Any,
        after: dict[Key, Row | None] | dict[Key, Row],
        names: frozenset[str] = frozenset(),
    ) -> None:
        is_muted = self.mute in ("all", call[0])
        for key, row in after.items():
            run.model.own(CLIENTS[self.by], call, key, row, names=names, muted=is_muted)


@contextlib.contextmanager
def _muted(what: str) -> Iterator[None]:
    with muted(*([] if what == "all" else [what])) if what else contextlib.nullcontext():
        yield


# Steps that contain other steps


class _Abort(Exception):
    pass


@dataclass(frozen=True)
class Transaction(Step):
    """Steps in one transaction.

    Attributes:
        by: `foreign`, or a client of the ODM.
        steps: the steps of the transaction, all by this client.
        commits: whether it commits.
        theirs: whether the driver opened it, so the ODM does not see its end.
    """

    by: str
    steps: tuple[Step, ...]
    commits: bool = True
    theirs: bool = False

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset().union(*(step.keys for step in self.steps))

    async def carry_out(self, run: Run) -> None:
        memory = run.memory
        theirs = self.theirs and self.by != "foreign"
        with run.model.transaction(commits=self.commits, somebody_elses=theirs), contextlib.suppress(_Abort):
            async with self._opened(run):
                for step in self.steps:
                    await step.carry_out(run)
                if not self.commits:
                    raise _Abort
        if not self.commits:
            run.memory = memory

    @contextlib.asynccontextmanager
    async def _opened(self, run: Run) -> AsyncIterator[None]:
        if self.by != "foreign" and not self.theirs:
            async with run.world.model(self.by, "items").meta.registry.transaction() as session:
                run.session = session
                try:
                    yield
                finally:
                    run.session = None
            return
        client = run.world.client
        if self.by != "foreign":
            client = run.world.model(self.by, "items").meta.registry.client
        async with client.start_session() as session, await session.start_transaction():
            run.session, run.theirs = session, session if self.by != "foreign" else None
            try:
                yield
            finally:
                run.session = run.theirs = None


@dataclass(frozen=True)
class InTurn(Step):
    """Steps in sequence. Independent random draws would rarely give this sequence."""

    steps: tuple[Step, ...]

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset().union(*(step.keys for step in self.steps))

    async def carry_out(self, run: Run) -> None:
        for step in self.steps:
            await step.carry_out(run)


@dataclass(frozen=True)
class Together(Step):
    """Two concurrent steps, if they use different documents; otherwise they run in sequence."""

    first: Step
    second: Step

    async def carry_out(self, run: Run) -> None:
        if self.first.keys & self.second.keys:
            await self.first.carry_out(run)
            await self.second.carry_out(run)
        else:
            await asyncio.gather(self.first.carry_out(run), self.second.carry_out(run))


# Claims


@dataclass(frozen=True)
class Fated(Step):
    """A process writes, and does not finish its claims.

    Attributes:
        by: the client that the process stands for.
        fate: why the claims stay unfinished; see `FATES`.
        step: a step of this client; if the fate is `ends before` or `ends between`, a call on one instance.
    """

    by: str
    fate: Fate
    step: Step

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset()

    async def carry_out(self, run: Run) -> None:
        claims = run.world.claims[self.by]
        await claims.beat()
        run.model.fate = claims.ends = self.fate
        try:
            await self.step.carry_out(run)
        finally:
            run.model.fate = claims.ends = ""
        if self.fate == "dies":
            await run.world.kill(self.by)


@dataclass(frozen=True)
class Held(Step):
    """The last receiver of a call waits while other clients go on. Then it ends, or its process dies.

    Attributes:
        then: the steps that other clients, or the operator, make while the receiver waits.
    """

    by: str
    step: "Own"
    then: tuple[Step, ...]
    dies: bool

    @property
    def keys(self) -> frozenset[Key]:
        return frozenset()

    async def carry_out(self, run: Run) -> None:
        world, model, key = run.world, run.model, self.step.key
        claims, seen = world.claims[self.by], world.seen((key[0], run.id_of(key)))
        await claims.beat()
        gate = Gate(lambda: len(seen.in_process) == len(model.in_process[key]))
        world.gates[self.by] = gate
        model.fate = "dies" if self.dies else ""
        call, entered = (asyncio.create_task(one) for one in (self.step.carry_out(run), gate.entered.wait()))
        try:
            await asyncio.wait([call, entered], return_when=asyncio.FIRST_COMPLETED)
            model.fate = ""
            del world.gates[self.by]
            for step in self.then:
                await world.beat_all()
                await step.carry_out(run)
            if self.dies:
                await world.kill(self.by)
        finally:
            gate.opened.set()
            entered.cancel()
            await call


# The dispatcher


@dataclass(frozen=True)
class Stop(Step):
    """Stops the dispatcher; changes wait for its next start."""

    async def carry_out(self, run: Run) -> None:
        await run.world.stop_dispatcher()


@dataclass(frozen=True)
class Start(Step):
    """Starts the dispatcher, unless it runs."""

    async def carry_out(self, run: Run) -> None:
        await run.world.start_dispatcher()


# Strategies

_rows = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["", "a", "b"]),
        "n": st.integers(0, 9),
        "tags": st.lists(st.sampled_from(["x", "y"]), max_size=2),
    },
)
_some_rows = st.one_of(
    st.builds(lambda n: {"n": n}, st.integers(0, 9)),
    st.builds(lambda name: {"name": name}, st.sampled_from(["", "a", "b"])),
    _rows.filter(bool),
)
# Mostly one document, so it has many changes.
_keys = st.sampled_from([("items", 0), ("items", 0), ("items", 0), ("items", 1), ("items", 2), ("others", 0)])
_mutes = st.sampled_from(["", "", "", "", "", "", "", "all", *EVENTS])
_own_kinds = st.sampled_from(["create", "create", "save", "update", "inc", "push", "delete", "get_or_create"])
_hows = ["insert", "set", "replace", "merge", "merge-replace"]
_write_kinds = st.sampled_from(
    [
        *(
            "insert",
            "insert",
            "set",
            "inc",
            "push",
            "unset",
            "replace",
            "delete",
            "pipeline-set",
            "pipeline-replace",
        ),
        *("unstamp", "pipeline-unstamp", "restamp"),
    ]
)
_writes = st.builds(Write, _write_kinds, _keys, _some_rows, st.booleans())


def _steps_of(by: str) -> st.SearchStrategy[Step]:
    """Steps of one client."""
    raw: st.SearchStrategy[Step] = st.builds(
        Raw, st.just(by), st.lists(_writes, min_size=1, max_size=4).map(tuple)
    )
    if by == "foreign":
        return st.one_of(raw, raw, _copies)
    own = st.builds(Own, st.just(by), _own_kinds, _keys, _some_rows, _mutes)
    many = st.builds(
        OwnBulk,
        st.just(by),
        st.sampled_from(["create_many", "update", "update_count", "delete"]),
        st.just("items"),
        st.sampled_from([(0,), (0, 1), (0, 1, 2)]),
        _some_rows,
        _mutes,
    )
    return st.one_of(own, own, own, many, raw)


_copies: st.SearchStrategy[Step] = st.one_of(
    st.builds(Keep, _keys),
    st.builds(Copy, st.none(), _keys, st.sampled_from(_hows[:3])),
    st.builds(Copy, _keys, _keys, st.sampled_from(_hows), st.sampled_from(["foreign", "web"])),
)
_simple = st.one_of(_copies, *(_steps_of(by) for by in ("web", *_WRITERS)))


@st.composite
def _transactions(draw: st.DrawFn) -> Transaction:
    by = draw(st.sampled_from(("web", "web", *_WRITERS)))
    steps = draw(st.lists(_steps_of(by), min_size=1, max_size=4).map(tuple))
    return Transaction(
        by, steps, draw(st.sampled_from([True, True, False])), draw(st.sampled_from([False, False, True]))
    )


@st.composite
def _restored(draw: st.DrawFn) -> InTurn:
    """A client reads a document with its stamp, and writes it back after a change or a delete."""
    key, by = draw(_keys), draw(st.sampled_from(["web", "worker", "slow"]))
    between: tuple[Step, ...] = (
        Raw("foreign", (Write("delete", key),)),
        Own(by, "update", key, draw(_some_rows)),
    )
    return InTurn(
        (
            Own(by, "create", key, draw(_some_rows)),
            Own(by, draw(st.sampled_from(["update", "save"])), key, draw(_some_rows)),
            Keep(key),
            draw(st.sampled_from(between)),
            Copy(None, key, draw(st.sampled_from(_hows[:3]))),
        )
    )


@st.composite
def _fated(draw: st.DrawFn) -> Fated:
    by, fate = draw(st.sampled_from(_CLAIMING)), draw(st.sampled_from(FATES))
    own = st.builds(Own, st.just(by), _own_kinds, _keys, _some_rows, _mutes)
    if fate == "dies":
        own = draw(st.sampled_from([own, _steps_of(by), st.builds(Transaction, st.just(by), st.tuples(own, own))]))
    return Fated(by, fate, draw(own))


@st.composite
def _held(draw: st.DrawFn) -> Held:
    by, key = draw(st.sampled_from(_CLAIMING)), draw(_keys)
    kind = draw(st.sampled_from(["create", "save", "update", "delete"]))
    others = [_steps_of(one) for one in ("foreign", "foreign", *_CLAIMING) if one != by]
    then = st.lists(st.one_of(*others, st.sampled_from([Stop(), Start()])), max_size=4).map(tuple)
    return Held(by, Own(by, kind, key, draw(_some_rows)), draw(then), draw(st.booleans()))


@st.composite
def _steps(draw: st.DrawFn) -> Step:
    """A step of a random kind. `one_of` would flatten nested strategies, and would rarely draw some kinds."""
    kinds = ["simple"] * 6 + ["transaction"] * 2 + ["restored", "together", "dispatcher", "dispatcher"]
    match draw(st.sampled_from([*kinds, "fated", "fated", "held", "held"])):
        case "fated":
            return draw(_fated())
        case "held":
            return draw(_held())
        case "transaction":
            return draw(_transactions())
        case "restored":
            return draw(_restored())
        case "together":
            return Together(draw(_simple), draw(_simple))
        case "dispatcher":
            return draw(st.sampled_from([Stop(), Start()]))
    return draw(_simple)


def sequences(most: int = 12) -> st.SearchStrategy[list[Step]]:
    """Sequences of at most this number of steps."""
    return st.lists(_steps(), min_size=1, max_size=most)
