"""The progress of a bulk write: the written documents, and the errors of their receivers."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final, NamedTuple

from pymongo.read_preferences import ReadPreference

from mongoz.claims.book import OpenClaim
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.error_groups import raise_together
from mongoz.keys import canonical
from mongoz.model.base import Model
from mongoz.persistence.bulk.selection import split_into_chunks
from mongoz.persistence.outcome.lookup import durable_collection
from mongoz.persistence.outcome.reported import TIMEOUT_MS
from mongoz.persistence.target import WriteTarget
from mongoz.signals.post_signals import Firing

__all__ = [
    "BulkProgress",
    "Row",
    "WrittenDocument",
    "find_existing",
    "fire_for_each",
    "fire_when_known",
    "id_key",
]

Row = dict[str, Any]

_IDS_PER_COMMAND: Final = 10_000
_KEPT_ERRORS: Final = 100  # each keeps its traceback and frames alive


class WrittenDocument(NamedTuple):
    """A written document of a batch, and the arguments of its receivers.

    Attributes:
        instance: the document, as the receivers get it.
        token: the token of the write.
        keywords: the keywords of the receivers, without `sender`, `instance` and `delivery`.
        firing: the receivers of this document; None means the receivers of the whole batch.
        claim: the claim of the write, or None.
    """

    instance: Any
    token: str
    keywords: dict[str, Any]
    firing: Firing | None = None
    claim: OpenClaim | None = None


class BulkProgress:
    """Counts written documents, for notes on errors, and keeps the errors of receivers.

    A receiver that raises does not stop the bulk write.

    Attributes:
        done: the number of written documents.
        raised: the first 100 errors of receivers.
    """

    def __init__(self, document: type[Model], participle: str, target: WriteTarget) -> None:
        self.document = document
        self.participle = participle
        self.target = target
        self.done = 0
        self.raised: list[Exception] = []
        self._failed = 0

    def add_error(self, error: Exception) -> None:
        """Keep the error of a document's receivers."""
        self._failed += 1
        if len(self.raised) < _KEPT_ERRORS:
            self.raised.append(error)

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Add the number of written documents to an error of the block. Raise errors of receivers after the block.

        Raises:
            Exception: the error of the only failing receiver.
            ExceptionGroup: several receivers failed. In both cases the documents stay written.
        """
        try:
            yield
        except Exception as error:
            if not self.target.in_transaction:  # in a transaction nothing is committed yet
                error.add_note(
                    f"Before this error {self.done} documents were {self.participle}; they are not rolled back."
                )
            for raised in self.raised:
                error.add_note(f"A receiver raised {raised!r}.")
            raise
        first = "" if self._failed == len(self.raised) else f"; this group has the first {len(self.raised)} errors"
        raise_together(
            self.raised, f"receivers of {self._failed} {self.document.__name__} documents raised{first}"
        )


async def fire_for_each(
    document: type[Model],
    firing: Firing,
    target: WriteTarget,
    written: Iterable[WrittenDocument],
    progress: BulkProgress,
) -> None:
    """Run the receivers of each written document; `progress` keeps their errors."""
    for each in written:
        its_firing = each.firing or firing
        if not its_firing.receivers:
            continue
        try:
            keywords = {"instance": each.instance, **each.keywords}
            await target.fire(its_firing, document, each.token, keywords, each.claim)
        except Exception as error:
            progress.add_error(error)


def fire_when_known(
    document: type[Model],
    firing: Firing,
    target: WriteTarget,
    find_written: Callable[[], Awaitable[list[WrittenDocument]]],
    held: AsyncExitStack,
) -> None:
    """Run the receivers of a batch in the background, as soon as it is known which documents were written.

    Claimed receivers do not run here: the caller releases the claims, so dispatchers run these receivers.

    Args:
        document: the class.
        firing: the receivers.
        target: the target.
        find_written: finds the written documents; asks the server until it answers.
        held: the resources that `find_written` needs.
    """

    async def fire_later() -> None:
        async with held:
            written = await find_written()
        progress = BulkProgress(document, "written", target)
        with progress.reported():
            await fire_for_each(document, firing, target, written, progress)

    target.deployment.run_in_background(fire_later())


async def find_existing(
    target: WriteTarget, ids: list[Any], fields: Iterable[str] = (), session: Any = None, *, durable: bool = False
) -> dict[bytes, Row]:
    """Read the existing documents with these ids from the primary; returns some of their fields, by `id_key`.

    Args:
        target: the target.
        ids: the ids.
        fields: the stored names of the fields to read besides `_id`.
        session: the session of the read; by default the caller's.
        durable: the read returns no data that a rollback could undo. Such a read uses no session.
    """
    projection = {"_id": 1, **dict.fromkeys(fields, 1)}
    rows: list[Row] = []
    for chunk in split_into_chunks(ids, _IDS_PER_COMMAND):
        if durable:
            cursor = durable_collection(target).find({"_id": {"$in": chunk}}, projection, max_time_ms=TIMEOUT_MS)
        else:
            primary = target.raw_collection.with_options(read_preference=ReadPreference.PRIMARY)
            cursor = primary.find({"_id": {"$in": chunk}}, projection, session=session or target.session)
        rows += map(target.decode, await cursor.to_list(None))
    return {id_key(row.pop("_id")): row for row in rows}


def id_key(id_: Any) -> bytes:
    """The id as a key of a dict.

    An id itself can't be the key, because it may be a dict, and because 1, 1.0 and True are equal in Python.
    """
    return canonical(id_, CODEC_OPTIONS)
