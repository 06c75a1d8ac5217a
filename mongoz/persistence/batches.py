"""What bulk writes have in common: batches of which some documents stand, and telling their receivers."""

import copy
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pymongo.errors import PyMongoError
from pymongo.read_preferences import ReadPreference

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.connection.patience import find_out
from mongoz.exceptions import raise_together
from mongoz.keys import canonical
from mongoz.persistence.evidence import PATIENCE_MS
from mongoz.persistence.outcomes import surely_read
from mongoz.persistence.selection import chunks
from mongoz.persistence.sending import note
from mongoz.persistence.targets import Target
from mongoz.signals.firing import Firing

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["Progress", "Row", "StillOpen", "Written", "fire", "key_of", "settle_and_fire", "there_of"]

Row = dict[str, Any]

_IDS: Final = 10_000  # that fit into one command


class Written(NamedTuple):
    """One document of a batch that stands, and what its receivers are told."""

    instance: Any
    token: str
    keywords: dict[str, Any]
    firing: Firing | None = None


class StillOpen(Exception):
    """Nobody can tell now what became of a batch.

    Args:
        error: of the write.
        look: finds out which of its documents stand, once the server answers.
        held: what that needs.
    """

    def __init__(
        self, error: PyMongoError, look: Callable[[], Awaitable[dict[bytes, Row]]], held: AsyncExitStack
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.look = look
        self.held = held


class Progress:
    """Counts what stands, so that an error can say it."""

    def __init__(self, what: str, target: Target) -> None:
        self.what = what
        self.target = target
        self.done = 0

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Add to an error how many documents were written before it."""
        try:
            yield
        except Exception as error:
            if not self.target.in_transaction:  # else nothing stands
                error.add_note(f"Before this error {self.done} documents were {self.what}; they stay so.")
            raise


async def settle_and_fire(
    document: type["Document"],
    firing: Firing,
    target: Target,
    instances: list[Any],
    sending: Awaitable[tuple[PyMongoError | None, dict[bytes, Row]]],
    conclude: Callable[[list[Any], dict[bytes, Row]], list[Written]],
) -> list[Any]:
    """Send a batch, have its instances know, and tell the receivers; returns the instances that stand.

    Where nobody can tell now what stands, the receivers are told when somebody can; of copies, since the caller
    may try again with the instances.
    """
    try:
        failure, there = await sending
    except StillOpen as still:
        note(still.error)
        target.registry._later(
            _tell_when_known(document, firing, target, copy.deepcopy(instances), still, conclude)
        )
        raise still.error from None
    written = conclude(instances, there)
    await fire(document, firing, target, written, failure)
    return [each.instance for each in written]


async def _tell_when_known(
    document: type["Document"],
    firing: Firing,
    target: Target,
    instances: list[Any],
    still: StillOpen,
    conclude: Callable[[list[Any], dict[bytes, Row]], list[Written]],
) -> None:
    async with still.held:
        there = await find_out(still.look)
    await fire(document, firing, target, conclude(instances, there))


async def fire(
    document: type["Document"],
    firing: Firing,
    target: Target,
    written: Iterable[Written],
    failure: PyMongoError | None = None,
) -> None:
    """Tell the receivers of each document that stands, all of them; then raise what went wrong."""
    errors: list[Exception] = []
    for each in written if firing.receivers else ():
        try:
            told = each.firing or firing
            await target.fire(told, document, each.token, {"instance": each.instance, **each.keywords})
        except Exception as error:
            errors.append(error)
    if failure is not None:
        for raised in errors:
            failure.add_note(f"And a receiver raised {raised!r}.")
        raise failure
    raise_together(errors, f"receivers of {len(errors)} {document.__name__} documents raised")


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
            primary = target.driver.with_options(read_preference=ReadPreference.PRIMARY)
            cursor = primary.find({"_id": {"$in": some}}, projection, session=session or target.session)
        rows += await cursor.to_list(None)
    return {key_of(row.pop("_id")): row for row in rows}


def key_of(id_: Any) -> bytes:
    """An id as a key of a dict; ids may be documents, and numbers of several types."""
    return canonical(id_, CODEC_OPTIONS)
