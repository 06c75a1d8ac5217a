"""Who may ask what: safe headers on every answer, none for foreign web pages, a token for what changes things.

A page in an operator's browser can have a name of its own point to 127.0.0.1, and then read what we answer there
(DNS rebinding). So whoever listens on the loopback interface answers only to names of it.
"""

import secrets
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard", "denied", "is_loopback"]

_SAFE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return host in _LOOPBACK or host.startswith("127.")


class Guard:
    """Wraps an application.

    Args:
        app: whose answers lack the headers; those that it sets itself stay.
        hosts: names that clients may use for us; None if any will do.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None = None) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if self._hosts is None or _host_of(scope) in self._hosts:
            await self._app(scope, receive, send_safely)
        elif scope["type"] == "http":
            answer = JSONResponse({"error": "Ask by the address that the dispatcher listens on."}, 421)
            await answer(scope, receive, send_safely)
        else:
            await send({"type": "websocket.close", "code": 1008})


def _host_of(scope: Scope) -> str:
    """The name that the client used, without the port."""
    host = Headers(scope=scope).get("host", "")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def denied(request: Request, token: str | None) -> JSONResponse | None:
    """Why a request may not change anything; None if it may.

    Args:
        request: with `Authorization: Bearer TOKEN`.
        token: the operator's; without one nobody may.
    """
    if not token:
        error = "Set DISPATCHER_HTTP_TOKEN for the dispatcher; without a token nothing can be changed over HTTP."
        return JSONResponse({"error": error}, 403)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), token.encode()):
        return None
    error = "Send the dispatcher's token as 'Authorization: Bearer TOKEN'." if not given else "The token is wrong."
    return JSONResponse({"error": error}, 401, headers={"WWW-Authenticate": "Bearer"})
