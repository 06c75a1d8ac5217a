"""Handles the requests of the dashboard. Every response is JSON; the field `error` has the text of an error."""

import json
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pymongo.errors import PyMongoError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dispatcher.core.driver_errors import in_short
from dispatcher.core.output.logs import log
from dispatcher.core.state import Group
from dispatcher.core.stats import BOUNDS
from dispatcher.exceptions import MalformedLetter, NotFound
from dispatcher.group.known_receivers import require_receiver
from dispatcher.operate.dead_letters import Wanted, drop, ids_of, request_retry
from dispatcher.operate.observer import Observer
from dispatcher.operate.pauses import pause, resume
from dispatcher.web.app import json_response
from dispatcher.web.dashboard.history import Samples
from dispatcher.web.dashboard.letters import Letterbox, NoSuchPage
from dispatcher.web.dashboard.page import page_routes
from dispatcher.web.dashboard.view import view_of
from dispatcher.web.guard import denied, unreadable
from mongoz import __version__

# Maximum bytes of a request, and maximum number of dead letters in it.
_LONGEST_BODY: Final = 100_000
_MOST_LETTERS: Final = 1_000

_TRIED_AGAIN: Final = "This dead letter is being retried. Drop it after the outcome is known."
_GONE: Final = "This dead letter no longer exists: it was delivered or dropped meanwhile."

_Answer = Callable[[Request], Awaitable[Response]]


class _LettersRequest(BaseModel):
    """Selects dead letters: some, all of a receiver, or all."""

    model_config = ConfigDict(extra="forbid", strict=True)

    ids: list[str] | None = None
    receiver: str | None = None
    all: bool = False


class _PauseRequest(BaseModel):
    """Selects a receiver; None is everything."""

    model_config = ConfigDict(extra="forbid", strict=True)

    receiver: str | None


_Body = TypeVar("_Body", bound=BaseModel)


class Dashboard:
    """The dashboard of one process.

    Args:
        loopback: whether only this machine can connect.
        token: the token that documents and actions require; None if none is set.
    """

    def __init__(self, observer: Observer, *, loopback: bool, token: str | None) -> None:
        self._observer = observer
        self._loopback = loopback
        self._token = token
        self._samples = Samples()

    async def watch(self) -> None:
        """Collect samples for the plots. Runs for ever."""
        await self._samples.keep(self._observer)

    def routes(self) -> list[BaseRoute]:
        """The page, and its requests. A relay has no receivers, so nothing to pause, and no dead letters."""
        routes = [*page_routes(), self._route("state", self._state), self._route("history", self._history)]
        if self._observer.stats.relay is not None:
            return routes
        return [
            *routes,
            self._route("letters", self._letters, reads=True),
            self._route("letter", self._letter, reads=True),
            self._route("unlock", self._unlock, changes=True),
            self._route("letters/retry", self._retry, changes=True),
            self._route("letters/drop", self._drop, changes=True),
            self._route("pause", self._pause, changes=True),
            self._route("resume", self._resume, changes=True),
        ]

    def _route(self, path: str, answer: _Answer, *, reads: bool = False, changes: bool = False) -> Route:
        async def guarded(request: Request) -> Response:
            if changes or reads:
                refusal = denied(request, self._token) if changes else self._unreadable(request)
                if refusal is not None:
                    if "authorization" in request.headers:
                        client = request.client.host if request.client else None
                        log.warning(
                            "wrong token in a request", action="dashboard.denied", path=path, client=client
                        )
                    return refusal
            try:
                return await answer(request)
            except NotFound as error:
                return json_response({"error": error.message}, 404)
            except HTTPException as refused:
                return json_response({"error": refused.detail}, refused.status_code)
            except PyMongoError as error:
                return json_response({"error": f"MongoDB does not answer: {in_short(error)}"}, 503)

        return Route(f"/dashboard/api/{path}", guarded, methods=["POST" if changes else "GET"])

    def _unreadable(self, request: Request) -> Response | None:
        return unreadable(request, self._token, loopback=self._loopback)

    # -- reading -----------------------------------------------------------------------------------------

    async def _state(self, request: Request) -> Response:
        observer = self._observer
        return json_response(
            {
                **view_of(await observer.status()),
                "address": observer.http,
                "version": __version__,
                "trouble": observer.cache.error and f"The group's state can't be read: {observer.cache.error}",
                "token_set": self._token is not None,
                "may_change": denied(request, self._token) is None,
                "may_read": self._unreadable(request) is None,
            }
        )

    async def _history(self, _request: Request) -> Response:
        text = f'{{"bounds": {json.dumps(BOUNDS)}, "samples": {self._samples.as_json()}}}'
        return Response(text, media_type="application/json")

    async def _letters(self, request: Request) -> Response:
        query = request.query_params
        try:
            page = await self._letterbox.page(query.get("receiver"), query.get("before"))
        except NoSuchPage as error:
            raise HTTPException(400, str(error)) from error
        return json_response(page)

    async def _letter(self, request: Request) -> Response:
        try:
            letter = await self._letterbox.letter(request.query_params.get("id", ""))
        except MalformedLetter as error:
            raise HTTPException(409, error.message) from error
        if letter is None:
            raise HTTPException(404, _GONE)
        return json_response(letter)

    @property
    def _group(self) -> Group:
        if self._observer.group is None:
            raise HTTPException(503, "The dispatcher is not connected yet.")
        return self._observer.group

    @property
    def _letterbox(self) -> Letterbox:
        return Letterbox(self._group)

    @property
    def _called(self) -> set[str]:
        """Receivers that this process has called. The state may not have them yet."""
        return {one.receiver for one in self._observer.stats.receivers.values()}

    # -- actions ------------------------------------------------------------------------------

    async def _unlock(self, _request: Request) -> Response:
        return json_response({"unlocked": True})

    async def _retry(self, request: Request) -> Response:
        named = await self._letters_named(request)
        requested = await request_retry(self._group, named.ids, receiver=named.receiver)
        return self._changed_letters("retry", len(requested), named.receiver)

    async def _drop(self, request: Request) -> Response:
        named = await self._letters_named(request)
        done = await drop(self._group, await ids_of(self._group, Wanted(named.receiver, ids=named.ids)))
        if named.ids and not done.dropped:
            raise HTTPException(409, _TRIED_AGAIN) if done.kept else HTTPException(404, _GONE)
        return self._changed_letters("drop", len(done.dropped), named.receiver)

    async def _letters_named(self, request: Request) -> _LettersRequest:
        named = await _body(request, _LettersRequest)
        if (named.ids is None) == (not named.all):
            raise HTTPException(400, "Give ids of dead letters, or all.")
        if named.ids is not None and len(named.ids) > _MOST_LETTERS:
            text = f"{len(named.ids):,} dead letters are given; the maximum is {_MOST_LETTERS:,}."
            raise HTTPException(400, text)
        if named.receiver is not None:
            await require_receiver(self._group, named.receiver, known=self._called)
        return named

    def _changed_letters(self, what: str, count: int, receiver: str | None) -> Response:
        self._observer.cache.forget()
        log.info("a request changed dead letters", action=f"dashboard.{what}", letters=count, receiver=receiver)
        return json_response({"count": count})

    async def _pause(self, request: Request) -> Response:
        receiver = (await _body(request, _PauseRequest)).receiver
        await pause(self._group, receiver, by="dashboard", known=self._called)
        return self._changed_pauses("pause", receiver, "paused")

    async def _resume(self, request: Request) -> Response:
        receiver = (await _body(request, _PauseRequest)).receiver
        await resume(self._group, receiver, known=self._called)
        return self._changed_pauses("resume", receiver, "resumed")

    def _changed_pauses(self, what: str, receiver: str | None, then: str) -> Response:
        self._observer.cache.forget()
        log.info("a request paused or resumed a receiver", action=f"dashboard.{what}", receiver=receiver)
        return json_response({"message": f"{receiver or 'Everything'} is {then} in a moment."})


async def _body(request: Request, kind: type[_Body]) -> _Body:
    """The content of a request."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send JSON with Content-Type: application/json.")
    sent = bytearray()
    async for piece in request.stream():
        sent += piece
        if len(sent) > _LONGEST_BODY:
            raise HTTPException(413, f"The request has more than {_LONGEST_BODY:,} bytes.")
    try:
        return kind.model_validate_json(bytes(sent))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(one) for one in first["loc"])
        raise HTTPException(400, f"{where or 'the request'}: {first['msg']}") from error
