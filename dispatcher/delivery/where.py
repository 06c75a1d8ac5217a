"""`where`: whether a document is one that a receiver wants. The server decides, as it would for a query.

The question is about the image that the receiver gets, which may be in no collection any more. The command
carries the documents (`$documents`), many at a time. Each goes through the matches of its receivers in a pipeline
of its own (`$lookup`), so that a match sees the document and nothing else, not even the origin stamp.

The receiver gets the change wherever the answer is unknown: without an image (`delivery.image` is `"key"`), when
the server fails on the document (an `$expr` that does not suit it), and when document and match are too large for
a command.

This takes the right to run commands on the state's database, which readWrite there includes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple

import bson
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.errors import ConfigurationError, ConnectionFailure, PyMongoError

from dispatcher.core.bson_codec import lenient
from dispatcher.core.driver_errors import fatal, in_short
from dispatcher.core.events import Calls, Change
from dispatcher.core.output.logs import log
from dispatcher.core.retry import retry
from dispatcher.core.state import State
from dispatcher.delivery.instances import originals_of
from dispatcher.exceptions import AccessDenied, ApplicationError
from mongoz.signals.receivers import Receiver
from mongoz.stamps import FIELD

Routed = tuple[Change, tuple[Calls, ...]]
"""A change and its receivers."""

# Of several fields with one name the last one stays; everything else is kept as it is.
_ONCE: Final = lenient(CodecOptions[dict[str, Any]]())

# Bytes and number of the documents in one command: the server takes 16 MB, matches included.
_BYTES: Final = 8_000_000
_MOST: Final = 250

# Errors of the connection, not of a match.
_PASSING: Final = (ConnectionFailure, ConfigurationError)


class _Question(NamedTuple):
    """One document, and the matches that it goes through.

    Attributes:
        place: of its change among those that are asked about.
        wheres: numbers of the matches.
    """

    place: int
    token: str
    document: RawBSONDocument
    wheres: tuple[int, ...]


class Conditions:
    """Holds the `where` of receivers, and asks the server.

    Args:
        codec_options: the registry's: how the values of a match are stored.
    """

    def __init__(self, state: State, codec_options: CodecOptions[Any]) -> None:
        self._database = state.database
        self._codec_options = codec_options
        self._address = state.address
        self._wheres: list[RawBSONDocument] = []
        self._numbers: dict[Receiver, int] = {}

    async def prepare(self, receivers: Iterable[tuple[Any, Receiver]]) -> bool:
        """Have the server check every `where`; whether there is any.

        Raises:
            ApplicationError: it does not accept one; names receiver, document and the server's reason.
            PyMongoError: as the driver has it.
        """
        numbers: dict[Any, int] = {}
        for document, receiver in receivers:
            if receiver.options.where is None:
                continue
            raw = await self._checked(document, receiver)
            number = numbers.setdefault(raw.raw, len(self._wheres))
            if number == len(self._wheres):
                self._wheres.append(raw)
            self._numbers[receiver] = number
        return bool(self._wheres)

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

    async def wanted(self, routed: list[Routed]) -> list[Routed]:
        """The same changes, each without the receivers that do not want it."""
        groups: dict[tuple[int, ...], list[_Question]] = defaultdict(list)
        for place, (change, calls) in enumerate(routed):
            wheres = self._asked_by(calls)
            if wheres and (image := _image(change)) is not None:
                groups[wheres].append(_Question(place, change.token, RawBSONDocument(image), wheres))
        for questions in groups.values():
            for part in _slices(questions):
                for question, matched in zip(part, await self._answers(part), strict=True):
                    if len(matched) < len(question.wheres):
                        change, calls = routed[question.place]
                        routed[question.place] = (change, self._without(calls, {*question.wheres} - matched))
        return routed

    def _asked_by(self, calls: tuple[Calls, ...]) -> tuple[int, ...]:
        """The matches that a document goes through on its way to these receivers."""
        numbers = self._numbers
        return tuple(sorted({numbers[r] for one in calls for r in one.receivers if r in numbers}))

    def _without(self, calls: tuple[Calls, ...], refused: set[int]) -> tuple[Calls, ...]:
        """The calls without the receivers that have one of these matches."""
        kept = (
            one._replace(receivers=tuple(r for r in one.receivers if self._numbers.get(r) not in refused))
            for one in calls
        )
        return tuple(one for one in kept if one.receivers)

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
