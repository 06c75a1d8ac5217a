"""Checks whether the processes of the application claim the receivers that they run.

The application may have a database user of its own, and the rights of that user can't be read here. But the state
shows whether the processes of the application have claimed, and the documents show writes without a claim.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pymongo import DESCENDING
from pymongo.errors import OperationFailure

from dispatcher.core.events import Namespace
from dispatcher.core.output.logs import log
from dispatcher.core.state import READING, Group, State
from dispatcher.core.stats import duration
from dispatcher.delivery.routes import Routes
from dispatcher.operate.claims import books_of, server_time
from dispatcher.operate.findings import Finding
from mongoz import Registry
from mongoz.stamps import FIELD, Stamp

_TOPIC: Final = "claims"
_LOSS: Final = "if a process of the application dies, the receivers that it has not finished are lost"
_CAUSES: Final = (
    "The application's log names the cause (logger mongoz.claims). The application's database user may lack "
    "the rights that `dispatcher check APP --role` prints. The application may use a version of mongoz without "
    "claims. Or the write may be older than the first start of a dispatcher with claims."
)

# Maximum number of documents that are read from one collection, and maximum number of collections.
_SAMPLE: Final = 100
_MOST_COLLECTIONS: Final = 50

# Maximum milliseconds of a query.
_PATIENCE: Final = 2_000

# Maximum number of books that are counted. The newest books are counted first.
_MOST_BOOKS: Final = 1_000


def recorded_elsewhere(registry: Registry, state_database: str) -> tuple[str, str] | None:
    """The warning that the application records claims in a database that its dispatchers do not read.

    Returns:
        The text, and the remedy; None if the application records claims in the state database, or claims nothing.
    """
    claims = registry.claims
    if claims is None or claims.state == state_database or not registry.claimable_receivers():
        return None
    text = (
        f"The application records claims in the database {claims.state!r}, but the state database is "
        f"{state_database!r}: {_LOSS}"
    )
    return text, f"Set Registry(..., state={state_database!r}), or --state-database {claims.state}."


def warn_about_claims(registry: Registry, state_database: str) -> None:
    """Log a warning if dispatchers can't take claims over, because the application records them elsewhere."""
    found = recorded_elsewhere(registry, state_database)
    if found is not None:
        log.warning(found[0], action="claims.elsewhere", remedy=found[1])


class ClaimChecks(NamedTuple):
    """The checks of claims."""

    state: State
    registry: Registry
    routes: Routes

    async def all(self) -> AsyncIterator[Finding]:
        """Run all checks. There is nothing to check if the application runs no receiver in process."""
        if self.registry.dispatched is None or not self.registry.claimable_receivers():
            return
        if self.registry.claims is None:
            yield Finding("ok", _TOPIC, f"claims=False turns claims off: {_LOSS}")
            return
        elsewhere = recorded_elsewhere(self.registry, self.state.name)
        if elsewhere is not None:
            yield Finding("warning", _TOPIC, *elsewhere)
            return
        layout = await self.state.positions.find_one({"_id": self.routes.group}, {"claims": 1})
        if layout is None:
            yield Finding("ok", _TOPIC, "Processes of the application begin to claim after a dispatcher has run")
        elif not layout.get("claims"):
            text = f"No dispatcher of the group {self.routes.group!r} has announced that it takes claims over"
            yield Finding("warning", _TOPIC, f"{text}: {_LOSS}", "Run dispatchers of this version.")
        elif (earlier := await self.state.members.find_one(self._without_claims)) is not None:
            where = f"pid {earlier.get('pid')} on {earlier.get('host')}"
            text = f"While a dispatcher of a version without claims runs ({where}), no process begins a claim"
            yield Finding("warning", _TOPIC, f"{text}: {_LOSS}", "Replace it by a dispatcher of this version.")
        else:
            yield await self._processes_and_writes()

    @property
    def _without_claims(self) -> dict[str, Any]:
        """The filter for dispatchers of versions without claims."""
        return {"group": self.routes.group, "claims": {"$ne": True}}

    async def _processes_and_writes(self) -> Finding:
        living = await self._living()
        for namespace in self.routes.namespaces[:_MOST_COLLECTIONS]:
            stamp = None
            with suppress(OperationFailure):  # a missing right, or a view that is too slow
                stamp = await self._newest_stamp(namespace)
            if stamp is not None and not self._is_claimed(namespace, stamp):
                name, at = ".".join(namespace), f"{stamp.token.generation_time:%Y-%m-%d %H:%M:%S} UTC"
                text = (
                    f"In {name}, the newest write whose receivers run in the writing process ({at}) has no claim: "
                    f"{_LOSS}"
                )
                return Finding("warning", _TOPIC, f"{living}. {text}", _CAUSES)
        return Finding("ok", _TOPIC, living)

    async def _living(self) -> str:
        """A sentence about the processes that claim."""
        group = Group(self.state, self.routes.group)
        now = await server_time(group)
        books, _ = await books_of(group, now, _MOST_BOOKS)
        if not books:
            return "No process of the application has claimed yet"
        alive = sum(one.alive for one in books)
        if not alive:
            age = duration((now - books[0].beat_at).total_seconds())
            return f"No process of the application is alive; claims were last recorded {age} ago"
        return f"{alive} process{'es' * (alive > 1)} of the application can claim now"

    async def _newest_stamp(self, namespace: Namespace) -> Stamp | None:
        """The newest stamp in a sample of documents.

        A stamp counts if it is of this group, and lists a receiver that a dispatcher may run.
        """
        database, name = namespace
        collection = self.state.client[database].get_collection(name, codec_options=READING)
        sample = collection.find({}, {"_id": 0, FIELD: 1}).sort("_id", DESCENDING).limit(_SAMPLE)
        ids, group = self.routes.stamped_ids(namespace), self.routes.group
        newest: Stamp | None = None
        async for row in sample.max_time_ms(_PATIENCE):
            stamp = Stamp.unpack(row.get(FIELD))
            if stamp is None or stamp.group != group or stamp.receivers.isdisjoint(ids):
                continue
            if newest is None or stamp.token > newest.token:
                newest = stamp
        return newest

    def _is_claimed(self, namespace: Namespace, stamp: Stamp) -> bool:
        claimed = frozenset() if stamp.claim is None else stamp.claim.receivers
        return stamp.receivers & self.routes.stamped_ids(namespace) <= claimed
