"""The delivery contract: receivers, order and keywords for each write.

The model uses neither a server nor the code that it checks. Documents are dicts. Origin stamps are numbers: the
model knows only whether a write has a stamp, and whether it is a copy.
"""

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

__all__ = [
    "CLIENTS",
    "CREATED",
    "DEFAULTS",
    "DELETED",
    "EVENTS",
    "FATES",
    "GROUPS",
    "LAST",
    "RECEIVERS",
    "SAVED",
    "STAMP",
    "UPDATED",
    "WITH_IMAGES",
    "Change",
    "Client",
    "Event",
    "Fate",
    "Group",
    "Key",
    "Listening",
    "Model",
    "Row",
    "Told",
    "Visible",
    "visible",
]

Key = tuple[str, int]
"""(collection, number of the document in its sequence)"""
Row = dict[str, Any]
Visible = tuple[str, int, tuple[str, ...]]
Operation = Literal["insert", "update", "replace", "delete", "marker", "update or replace"]
Group = Literal["ours", "another"]
Fate = Literal["", "ends before", "ends between", "dies"]

STAMP: Final = "_mongoz"
DEFAULTS: Final[Row] = {"name": "", "n": 0, "tags": []}

EVENTS: Final = ("post_save", "post_update", "post_delete")
CREATED, SAVED, UPDATED, DELETED = (
    ("post_save", True),
    ("post_save", False),
    ("post_update", None),
    ("post_delete", None),
)
_NATURAL: Final[Mapping[str, tuple[str, bool | None]]] = {
    "insert": CREATED,
    "replace": SAVED,
    "update": UPDATED,
    "delete": DELETED,
}


class Listening(NamedTuple):
    """A receiver. Without `fields` it is connected to all `post_*` signals, otherwise only to `post_update`.

    Attributes:
        name: its name.
        mode: its `delivery=`.
        fields: its `fields=`.
        least: its `where=`: the minimal `n` of its documents.
        formerly: its name in an older release of the application.
        transactional: its `transactional=`.
    """

    name: str
    mode: Literal["any", "process", "dispatcher"]
    fields: frozenset[str] = frozenset()
    least: int | None = None
    formerly: str = ""
    transactional: bool = False

    def listens_to(self, signal: str) -> bool:
        """Whether it is connected to a signal."""
        return not self.fields or signal == "post_update"

    def wants_fields(self, changed: frozenset[str]) -> bool:
        """Whether it gets a change of these fields."""
        return not self.fields or bool(self.fields & changed)

    def wants(self, row: Row | None) -> bool:
        """Whether it gets a change of this document. A receiver gets all changes whose document is unknown."""
        return self.least is None or row is None or row.get("n", self.least - 1) >= self.least


LAST: Final = "last"
"""The receiver that gets every write and is connected last. All other receivers are called before it."""

RECEIVERS: Final[Mapping[str, tuple[Listening, ...]]] = {
    "items": (
        Listening("any", "any"),
        Listening("process", "process"),
        Listening("counted", "any", fields=frozenset({"n"})),
        Listening("large", "dispatcher", least=5),
        Listening("renamed", "any", formerly="earlier"),
        Listening("tagged", "dispatcher", fields=frozenset({"tags"})),
        Listening(LAST, "dispatcher"),
    ),
    "others": (
        Listening("any", "any"),
        Listening("once", "dispatcher", transactional=True),
        Listening(LAST, "dispatcher"),
    ),
}
"""The receivers by collection, in the order in which they are connected."""

GROUPS: Final[tuple[Group, ...]] = ("ours", "another")
"""The groups. Each group has a dispatcher, and all receivers."""

WITH_IMAGES: Final = frozenset({"items"})
"""The collections that keep pre and post images."""


class Client(NamedTuple):
    """An application with this ODM.

    Attributes:
        name: for messages.
        group: the group that its stamps name: `"ours"`, `"another"`, or None.
        knows: the names of the receivers that it imports; None means all.
        is_old: whether it uses the former names of receivers.
        delay: the seconds between its stamps and its writes, because it or the server stalls.
    """

    name: str
    group: Group | None
    knows: frozenset[str] | None = None
    is_old: bool = False
    delay: float = 0.0

    def has(self, listening: Listening) -> bool:
        """Whether it imports a receiver."""
        return self.knows is None or listening.name in self.knows


CLIENTS: Final[Mapping[str, Client]] = {
    client.name: client
    for client in (
        Client("web", "ours"),
        Client("worker", "ours", frozenset({"renamed", LAST}), is_old=True),
        Client("script", "ours", frozenset()),
        Client("slow", "ours", delay=20),
        Client("stalled", "ours", delay=100),
        Client("stranger", "another"),
        Client("neighbour", None),
    )
}


FATES: Final[tuple[Fate, ...]] = ("ends before", "ends between", "dies")
"""The fates of a writing process: its book ends before its receivers start; its book ends after the first claimed
receiver; or the process dies after the receivers have run, before this is recorded. If the claim is unfinished
then, a dispatcher takes the claimed receivers over."""


_TIMELY: Final = 11
_TIMELY_IN_TRANSACTION: Final = 71
_REMEMBERED: Final = 75


class Told(NamedTuple):
    """One call of a receiver.

    Attributes:
        receiver: its name; `client/name` in process.
        signal: the signal of the call.
        created: for `post_save`.
        update_fields: for `post_update`.
        instance: the instance; None where it depends on the time of the lookup.
        previous: the previous instance, in the same form.
        image: the image of the instance. Of an update without post image it is `"looked up"`, which stands for
            `"current"` and for `"key"`.
        is_known: whether receivers in the writing process had the same `delivery.id`.
        is_taken: whether a dispatcher makes the delivery in the place of the writing process.
    """

    receiver: str
    signal: str
    created: bool | None
    update_fields: frozenset[str] | None
    instance: Visible | None
    previous: Visible | None
    image: str
    is_known: bool = False
    is_taken: bool = False

    def as_superseded(self) -> "Told":
        """This takeover, superseded by a later write: then the instance depends on the time of the takeover."""
        return self._replace(instance=None, image="superseded")


class Event(NamedTuple):
    """The server's event of a change, as far as the model needs it.

    Attributes:
        operation: its type.
        names: the changed fields of an update. A field that a pipeline only moves has changed, too.
        in_transaction: whether it was written in a transaction; the ODM may choose to use one.
    """

    operation: str
    names: frozenset[str]
    in_transaction: bool = False


class Change(NamedTuple):
    """One committed write of one document, as the server reports it.

    Attributes:
        operation: the operation of the event. Only the server knows the operation of a pipeline update.
        before: the document before the change.
        after: the document after the change.
        group: the group of its stamp. For other groups, the change is foreign.
        call: the call, if a stamp names it: a signal and `created`.
        ran: the receivers named in the stamp.
        muted: whether the stamp says that the write is muted.
        is_known: whether receivers in the writing process had the token of its stamp as their `delivery.id`.
        delay: the age of the stamp in seconds.
        names: the changed fields of a pipeline update, as reported by the server.
        is_claimed: whether the process has claimed the receivers named in the stamp.
        is_taken: whether the process has not finished the claim, so that a dispatcher takes these receivers over.
        is_partly_claimed: whether the process ran further receivers, without a claim.
        is_late: whether its stamp is late, so that all its deliveries have the token of the stamp as their id.
    """

    operation: Operation
    before: Row | None
    after: Row | None
    group: Group | None = None
    call: tuple[str, bool | None] | None = None
    ran: frozenset[str] = frozenset()
    muted: bool = False
    is_known: bool = False
    delay: float = 0.0
    names: frozenset[str] = frozenset()
    is_claimed: bool = False
    is_taken: bool = False
    is_partly_claimed: bool = False
    is_late: bool = False

    def fits(self, event: Event) -> bool:
        """Whether the event of the server fits this change."""
        if self.operation == "update or replace":
            return event.operation == "replace" or (event.operation == "update" and self.changed <= event.names)
        return event.operation == ("update" if self.operation == "marker" else self.operation)

    def as_reported(self, event: Event) -> "Change":
        """The change with the facts of the server's event."""
        if self.operation == "update or replace":
            return self._replace(operation=event.operation, names=event.names)  # type: ignore[arg-type]
        if self.delay > _REMEMBERED:
            return Change("update" if self.operation == "marker" else self.operation, self.before, self.after)
        if self.delay > (_TIMELY_IN_TRANSACTION if event.in_transaction else _TIMELY):
            if self.is_claimed:
                return self._replace(is_late=self.is_partly_claimed)
            return self._replace(ran=frozenset(), muted=False, is_late=True)
        return self

    def as_seen_by(self, group: Group) -> "Change":
        """The change as one group of dispatchers sees it."""
        if self.group == group:
            return self
        operation: Operation = "update" if self.operation == "marker" else self.operation
        return Change(operation, self.before, self.after, names=self.names)

    def is_none(self, collection: str) -> bool:
        """Whether only the stamp changed, as far as the server reports it."""
        if self.operation == "update":
            return self.call is None and not self.changed
        if self.operation == "replace" and collection in WITH_IMAGES:
            return _without_stamp(self.before) == _without_stamp(self.after)
        return False

    @property
    def changed(self) -> frozenset[str]:
        """The names of the changed fields."""
        if self.names:
            return self.names
        before, after = self.before or {}, self.after or {}
        return frozenset(name for name in DEFAULTS if before.get(name) != after.get(name))


def _without_stamp(row: Row | None) -> Row:
    return {name: value for name, value in (row or {}).items() if name != STAMP}


def visible(row: Row | None) -> Visible | None:
    """The values of the instance that is loaded from a document; None without a document."""
    if row is None:
        return None
    full = {**DEFAULTS, **row}
    return full["name"], full["n"], tuple(full["tags"])


@dataclass
class Model:
    """The documents of one sequence, their changes, and the calls of receivers in process."""

    documents: dict[Key, Row] = field(default_factory=dict)
    changes: dict[Key, list[Change]] = field(default_factory=lambda: defaultdict(list))
    in_process: dict[Key, list[Told]] = field(default_factory=lambda: defaultdict(list))
    writes: int = 0
    somebody_elses: bool = False
    fate: Fate = ""
    _stamps: Iterator[int] = field(default_factory=itertools.count)

    # Writes of clients without the ODM, and raw calls of the ODM

    def foreign(self, key: Key, after: Row | None, operation: Operation) -> None:
        """A write of a client that makes no stamps. It may copy stamps.

        Args:
            key: the key of the document.
            after: the document afterwards; None if it was deleted.
            operation: the operation of the server's event. An update without a change has no event.
        """
        before = self.documents.get(key)
        if before == after:
            return
        self._write(key, after, Change(operation, before, after))

    def stamp(self) -> int:
        """A new stamp."""
        return next(self._stamps)

    # Writes of the ODM

    def own(
        self,
        client: Client,
        call: tuple[str, bool | None],
        key: Key,
        after: Row | None,
        *,
        names: frozenset[str] = frozenset(),
        muted: bool = False,
    ) -> None:
        """A write of the ODM.

        Args:
            client: the writing client.
            call: the signal of the call, and `created`.
            key: the key of the document.
            after: the document afterwards; None if it was deleted.
            names: the fields of an update.
            muted: whether the write is muted.
        """
        before = self.documents.get(key)
        ran = () if muted else self._run_by(client, call[0], key[0], names)
        for_dispatchers = frozenset(one.name for one in ran if one.mode == "any")
        if client.group is None:
            stamped = False
        elif call == DELETED:
            stamped = muted or bool(for_dispatchers)
        else:
            stamped = muted or bool(ran) or call == SAVED
        if stamped and after is not None:
            after = {**after, STAMP: next(self._stamps)}
        told = visible(after if call != DELETED else before)
        image = "pre" if call == DELETED else "post"
        was = None if call in (CREATED, DELETED) else visible(before)
        fields = names if call == UPDATED else None
        is_claimed = client.group is not None and bool(for_dispatchers)
        fate = self.fate if is_claimed else ""
        started = _started(ran, fate)
        is_taken = fate == "dies" or len(started) < len(ran)
        for one in started:
            who = f"{client.name}/{one.formerly if client.is_old and one.formerly else one.name}"
            self.in_process[key].append(Told(who, call[0], call[1], fields, told, was, image))
        operation: Operation = "insert" if before is None else "delete" if after is None else "update"
        group = client.group if stamped else None
        if stamped and after is None:
            marked = {**(before or {}), STAMP: next(self._stamps)}
            self._write(key, marked, Change("marker" if group else "update", before, marked, group))
            before = marked
        if before == after:
            return
        change = Change(operation, before, after, group)
        if stamped:
            change = change._replace(call=call, ran=for_dispatchers, muted=muted, is_known=bool(started))
            change = change._replace(delay=client.delay, is_claimed=is_claimed, is_taken=is_taken)
            change = change._replace(is_partly_claimed=len(ran) > len(for_dispatchers))
        self._write(key, after, change)

    def _run_by(self, client: Client, signal: str, collection: str, names: frozenset[str]) -> list[Listening]:
        """The receivers that run in the writing process."""
        ran = [
            one
            for one in RECEIVERS[collection]
            if client.has(one) and one.mode != "dispatcher" and one.listens_to(signal) and one.wants_fields(names)
        ]
        if self.somebody_elses and client.group is not None:
            ran = [one for one in ran if one.mode == "process"]
        return ran

    def _write(self, key: Key, after: Row | None, change: Change) -> None:
        self.writes += 1
        self.changes[key].append(change)
        if after is None:
            del self.documents[key]
        else:
            self.documents[key] = after

    @contextmanager
    def transaction(self, *, commits: bool, somebody_elses: bool = False) -> Iterator[None]:
        """The writes of the block are committed or aborted together.

        Args:
            commits: whether it commits.
            somebody_elses: whether the driver opened it, so the ODM does not see its end.
        """
        saved = copy.copy(self.documents), copy.deepcopy(self.changes), copy.deepcopy(self.in_process), self.writes
        self.somebody_elses = somebody_elses
        try:
            yield
        finally:
            self.somebody_elses = False
        if not commits:
            told = self.in_process  # the ODM has made these calls, if it does not see the end of the transaction
            self.documents, self.changes, self.in_process, self.writes = saved
            if somebody_elses:
                self.in_process = told

    # Expected deliveries

    def by_dispatcher(self, key: Key, events: Sequence[Event], group: Group) -> list[list[Told]]:
        """The deliveries of a document by the dispatcher of a group, in order, for each change.

        Args:
            key: the key of the document.
            events: one fitting event per change.
            group: the group of the dispatcher.
        """
        pairs = zip(self.changes[key], events, strict=True)
        seen = [change.as_reported(event).as_seen_by(group) for change, event in pairs]
        return [list(_told_of(key[0], change)) for change in seen]


def _started(ran: Sequence[Listening], fate: Fate) -> list[Listening]:
    """The receivers that start in the writing process."""
    claimed = [one for one in ran if one.mode == "any"]
    left = {"ends before": claimed, "ends between": claimed[1:]}.get(fate, [])
    return [one for one in ran if one not in left]


def _told_of(collection: str, change: Change) -> Iterator[Told]:
    """The deliveries of a change by the dispatcher, in the order of the connections."""
    if change.operation == "marker" or change.muted or change.is_none(collection):
        return
    signal, created = change.call or _NATURAL[change.operation]
    images = collection in WITH_IMAGES
    row, image = change.after, "post"
    previous = change.before if images and change.operation in ("update", "replace") else None
    if change.operation == "delete":
        row, image = (change.before, "pre") if images else (None, "key")
    elif change.operation == "update" and not images:
        row, image = None, "looked up"
    for one in RECEIVERS[collection]:
        is_taken = one.name in change.ran
        if is_taken and not change.is_taken:
            continue
        if is_taken or (
            one.mode != "process"
            and one.listens_to(signal)
            and one.wants_fields(change.changed)
            and one.wants(row)
        ):
            fields = change.changed if signal == "post_update" else None
            shown = visible(row), visible(previous)
            is_known = change.is_known and (is_taken or change.is_late)
            yield Told(one.name, signal, created, fields, *shown, image, is_known, is_taken)
