"""The HTTP routes of a dispatcher or relay.

GET /livez         200 while the process works; 503 if it must be restarted
GET /readyz        200 while it delivers or is a standby; otherwise 503, with the reasons
GET /metrics       for Prometheus
GET /status.json   the facts of `dispatcher status`, and facts about this process
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dispatcher.core.stats import ClaimGauges, Gauges, TopicGauges
from dispatcher.operate.metrics import Metrics
from dispatcher.operate.observer import Observer
from dispatcher.web.guard import Guard


def make_app(
    observer: Observer, *, hosts: Sequence[str] | None = None, further: Sequence[BaseRoute] = ()
) -> Starlette:
    """Make the ASGI application.

    Args:
        hosts: host names that clients may use; None allows all.
        further: more routes, such as those of the dashboard.
    """
    metrics = Metrics(observer.snapshot)

    async def livez(_request: Request) -> Response:
        problem = observer.must_restart()
        return json_response({"alive": not problem, "reasons": problem}, 503 if problem else 200)

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
        return json_response(answer, 503 if reasons else 200)

    async def scraped(_request: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": metrics.content_type})

    async def status_json(_request: Request) -> Response:
        group, error = await observer.status(), observer.cache.error or None
        status = {"process": _process(observer), "group": None if error else group.as_dict(), "group_error": error}
        return json_response(status)

    routes = [
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", scraped),
        Route("/status.json", status_json),
        *further,
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, hosts=hosts)])


def _process(observer: Observer) -> dict[str, Any]:
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
        "partitions": {str(number): _partition(one) for number, one in shot.pipelines.items()},
        "receivers": [one.as_dict() for one in shot.stats.receivers.values()],
        "topic": None if shot.stats.topic is None else asdict(shot.stats.topic),
        "relay": None if shot.stats.relay is None else asdict(shot.stats.relay),
    }


def _partition(gauges: Gauges) -> dict[str, Any]:
    found = gauges._asdict()
    nested = {name: one._asdict() for name, one in found.items() if isinstance(one, TopicGauges | ClaimGauges)}
    return {**found, **nested}


def json_response(content: Any, status: int = 200) -> Response:
    """An answer in JSON, with dates in ISO 8601."""
    return Response(json.dumps(content, default=_plain), status, media_type="application/json")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)
