"""What bulk writes have in common: batches of which some documents stand, and telling their receivers."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pymongo.read_preferences import ReadPreference

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.error_groups import raise_together
from mongoz.keys import canonical
from mongoz.persistence.bulk.selection import chunks
from mongoz.persistence.outcome.lookup import surely_read
from mongoz.persistence.outcome.reported import PATIENCE_MS
from mongoz.persistence.target import Target
from mongoz.signals.post_signals import Firing

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Progress", "Row", "Written", "fire", "fire_later", "key_of", "there_of"]

Row = dict[str, Any]

_IDS: Final = 10_000  # that fit into one command
_KEPT: Final = 100  # exceptions, each with what its traceback holds


class Written(NamedTuple):
    """One document of a batch that stands, and what its receivers are told."""

    instance: Any
    token: str
    keywords: dict[str, Any]
    firing: Firing | None = None


class Progress:
    """Counts what stands, so that an error can say it, and keeps what receivers raised.

    A receiver that raises does not keep the call from the documents that are still to come.

    Attributes:
        done: how many documents were written.
        raised: what their receivers raised, the first of it.
    """

    def __init__(self, document: type["Document"], what: str, target: Target) -> None:
        self.document = document
        self.what = what
        self.target = target
        self.done = 0
        self.raised: list[Exception] = []
        self._failed = 0

    def failed(self, error: Exception) -> None:
        """Keep what the receivers of one document raised."""
        self._failed += 1
        if len(self.raised) < _KEPT:
            self.raised.append(error)

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Add to an error how many documents were written before it; or raise what receivers raised.

        Raises:
            Exception: the only one that was raised, as it is.
            ExceptionGroup: several were raised. The writes stand in either case.
        """
        try:
            yield
        except Exception as error:
            if not self.target.in_transaction:  # else nothing stands
                error.add_note(f"Before this error {self.done} documents were {self.what}; they stay so.")
            for raised in self.raised:
                error.add_note(f"And a receiver raised {raised!r}.")
            raise
        first = "" if self._failed == len(self.raised) else f"; the first {len(self.raised)} of what they raised"
        raise_together(
            self.raised, f"receivers of {self._failed} {self.document.__name__} documents raised{first}"
        )


async def fire(
    document: type["Document"], firing: Firing, target: Target, written: Iterable[Written], progress: Progress
) -> None:
    """Tell the receivers of each document that stands, all of them; `progress` keeps what they raise."""
    for each in written:
        told = each.firing or firing
        if not told.receivers:
            continue
        try:
            await target.fire(told, document, each.token, {"instance": each.instance, **each.keywords})
        except Exception as error:
            progress.failed(error)


def fire_later(
    document: type["Document"],
    firing: Firing,
    target: Target,
    look: Callable[[], Awaitable[list[Written]]],
    held: AsyncExitStack,
) -> None:
    """Tell the receivers of a batch as soon as it is known which of its documents stand.

    Args:
        document: the class.
        firing: who is told.
        target: where the documents are.
        look: finds out which stand, and asks the server until it answers.
        held: what that needs.
    """

    async def later() -> None:
        async with held:
            written = await look()
        progress = Progress(document, "written", target)
        with progress.reported():
            await fire(document, firing, target, written, progress)

    target.registry._later(later())


async def there_of(
    target: Target, ids: list[Any], fields: Iterable[str] = (), session: Any = None, *, surely: bool = False
) -> dict[bytes, Row]:
    """Those of these documents that exist, with some of their fields; from the primary, which has them first.

    Args:
        target: where they are.
        ids: which.
        fields: stored names.
        session: for the read; by default the caller's.
        surely: read nothing that could be rolled back; without a session.
    """
    projection = {"_id": 1, **dict.fromkeys(fields, 1)}
    rows: list[Row] = []
    for some in chunks(ids, _IDS):
        if surely:
            cursor = surely_read(target).find({"_id": {"$in": some}}, projection, max_time_ms=PATIENCE_MS)
        else:
            primary = target.lenient.with_options(read_preference=ReadPreference.PRIMARY)
            cursor = primary.find({"_id": {"$in": some}}, projection, session=session or target.session)
        rows += map(target.read, await cursor.to_list(None))
    return {key_of(row.pop("_id")): row for row in rows}


def key_of(id_: Any) -> bytes:
    """An id as a key of a dict; ids may be documents, and numbers of several types."""
    return canonical(id_, CODEC_OPTIONS)
