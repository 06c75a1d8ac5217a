"""Applies the option `where` of receivers. The server evaluates it, as it does for a query.

The filter applies to the image that the receiver gets. This image may no longer be in any collection, so the
command contains the images of many changes as documents (`$documents`). The filters are applied to each document
in its own pipeline (`$lookup`), so that a filter sees only this document, without the origin stamp.

If the result is unknown, the receiver gets the change. The result is unknown if the change has no image
(`delivery.image` is `"key"`), if the server fails on the document (an `$expr` that does not suit the document), or
if document and filter are too large for a command.

The evaluation requires the right to run commands on the state's database. The role readWrite includes
this right.
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

RoutedChange = tuple[Change, tuple[Calls, ...]]
"""A change and its receivers."""

# Decoding keeps only the last of several fields with the same name, and replaces bytes that are not UTF-8.
_ONCE: Final = lenient(CodecOptions[dict[str, Any]]())

# Maximum bytes and number of the documents in one command. The server accepts 16 MB, filters included.
_BYTES: Final = 8_000_000
_MOST: Final = 250

# Errors of the connection, not of a filter.
_PASSING: Final = (ConnectionFailure, ConfigurationError)


class _Question(NamedTuple):
    """One document, and the filters that apply to it.

    Attributes:
        place: the index of its change in the list of changes.
        wheres: the numbers of the filters.
    """

    place: int
    token: str
    document: RawBSONDocument
    wheres: tuple[int, ...]


class Conditions:
    """Holds the `where` of receivers, and lets the server evaluate them.

    Args:
        codec_options: the codec options of the registry, which encode the values of a filter.
    """

    def __init__(self, state: State, codec_options: CodecOptions[Any]) -> None:
        self._database = state.database
        self._codec_options = codec_options
        self._address = state.address
        self._wheres: list[RawBSONDocument] = []
        self._numbers: dict[Receiver, int] = {}

    async def prepare(self, receivers: Iterable[tuple[Any, Receiver]]) -> bool:
        """Let the server check every `where`. Returns whether any receiver has one.

        Raises:
            ApplicationError: the server rejects a `where`. The error names receiver, document and reason.
            PyMongoError: the command failed.
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
            # Checked without documents: a filter that fails on one document may suit the others.
            await self._database.command(_command([], [raw]))
        except _PASSING:
            raise
        except Exception as error:  # PyMongo raises many types for values that can't be encoded
            if isinstance(error, PyMongoError) and isinstance(fatal(error, self._address), AccessDenied):
                raise
            details = getattr(error, "details", None) or {}
            reason = str(details.get("errmsg", error)).rstrip(".")
            raise ApplicationError(
                f"where={where!r} of receiver {receiver.name!r} of {document.__name__} is no filter that "
                f"{self._address} accepts: {reason}.",
                remedy="Use a filter that find() accepts, without $where, $text and $near.",
            ) from error
        return raw

    async def wanted(self, routed: list[RoutedChange]) -> list[RoutedChange]:
        """Remove receivers whose `where` rejects a change. Returns the changes with the remaining receivers."""
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
        """The numbers of the filters of these receivers."""
        numbers = self._numbers
        return tuple(sorted({numbers[r] for one in calls for r in one.receivers if r in numbers}))

    def _without(self, calls: tuple[Calls, ...], refused: set[int]) -> tuple[Calls, ...]:
        """Copy the calls without the receivers that have one of these filters."""
        kept = (
            one.with_receivers(*(r for r in one.receivers if self._numbers.get(r) not in refused)) for one in calls
        )
        return tuple(one for one in kept if one.receivers)

    async def _answers(self, questions: list[_Question]) -> list[set[int]]:
        """Find the filters that each document satisfies.

        After an error, ask about each document alone. If that fails too, ask about each filter alone.
        """
        wheres = questions[0].wheres
        try:
            return await self._ask(questions)
        except PyMongoError as error:
            verdict = fatal(error, self._address)
            if isinstance(verdict, AccessDenied):
                raise verdict from error
            if len(questions) > 1:  # one document causes the error: ask about each alone
                return [answer for question in questions for answer in await self._answers([question])]
            if len(wheres) > 1:  # one filter causes the error: ask about each alone
                alone = [await self._answers([questions[0]._replace(wheres=(n,))]) for n in wheres]
                return [set[int]().union(*(answer for (answer,) in alone))]
            log.warning(
                "the server can't evaluate the `where` of a receiver, so the receiver gets the change",
                action="where.unknown",
                where=str(self._wheres[wheres[0]]),
                token=questions[0].token,
                error=in_short(error)[:500],
            )
            return [set(wheres)]

    async def _ask(self, questions: list[_Question]) -> list[set[int]]:
        wheres = questions[0].wheres
        command = _command([question.document for question in questions], [self._wheres[n] for n in wheres])
        # Lenient, because error messages of the server may quote undecodable values of the document.
        ask = partial(self._database.command, command, codec_options=_ONCE)
        report = partial(
            log.warning, "the server can't evaluate `where` now, trying again", action="where.not_asked"
        )
        answer = await retry(ask, report, on=_PASSING)
        matched: list[set[int]] = [set() for _ in questions]
        for row in answer["cursor"]["firstBatch"]:
            (hits,) = row["hits"]
            matched[row["n"]] = {wheres[int(i)] for i, found in hits.items() if found}
        return matched


def _command(documents: list[RawBSONDocument], wheres: list[RawBSONDocument]) -> dict[str, Any]:
    """Make the command that finds the filters that each document satisfies. A filter sees only the document."""
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
        "cursor": {"batchSize": len(documents) + 1},  # all results in one batch
        "comment": "mongoz dispatcher",
    }


def _image(change: Change) -> bytes | None:
    """The document that the receivers get, if it is known."""
    originals = originals_of(change)
    image = originals.before if change.operation == "delete" else originals.document
    if image is None or change.operation != "update":
        return image
    # If a client updated the document with a pipeline that moves a field, the post image of MongoDB 6.0 has the
    # field twice, the old value first. Drivers decode the last value, so receivers get the last value. But a
    # filter uses the first value. So keep only the last value.
    try:
        return bson.encode(bson.decode(image, codec_options=_ONCE), codec_options=_ONCE)
    except Exception:  # no driver decodes it; the server may still evaluate it
        return image


def _slices(questions: list[_Question]) -> Iterator[list[_Question]]:
    """Split questions into commands of limited size. A document over the limit has its own command."""
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
