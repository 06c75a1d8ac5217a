"""`where`: whether a document is one that a receiver wants. The server decides, as it would for a query.

It is asked about the very image that the receiver gets, which may be in no collection any more. Documents are sent
along in the command (`$documents`), many at a time, and each goes through the matches of all receivers by itself
(`$lookup` with a pipeline), so that a match sees the document and nothing else, not even the origin stamp.

Where the image is unknown (`delivery.image` is `"key"`), where the server fails on a document that it should look
at (an `$expr` that does not suit it), and where document and match are too large for a command, the receiver gets
the change: in doubt, deliver.

It takes the right to run commands on the state's database, which readWrite there includes.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import bson
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.errors import ConfigurationError, ConnectionFailure, PyMongoError

from dispatcher.core.bson_codec import lenient
from dispatcher.core.driver_errors import fatal, in_short
from dispatcher.core.events import Calls, Change, Namespace
from dispatcher.core.output.logs import get_logger
from dispatcher.core.retry import retry
from dispatcher.core.state import State
from dispatcher.delivery.instances import originals_of
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import AccessDenied, ApplicationError
from mongoz.signals.receivers import Receiver
from mongoz.stamps import FIELD

__all__ = ["Conditions", "Refused", "wanted"]

log = get_logger()

Refused = Mapping[str, frozenset[bytes]]
"""By the token of a change, the ids of the receivers that do not want it."""

_NOBODY: Final[Refused] = {}

# Which signals a change may become: the stamp of a save() makes a post_save of an update.
_SIGNALS: Final = {
    "insert": ("post_save",),
    "replace": ("post_save",),
    "update": ("post_save", "post_update"),
    "delete": ("post_delete",),
}

# Keeps of several fields with one name the last, and everything else as it is.
_ONCE: Final = lenient(CodecOptions[dict[str, Any]]())

# Bytes of documents in one command, and how many: the server takes 16 MB, matches included.
_BYTES: Final = 8_000_000
_MOST: Final = 250


# Errors about the way to the server, not about a match.
_PASSING: Final = (ConnectionFailure, ConfigurationError)


class _Question(NamedTuple):
    """One document, and the matches it has to go through."""

    token: str
    document: RawBSONDocument
    wheres: tuple[int, ...]


class Conditions:
    """Knows the `where` of all receivers, and asks the server.

    Args:
        state: the database in which we may run commands.
        routes: who listens to what.
        codec_options: the registry's: how the values of a match are stored.
        address: of the server, for messages.
    """

    def __init__(
        self,
        state: State,
        routes: Routes,
        codec_options: CodecOptions[Any],
        address: str,
    ) -> None:
        self._database = state.database
        self._routes = routes
        self._codec_options = codec_options
        self._address = address
        self._wheres: list[RawBSONDocument] = []
        self._receivers: list[set[bytes]] = []
        self._asked: dict[tuple[Namespace, str], tuple[int, ...]] = {}

    async def prepare(self) -> bool:
        """Have the server look at every `where`; whether there is any.

        Raises:
            ApplicationError: it does not accept one; names receiver, document and the server's reason.
            PyMongoError: as the driver has it.
        """
        numbers: dict[Any, int] = {}
        for document, receiver in self._conditional():
            raw = await self._checked(document, receiver)
            number = numbers.setdefault(raw.raw, len(self._wheres))
            if number == len(self._wheres):
                self._wheres.append(raw)
                self._receivers.append(set())
            self._receivers[number].add(receiver.id)
        return bool(self._wheres)

    def _conditional(self) -> Iterator[tuple[Any, Receiver]]:
        for listener in self._routes.listeners:
            for receivers in listener.receivers.values():
                for receiver in receivers:
                    if receiver.options.where is not None:
                        yield listener.document, receiver

    async def _checked(self, document: Any, receiver: Receiver) -> RawBSONDocument:
        where = dict(receiver.options.where or {})
        try:
            raw = RawBSONDocument(bson.encode(where, codec_options=self._codec_options))
            # Of no documents at all: what fails on some document only may suit those of the collection.
            await self._database.command(_command([], [raw]))
        except _PASSING:
            raise
        except Exception as error:  # the driver has many for what can't be encoded
            if isinstance(error, PyMongoError) and isinstance(fatal(error, self._address), AccessDenied):
                raise
            details = getattr(error, "details", None) or {}
            said = str(details.get("errmsg", error)).rstrip(".")
            raise ApplicationError(
                f"where={where!r} of receiver {receiver.name!r} of {document.__name__} is no match that "
                f"{self._address} accepts: {said}.",
                remedy="It must be what find() takes, without $where, $text and $near.",
            ) from error
        return raw

    async def refused(self, changes: Sequence[Change]) -> Refused:
        """Who does not want which of these changes.

        Raises:
            DispatcherError: what no repetition can mend.
        """
        groups: dict[tuple[int, ...], list[_Question]] = defaultdict(list)
        for change in changes:
            wheres = self._asked_for(change.namespace, change.operation)
            if wheres and (raw := _image(change)) is not None:
                groups[wheres].append(_Question(change.token, RawBSONDocument(raw), wheres))
        if not groups:
            return _NOBODY
        refused = {}
        for wheres, questions in groups.items():
            for part in _slices(questions):
                for question, matched in zip(part, await self._answers(part), strict=True):
                    ids = set[bytes]().union(*(self._receivers[n] for n in wheres if n not in matched))
                    if ids:
                        refused[question.token] = frozenset(ids)
        return refused

    def _asked_for(self, namespace: Namespace, operation: str) -> tuple[int, ...]:
        """The matches that a document of a collection has to go through."""
        found = self._asked.get((namespace, operation))
        if found is None:
            ids = {
                receiver.id
                for listener in self._routes.listening_to(namespace)
                for signal in _SIGNALS.get(operation, ())
                for receiver in listener.receivers[signal]
                if receiver.options.where is not None
            }
            found = tuple(n for n, receivers in enumerate(self._receivers) if receivers & ids)
            self._asked[namespace, operation] = found
        return found

    async def _answers(self, questions: list[_Question]) -> list[set[int]]:
        """Which of its matches each document satisfies."""
        wheres = questions[0].wheres
        try:
            return await self._ask(questions)
        except PyMongoError as error:
            verdict = fatal(error, self._address)
            if isinstance(verdict, AccessDenied):
                raise verdict from error
            if len(questions) > 1:  # it is one of them; the others can be answered
                return [answer for question in questions for answer in await self._answers([question])]
            if len(wheres) > 1:  # it is one of the matches
                alone = [await self._answers([questions[0]._replace(wheres=(n,))]) for n in wheres]
                return [set[int]().union(*(answer for (answer,) in alone))]
            log.warning(
                "the server can't say whether a receiver wants a change, so it gets it",
                action="where.unknown",
                where=str(self._wheres[wheres[0]]),
                token=questions[0].token,
                error=in_short(error)[:500],
            )
            return [set(wheres)]

    async def _ask(self, questions: list[_Question]) -> list[set[int]]:
        wheres = questions[0].wheres
        command = _command([question.document for question in questions], [self._wheres[n] for n in wheres])
        # What the server says of values that don't suit a match may quote them.
        ask = partial(self._database.command, command, codec_options=_ONCE)
        report = partial(
            log.warning, "the server can't be asked who wants a change, trying again", action="where.not_asked"
        )
        answer = await retry(ask, report, on=_PASSING)
        matched: list[set[int]] = [set() for _ in questions]
        for row in answer["cursor"]["firstBatch"]:
            (hits,) = row["hits"]
            matched[row["n"]] = {wheres[int(i)] for i, found in hits.items() if found}
        return matched


def _command(documents: list[RawBSONDocument], wheres: list[RawBSONDocument]) -> dict[str, Any]:
    """Ask which documents satisfy which matches. A pipeline for each, so that nothing of ours is in its sight."""
    hit = {"$project": {"_id": 0, "hit": {"$literal": 1}}}
    inner = [
        {"$documents": ["$$document"]},
        {"$unset": FIELD},
        {"$facet": {str(i): [{"$match": where}, hit] for i, where in enumerate(wheres)}},
    ]
    return {
        "aggregate": 1,
        "pipeline": [
            {"$documents": {"$literal": [{"n": n, "document": document} for n, document in enumerate(documents)]}},
            {"$lookup": {"let": {"document": "$document"}, "pipeline": inner, "as": "hits"}},
            {"$project": {"_id": 0, "n": 1, "hits": 1}},
        ],
        "cursor": {"batchSize": len(documents) + 1},  # all of them at once
        "comment": "mongoz dispatcher",
    }


def _image(change: Change) -> bytes | None:
    """The document that the receivers get, if it is known."""
    originals = originals_of(change)
    image = originals.before if change.operation == "delete" else originals.document
    if image is None or change.operation != "update":
        return image
    # After a pipeline that moved a field, post images of MongoDB 6.0 have it twice, the old value first. A match
    # goes by the first, drivers decode the last, and so receivers get the last.
    try:
        return bson.encode(bson.decode(image, codec_options=_ONCE), codec_options=_ONCE)
    except Exception:  # no driver decodes it; the server can look at it as it is
        return image


def _slices(questions: list[_Question]) -> Iterator[list[_Question]]:
    """As many as fit into a command; one that is too large for any goes alone."""
    part: list[_Question] = []
    size = 0
    for question in questions:
        length = len(question.document.raw)
        if part and (size + length > _BYTES or len(part) == _MOST):
            yield part
            part, size = [], 0
        part.append(question)
        size += length
    if part:
        yield part


def wanted(calls: tuple[Calls, ...], refused: frozenset[bytes]) -> tuple[Calls, ...]:
    """The calls without those to receivers that do not want the change."""
    kept = (one._replace(receivers=tuple(r for r in one.receivers if r.id not in refused)) for one in calls)
    return tuple(one for one in kept if one.receivers)
