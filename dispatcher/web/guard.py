"""Controls access over HTTP: safe headers, no answer for foreign web pages, a token for documents and actions.

A web site can let its own host name point to 127.0.0.1, and then read answers in an operator's browser (DNS
rebinding). So on the loopback interface only requests for names of this interface are answered.

A proxy on this machine connects from the loopback interface, even for clients on other machines. So without a
token, only requests on loopback that did not pass a proxy can read documents.
"""

import secrets
from collections.abc import Iterable
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dispatcher.core.output.logs import log

_SAFE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

# Headers that proxies add to requests.
_OF_PROXIES: Final = (
    "forwarded",
    "via",
    "x-real-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "true-client-ip",
    "cf-connecting-ip",
    "fastly-client-ip",
    "x-envoy-external-address",
)
_OF_PROXIES_BEGIN: Final = "x-forwarded"

# nginx adds no header by default, but it uses these HTTP versions. Browsers never use them.
_OLD_HTTP: Final = ("1.0", "0.9")

CLIENT: Final = "x-dispatcher-client"
"""The header in which a supervisor tells its processes the HTTP version and the address of the client."""

# These paths are always answered: a supervisor must not restart a process because of many other requests.
_PROBES: Final = ("/livez", "/readyz")

# Maximum number of other requests at the same time.
_MOST_REQUESTS: Final = 50


def is_forwarded(scope: Scope) -> bool:
    """Returns whether the request passed a proxy. If so, its sender may be on any machine."""
    headers = Headers(scope=scope)
    return (
        scope.get("http_version") in _OLD_HTTP
        or any(name in headers for name in _OF_PROXIES)
        or any(name.startswith(_OF_PROXIES_BEGIN) for name in headers)
    )


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches this host."""
    return host in _LOOPBACK or host.startswith("127.")


class Guard:
    """ASGI middleware that checks requests and adds safe headers.

    Args:
        app: the application. Headers that it sets are kept.
        hosts: host names that clients may use; None allows all.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None = None) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(hosts)
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As in ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        began = False

        async def send_safely(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                for name, value in _SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_safely)
            return
        self._running += 1
        try:
            await self._app(scope, receive, send_safely)
        except ClientDisconnect:
            pass  # the client has gone before its request was complete, or was too slow
        except Exception as error:
            log.error("a request could not be answered", action="http.error", path=scope["path"], exc_info=error)
            if not began:
                text = "The dispatcher can't answer this. Its log line http.error has the reason."
                await JSONResponse({"error": text}, 500)(scope, receive, send_safely)
        finally:
            self._running -= 1

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        if self._hosts is not None and _host_of(scope) not in self._hosts:
            return JSONResponse({"error": "Use the address that the dispatcher listens on."}, 421)
        if self._running >= _MOST_REQUESTS and scope["path"] not in _PROBES:
            text = f"{self._running} requests are running, which is the maximum. Try again in a second."
            return JSONResponse({"error": text}, 503, headers={"Retry-After": "1"})
        return None


class OfClient:
    """ASGI middleware of a process with a supervisor: requests appear as the supervisor received them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As in ASGI."""
        version, _, host = Headers(scope=scope).get(CLIENT, "1.1").partition(" ")
        await self._app({**scope, "http_version": version, "client": (host, 0) if host else None}, receive, send)


def _host_of(scope: Scope) -> str:
    """The host name of the request, without the port."""
    host = Headers(scope=scope).get("host", "")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def unreadable(request: Request, token: str | None, *, loopback: bool) -> JSONResponse | None:
    """The refusal of a request that may not read documents; None if the request may read them.

    Args:
        token: the operator's token. Without a token, this machine may read documents.
        loopback: whether only this machine can connect.
    """
    if not token and loopback and not is_forwarded(request.scope):
        return None
    return denied(request, token)


def denied(request: Request, token: str | None) -> JSONResponse | None:
    """The refusal of a request without the required token; None if the request has the token.

    Args:
        token: the operator's token. Without a token every request is refused.
    """
    if not token:
        error = (
            "Set DISPATCHER_HTTP_TOKEN for the dispatcher. Without a token nothing can be changed over HTTP, and "
            "documents are readable only from this machine, without a proxy."
        )
        return JSONResponse({"error": error}, 403)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secrets.compare_digest(given.strip().encode(), token.encode()):
        return None
    error = "Send the dispatcher's token as 'Authorization: Bearer TOKEN'." if not given else "The token is wrong."
    return JSONResponse({"error": error}, 401, headers={"WWW-Authenticate": "Bearer"})
