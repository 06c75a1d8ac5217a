"""Handles the requests of the dashboard. Every response is JSON; the field `error` has the text of an error."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from pymongo.errors import PyMongoError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dispatcher.core.driver_errors import in_short
from dispatcher.core.output.logs import log
from dispatcher.core.state import Group
from dispatcher.exceptions import MalformedLetter, NotFound
from dispatcher.group.known_receivers import require_receiver
from dispatcher.operate.dead_letters import Wanted, drop, ids_of, request_retry
from dispatcher.operate.letter_groups import ActionStep, drop_some, request_retries, retried, withdraw_retries
from dispatcher.operate.observer import Observer
from dispatcher.operate.pauses import pause, resume
from dispatcher.web.app import json_response
from dispatcher.web.dashboard.history import History
from dispatcher.web.dashboard.letters import Letterbox, NoSuchPage
from dispatcher.web.dashboard.page import page_routes
from dispatcher.web.dashboard.selections import (
    LetterSearch,
    LettersRequest,
    PauseRequest,
    ProgressRequest,
    body_of,
    query_of,
)
from dispatcher.web.dashboard.view import view_of
from dispatcher.web.guard import denied, unreadable
from mongoz import __version__

_TRIED_AGAIN: Final = "This dead letter is being retried. Drop it after the outcome is known."
_GONE: Final = "This dead letter no longer exists: it was delivered or dropped meanwhile."

_Answer = Callable[[Request], Awaitable[Response]]
_Action = Callable[[Group, Wanted, datetime], Awaitable[ActionStep]]


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
        self._past = History()

    async def watch(self) -> None:
        """Collect the history for the plots. Runs for ever."""
        await self._past.keep(self._observer)

    def routes(self) -> list[BaseRoute]:
        """The page, and its requests. A relay has no receivers to pause, and no dead letters."""
        routes = [*page_routes(), self._route("state", self._state), self._route("history", self._history)]
        if self._observer.stats.relay is not None:
            return routes
        return [
            *routes,
            self._route("letters", self._letters, reads=True),
            self._route("letters/groups", self._groups, reads=True),
            self._route("letters/retried", self._retried, reads=True),
            self._route("letter", self._letter, reads=True),
            self._route("unlock", self._unlock, changes=True),
            self._route("letters/retry", self._retry, changes=True),
            self._route("letters/stop", self._stop, changes=True),
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
        return Response(self._past.as_json(), media_type="application/json")

    async def _letters(self, request: Request) -> Response:
        wanted = query_of(request, LetterSearch).wanted
        try:
            page = await self._letterbox.page(wanted, request.query_params.get("before"))
        except NoSuchPage as error:
            raise HTTPException(400, str(error)) from error
        return json_response(page)

    async def _groups(self, request: Request) -> Response:
        return json_response(await self._letterbox.groups(query_of(request, LetterSearch).wanted))

    async def _retried(self, request: Request) -> Response:
        asked = query_of(request, ProgressRequest)
        return json_response((await retried(self._group, asked.wanted, asked.began))._asdict())

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
        if named.ids is None:
            return await self._step("retry", request_retries, named)
        return self._changed_letters("retry", len(await request_retry(self._group, named.ids)), named)

    async def _drop(self, request: Request) -> Response:
        named = await self._letters_named(request)
        if named.ids is None:
            return await self._step("drop", drop_some, named)
        done = await drop(self._group, await ids_of(self._group, Wanted(ids=named.ids)))
        if named.ids and not done.dropped:
            raise HTTPException(409, _TRIED_AGAIN) if done.kept else HTTPException(404, _GONE)
        return self._changed_letters("drop", len(done.dropped), named)

    async def _stop(self, request: Request) -> Response:
        named = await self._letters_named(request)
        wanted = named.wanted._replace(ids=named.ids)
        return self._changed_letters("stop", await withdraw_retries(self._group, wanted), named)

    async def _step(self, what: str, action: _Action, named: LettersRequest) -> Response:
        """One step of an action on all selected letters. The page repeats the request until no letter is left."""
        began = named.began or datetime.now(UTC) + timedelta(seconds=self._observer.stats.clock_offset)
        done = await action(self._group, named.wanted, began)
        return self._changed_letters(what, done.changed, named, began=began, more=done.more)

    async def _letters_named(self, request: Request) -> LettersRequest:
        named = await body_of(request, LettersRequest)
        named.require()
        if named.receiver:
            await require_receiver(self._group, named.receiver, known=self._called)
        return named

    def _changed_letters(self, what: str, count: int, named: LettersRequest, **facts: Any) -> Response:
        self._observer.cache.forget()
        receiver = named.receiver
        log.info("a request changed dead letters", action=f"dashboard.{what}", letters=count, receiver=receiver)
        return json_response({"count": count, **facts})

    async def _pause(self, request: Request) -> Response:
        receiver = (await body_of(request, PauseRequest)).receiver
        await pause(self._group, receiver, by="dashboard", known=self._called)
        return self._changed_pauses("pause", receiver, "paused")

    async def _resume(self, request: Request) -> Response:
        receiver = (await body_of(request, PauseRequest)).receiver
        await resume(self._group, receiver, known=self._called)
        return self._changed_pauses("resume", receiver, "resumed")

    def _changed_pauses(self, what: str, receiver: str | None, then: str) -> Response:
        self._observer.cache.forget()
        log.info("a request paused or resumed a receiver", action=f"dashboard.{what}", receiver=receiver)
        return json_response({"message": f"{receiver or 'Everything'} is {then} in a moment."})
