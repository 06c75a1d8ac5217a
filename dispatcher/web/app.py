"""The routes.

GET /livez         200 while the process works; 503 when it must be restarted
GET /readyz        200 while it delivers, or stands by to do so; 503 otherwise, with the reasons
GET /metrics       for Prometheus
GET /status.json   everything that `dispatcher status` shows, and this process
"""

import asyncio
import json
from collections.abc import Sequence
from datetime import datetime
from time import monotonic
from typing import Any, Final

from pymongo.errors import PyMongoError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dispatcher.core.driver_errors import in_short
from dispatcher.operate.metrics import Metrics
from dispatcher.operate.observer import Observer
from dispatcher.operate.status import look
from dispatcher.web.guard import Guard

__all__ = ["make_app"]

# Seconds that a look at the group may take, and for which the next ones who ask get the same answer.
_PATIENCE: Final = 5.0
_FRESH: Final = 1.0


def make_app(
    observer: Observer, *, hosts: Sequence[str] | None = None, further: Sequence[BaseRoute] = ()
) -> Starlette:
    """The application.

    Args:
        observer: of the process.
        hosts: names that clients may use for us; None if any will do.
        further: routes of the dashboard.
    """
    metrics = Metrics(observer.snapshot)
    status = _Status(observer)

    async def livez(_request: Request) -> Response:
        problem = observer.must_restart()
        return _json({"alive": not problem, "reasons": problem}, 503 if problem else 200)

    async def readyz(_request: Request) -> Response:
        reasons = observer.not_ready()
        shot = observer.snapshot()
        answer = {
            "ready": not reasons,
            "reasons": reasons,
            "phase": observer.phase,
            "partitions": sorted(shot.pipelines),
            "paused": list(shot.paused),
        }
        return _json(answer, 503 if reasons else 200)

    async def scraped(_request: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": metrics.content_type})

    async def status_json(_request: Request) -> Response:
        return _json(await status.get())

    routes = [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", scraped),
        Route("/status.json", status_json),
        *further,
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, hosts=hosts)])


class _Status:
    """What `/status.json` answers. Many who ask at once are one look at the server."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = asyncio.Lock()
        self._group: dict[str, Any] | None = None
        self._error: str | None = "the dispatcher is not connected yet"
        self._looked = -_FRESH

    async def get(self) -> dict[str, Any]:
        async with self._lock:
            if monotonic() - self._looked >= _FRESH:
                await self._look()
        return {"process": self._process(), "group": self._group, "group_error": self._error}

    async def _look(self) -> None:
        observer = self._observer
        if observer.group is None:
            return
        try:
            async with asyncio.timeout(_PATIENCE):
                found = await look(observer.group)
        except (PyMongoError, TimeoutError) as error:
            self._group, self._error = None, in_short(error)
        else:
            self._group, self._error = found.as_dict(), None
        self._looked = monotonic()

    def _process(self) -> dict[str, Any]:
        observer = self._observer
        shot = observer.snapshot()
        return {
            "group": shot.group,
            "version": shot.version,
            "phase": observer.phase,
            "ready": not observer.not_ready(),
            "uptime_seconds": observer.uptime,
            "event_loop_delay_seconds": shot.loop_delay,
            "clock_offset_seconds": shot.stats.clock_offset,
            "per_second": observer.rates(),
            "counters": shot.stats.as_dict(),
            "partitions": {str(number): one._asdict() for number, one in shot.pipelines.items()},
            "receivers": [one.as_dict() for one in shot.stats.receivers.values()],
        }


def _json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content, default=_plain), status, media_type="application/json")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
