"""A dispatcher inside of a test, with methods that wait for deliveries."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import bson
from bson.timestamp import Timestamp
from pymongo import AsyncMongoClient
from pymongo.errors import PyMongoError
from pymongo.write_concern import WriteConcern

from dispatcher.core.clients import close
from dispatcher.core.events import Change, Namespace
from dispatcher.core.resume_tokens import token_time
from dispatcher.pace.limit import LimitsByName
from dispatcher.runtime.service import Service
from dispatcher.settings import Settings
from dispatcher.testing.recording import RecordedDelivery, Recorder, RecordingRoutes, failures_of, token_of
from mongoz import Document, Registry, Signal
from mongoz.exceptions import SignalError
from mongoz.model.state import loaded
from mongoz.signals.names import POST
from mongoz.synonyms import nearest

__all__ = ["DeliveryTimeout", "Dispatcher"]

_POLL: Final = 0.005

# Seconds that a test waits for a server that does not answer.
_PATIENCE: Final = 5.0
_LITTLE_PATIENCE: Final = 0.5  # for the clean-up, if the dispatcher was not ready at the end

# Maximum number of entries of a list in a report: the latest ones.
_LISTED: Final = 20

# The outcomes of deliveries that are not over.
_OPEN: Final = frozenset({"waiting", "running", "postponed"})

_MARKERS: Final = "mongoz_dispatcher_testing"


class DeliveryTimeout(AssertionError):
    """A delivery did not happen in time. The message lists the deliveries and changes until then."""


class Dispatcher:
    """The daemon's service in the event loop of a test: it delivers writes that are made inside of the block.

    It is the real service: it watches the change stream, and skips receivers that ran in the writing process.
    Unlike the daemon, it makes one attempt at each delivery, unless `settings` are given. If `settings` have
    no state database, it uses a new one: it delivers only the changes after the start of the block, and drops this
    database at the end.

    The option `rate` of receivers has no effect, so that no test waits for it. `concurrency` applies.

    `until_idle` writes into a collection `mongoz_dispatcher_testing` next to the documents. This collection is
    dropped at the end too.

    Args:
        registry: the registry of the application. It must be dispatched, unless `deliver_everything` is set. Its
            receivers must be connected already.
        settings: the settings of the dispatcher, with the defaults of the daemon: five attempts, for example. If
            they name a `state_database`, it is kept: a second dispatcher with the same settings continues where
            the first one ended.
        url: watch this deployment instead of the deployment of the registry.
        raise_failures: whether `until_idle`, `delivered` and the end of the block raise exceptions of receivers.

    Attributes:
        service: the daemon's service. It exists after the block is entered.

    Raises:
        DispatcherError: the dispatcher can't work. It is raised at the start, at the next call, or at the end of
            the block.

    Examples:
        >>> async with Dispatcher(registry) as dispatcher:
        ...     await database.users.insert_one({"name": "Ada"})
        ...     await dispatcher.until_idle()
    """

    service: Service

    def __init__(
        self,
        registry: Registry,
        settings: Settings | None = None,
        *,
        url: str | None = None,
        raise_failures: bool = True,
    ) -> None:
        self._registry = registry
        self._settings, self._own_state = _settings(settings, None if url == registry.url else url)
        self._raise_failures = raise_failures
        self._recorder = Recorder()
        self._reported: set[int] = set()  # id() of the records whose failures were raised
        self._error_reported = False
        self._stop = asyncio.Event()
        self._marked: dict[Any, str] = {}

    @property
    def deliveries(self) -> Sequence[RecordedDelivery]:
        """All deliveries since the start, or since `clear()`, in the order in which their changes were read."""
        return tuple(self._recorder.deliveries)

    @property
    def failures(self) -> Sequence[RecordedDelivery]:
        """The deliveries whose receiver raised in its last attempt."""
        return tuple(each for each in self._recorder.deliveries if each.outcome == "failed")

    def clear(self) -> None:
        """Forget the deliveries so far."""
        self._recorder.deliveries.clear()
        self._recorder.changes.clear()
        self._reported.clear()

    async def __aenter__(self) -> Self:
        self.service = Service(self._registry, self._settings)
        url = self._registry.url
        assert url is not None  # Service() requires it
        self._marker: Namespace = (self.service.routes.namespaces[0][0], _MARKERS)
        self.service.routes = RecordingRoutes(self.service.routes, self._recorder, self._marker, self._on_marker)
        # The option `rate` has no effect. Deliveries beyond `concurrency` wait in memory, so that `until_idle`
        # waits for them.
        self.service.limits = LimitsByName(self.service.routes.receivers, may_park=False, rates=False)
        options: dict[str, Any] = {"serverSelectionTimeoutMS": int(_PATIENCE * 1000)}
        self._client: AsyncMongoClient[Any] = AsyncMongoClient(url, **options)
        self._task = asyncio.create_task(self.service.run(self._stop), name="dispatcher")
        try:
            patience = self._settings.connect_timeout
            deadline = _now() + patience + _PATIENCE
            await self._until(lambda: self.service.ready, deadline, "The change stream is not open")
            await self._until(
                lambda: self.service.held and self.service.ready,
                _now() + patience,
                f"Another dispatcher of the group {self.service.routes.group} uses this state database",
            )
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = await self._end()
        if self._error_reported:
            ended = None
        if error is None:
            if ended is not None:
                raise ended
            self._raise_failures_of(self._recorder.deliveries, over=False)
        elif ended is not None:
            error.add_note(f"The dispatcher had ended before: {type(ended).__name__}: {ended}")

    async def until_idle(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109 - the error has a report
        """Wait until all earlier writes of all clients are delivered, and the writes of receivers too.

        Raises:
            ExceptionGroup: receivers raised, or documents do not fit their model. A note of each exception names
                the delivery. Each exception is raised once.
            DeliveryTimeout: deliveries are not finished.
            DispatcherError: the dispatcher has ended.
        """
        deadline = _now() + timeout
        while True:
            before = self._recorder.activity
            await self._reach_now(deadline, f"The dispatcher is not idle after {timeout:g} s")
            if self._recorder.activity == before:  # no receiver ran meanwhile, so no receiver wrote
                break
        self._raise_failures_of(self._recorder.deliveries)

    async def delivered(
        self,
        target: Document | tuple[str | type[Document], Any],
        signal: str | Signal | None = None,
        times: int = 1,
        timeout: float = 10.0,  # noqa: ASYNC109 - the error has a report
        *,
        receiver: str | Callable[..., Awaitable[Any]] | None = None,
    ) -> list[RecordedDelivery]:
        """Wait until writes of a document are delivered.

        The method counts all deliveries since the start, or since `clear()`.

        Args:
            target: an instance, or its collection and `_id`: `("users", id)`, `("shop.users", id)`, `(User, id)`.
            signal: count only this signal: `"post_save"` or `User.signals.post_save`.
            times: the minimum number of deliveries. A write has one delivery for each receiver.
            timeout: seconds to wait.
            receiver: count only this receiver: the function, or its name.

        Returns:
            All such deliveries so far, in the order of the writes. They can be more than `times`.

        Raises:
            DeliveryTimeout: there were too few deliveries. The message lists them.
            ExceptionGroup: receivers raised in their last attempt.
            SignalError: a dispatcher does not deliver this signal, or it has no such receiver or collection.
            DispatcherError: the dispatcher has ended.

        Examples:
            >>> (delivery,) = await dispatcher.delivered(user, "post_save")
            >>> assert delivery.kwargs["created"]
        """
        name = _name_of(signal)
        namespaces, id_ = self._locate(target)
        names = None if receiver is None else self._names_of(receiver)

        def wanted() -> list[RecordedDelivery]:
            return [
                each
                for each in self._recorder.of(namespaces, id_)
                if name in (None, each.signal) and (names is None or each.receiver in names)
            ]

        def enough() -> bool:
            if sum(each.outcome == "delivered" for each in wanted()) >= times:
                return True
            self._raise_failures_of([each for each in wanted() if self._is_over(each)])
            return False

        what = f"{name or 'Anything'} of {' or '.join(map('.'.join, namespaces))} {id_!r}"
        what += f" to {receiver if isinstance(receiver, str) else receiver.__qualname__}" if receiver else ""
        count = f" {times} times" if times > 1 else ""
        await self._until(enough, _now() + timeout, f"{what} was not delivered{count} within {timeout:g} s")
        return [each for each in wanted() if each.outcome == "delivered"]

    # -- waiting ---------------------------------------------------------------------------------------------

    async def _reach_now(self, deadline: float, complaint: str) -> None:
        """Wait until all changes that were committed before this call are finished."""
        id_ = bson.ObjectId()
        written_at = await self._write_marker(id_, deadline, complaint)

        def reached() -> bool:
            position = self.service.position
            if position is None:
                return False
            marker = self._marked.get(id_)
            if marker is not None:  # all changes are read, so no further event joins the batches
                self.service.close_batches()
            # Either the stream has the marker, or an idle stream has a position after the time of the marker.
            return position >= marker if marker is not None else token_time(position) > written_at

        await self._until(reached, deadline, complaint)
        self._marked.pop(id_, None)

    async def _write_marker(self, id_: bson.ObjectId, deadline: float, complaint: str) -> Timestamp:
        """Write a marker document after all commits so far. Returns the time of its commit."""
        database, name = self._marker
        markers = self._client[database].get_collection(name, write_concern=WriteConcern("majority"))
        writing = asyncio.create_task(self._insert(markers, id_), name="write-marker")
        try:
            await self._until(writing.done, deadline, complaint)
        finally:
            if not writing.done():
                writing.cancel()
                with suppress(asyncio.CancelledError):
                    await writing
        return writing.result()

    async def _insert(self, markers: Any, id_: bson.ObjectId) -> Timestamp:
        async with self._client.start_session() as session:
            await markers.insert_one({"_id": id_}, session=session)
            assert session.operation_time is not None
            return session.operation_time

    def _on_marker(self, change: Change) -> None:
        if change.operation == "insert":
            self._marked[change.id] = change.token

    async def _until(self, condition: Callable[[], object], deadline: float, complaint: str) -> None:
        while not condition():
            self._raise_if_ended()
            if _now() > deadline:
                raise DeliveryTimeout(f"{complaint}.\n{self._report()}")
            await asyncio.sleep(_POLL)

    def _raise_if_ended(self) -> None:
        if not self._task.done():
            return
        self._error_reported = True
        self._task.result()
        raise RuntimeError("The dispatcher has ended, because its `async with` block is left.")

    # -- failures and reports --------------------------------------------------------------------------------

    def _is_over(self, record: RecordedDelivery) -> bool:
        position = self.service.position
        return position is not None and position >= token_of(record)

    def _raise_failures_of(self, deliveries: Sequence[RecordedDelivery], *, over: bool = True) -> None:
        """Raise the failures that were not raised before.

        Args:
            over: whether the deliveries are finished. If so, a receiver that was not called counts as failed when
                the document does not fit its model.
        """
        if not self._raise_failures:
            return
        finished = [each for each in deliveries if over or each.outcome == "failed"]
        failed = [(one, error) for one, error in failures_of(finished) if id(one) not in self._reported]
        if not failed:
            return
        self._reported.update(id(one) for one, _ in failed)
        lines = [f"  {one}" if one.error else f"  {one}: {error}" for one, error in failed]
        count = f"{len(failed)} deliveries" if len(failed) > 1 else "A delivery"
        raise ExceptionGroup("\n".join([f"{count} failed:", *lines]), [error for _, error in failed])

    def _report(self) -> str:
        """The deliveries and changes so far, as text."""
        deliveries, changes = self._recorder.deliveries, self._recorder.changes
        lines = [self._lag()]
        lines += _listed("Not finished", [d for d in deliveries if d.outcome in _OPEN])
        lines += _listed("Failed", [d for d in deliveries if d.outcome in {"failed", "cancelled"}])
        lines += _listed("Delivered", [d for d in deliveries if d.outcome == "delivered"])
        unwanted = [change for change in changes if not change.receivers]
        lines += _listed("Read, but without a receiver (or the receiver ran in the writing process)", unwanted)
        if not changes:
            watched = ", ".join(".".join(each) for each in self.service.routes.namespaces if each != self._marker)
            lines.append(f"No change was read. The watched collections: {watched}.")
        return "\n".join(lines)

    def _lag(self) -> str:
        position = self.service.position
        if position is None:
            return "The dispatcher has not begun to read."
        age = max(0, int(time.time()) - token_time(position).time)
        open_ = sum(each.outcome in _OPEN for each in self._recorder.deliveries)
        text = f"Everything up to {age} s ago is finished; {open_} deliveries are open"
        return f"{text}." if self.service.ready else f"{text}; the change stream is broken."

    # -- targets ---------------------------------------------------------------------------------------------

    def _locate(self, target: Document | tuple[str | type[Document], Any]) -> tuple[list[Namespace], Any]:
        """The collections in which a target may be, and its `_id`."""
        if isinstance(target, Document):
            collection = loaded(target).collection or type(target).meta.require_collection()
            return [(collection.database.name, collection.name)], target.id
        place, id_ = target
        if not isinstance(place, str):
            collection = place.meta.require_collection()
            return [(collection.database.name, collection.name)], id_
        watched = [each for each in self.service.routes.namespaces if each != self._marker]
        found = [each for each in watched if place in (each[1], ".".join(each))]
        if not found:
            known = [name for each in watched for name in (each[1], ".".join(each))]
            raise SignalError(f"No receiver listens to a collection {place!r}.{nearest(place, known)}")
        return found, id_

    def _names_of(self, receiver: str | Callable[..., Awaitable[Any]]) -> set[str]:
        all_ = [
            r for listener in self.service.routes.listeners for each in listener.receivers.values() for r in each
        ]
        found = {one.name for one in all_ if receiver in (one.name, one.function)}
        if not found:
            label = receiver if isinstance(receiver, str) else getattr(receiver, "__qualname__", repr(receiver))
            raise SignalError(f"No receiver {label} runs here.{nearest(label, [one.name for one in all_])}")
        return found

    # -- the end ---------------------------------------------------------------------------------------------

    async def _end(self) -> BaseException | None:
        """Stop as at SIGTERM, and clean up. Returns the error of the dispatcher; None if there is none."""
        healthy = self.service.ready
        self._stop.set()
        # Deliveries in flight get the grace period. Deliveries that are cancelled after it do not count as failed.
        cut = asyncio.get_running_loop().call_later(self._settings.grace, self._cut)
        await asyncio.wait([self._task])
        cut.cancel()
        error = None if self._task.cancelled() else self._task.exception()
        try:
            if self.service.member_id:  # otherwise the dispatcher has written nothing
                await self._clean_up(_PATIENCE if healthy else _LITTLE_PATIENCE)
        finally:
            await close(self._client)
        return error

    async def _clean_up(self, patience: float) -> None:
        with suppress(PyMongoError, TimeoutError):  # the server may be unreachable
            async with asyncio.timeout(patience):
                database, name = self._marker
                await self._client[database].drop_collection(name)
                if self._own_state:
                    await self._client.drop_database(self._settings.state_database)

    def _cut(self) -> None:
        self._recorder.ending = True


def _settings(settings: Settings | None, url: str | None) -> tuple[Settings, bool]:
    """The settings to use, and whether the state database is dropped at the end."""
    name = f"dispatcher_test_{secrets.token_hex(6)}"
    if settings is None:
        # `url=None` also ignores the variable DISPATCHER_URL: tests must not use the deployment that it names.
        return Settings(url=url, attempts=1, grace=1.0, connect_timeout=_PATIENCE, state_database=name), True
    own = "state_database" not in settings.model_fields_set
    changes: dict[str, Any] = {"state_database": name} if own else {}
    if url is not None:
        changes["url"] = url
    return settings.model_copy(update=changes), own


def _name_of(signal: str | Signal | None) -> str | None:
    name = signal.name if isinstance(signal, Signal) else signal
    if name is not None and name not in POST:
        raise SignalError(f"No dispatcher delivers {name!r}.{nearest(name, POST)}")
    return name


def _listed(title: str, things: Sequence[object]) -> list[str]:
    if not things:
        return []
    left_out = [f"  ... and {len(things) - _LISTED} before"] if len(things) > _LISTED else []
    return [f"{title}:", *left_out, *(f"  {thing}" for thing in things[-_LISTED:])]


def _now() -> float:
    return asyncio.get_running_loop().time()
