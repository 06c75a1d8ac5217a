"""Answers over HTTP for all processes of a supervisor.

/livez     all processes work
/readyz    all processes are ready
/metrics   the metrics of all processes; the label `process` tells them apart

Every other request goes to the first process that is ready. Each process can answer for the whole group.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import h11
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from dispatcher.core.output.writer import dropped_lines
from dispatcher.core.tasks import end
from dispatcher.operate.metrics import PREFIX
from dispatcher.supervise.asking import Answer, ask
from dispatcher.web.guard import CLIENT, Guard

# Maximum seconds for the answer of a process: to a probe, and to any other request.
_PROBE_SECONDS: Final = 5.0
_SECONDS: Final = 30.0

# Seconds that a request waits for the probes of all processes. Then the first process that has reported itself as
# ready gets the request.
_SOON: Final = 0.5

# Maximum bytes of a body that are passed on: one more than a process accepts, so that the process itself refuses a
# longer body.
_LONGEST_BODY: Final = 100_001

# The supervisor writes the lines of all processes, so the supervisor counts the dropped lines.
_DROPPED: Final = f"{PREFIX}log_lines_dropped"

_STARTING: Final = Answer(0, [], b"it is not running")
_SILENT: Final = Answer(0, [], b"it does not answer")


def make_front(paths: Mapping[str, str], hosts: Sequence[str] | None) -> Guard:
    """Make the ASGI application.

    Args:
        paths: the paths of the Unix sockets of the processes, by name.
        hosts: host names that clients may use; None allows all.
    """
    return Guard(Front(paths), hosts)


class Front:
    """The ASGI application that the guard protects."""

    def __init__(self, paths: Mapping[str, str]) -> None:
        self._paths = paths
        self._own = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As in ASGI."""
        own = self._own.get(scope["path"]) if scope["method"] in ("GET", "HEAD") else None
        response = await (own() if own is not None else self._pass_on(Request(scope, receive)))
        await response(scope, receive, send)

    async def _livez(self) -> Response:
        answers = await self._ask_all(b"/livez")
        reasons = _reasons(answers, lambda one: one is _STARTING or _is_ok(one))
        return JSONResponse({"alive": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def _readyz(self) -> Response:
        answers = await self._ask_all(b"/readyz")
        reasons = _reasons(answers, _is_ok)
        said = {name: json.loads(one.body) for name, one in answers.items() if one.status}
        answer = {
            "ready": not reasons,
            "reasons": reasons,
            "partitions": sorted({number for one in said.values() for number in one["partitions"]}),
            "paused": sorted({name for one in said.values() for name in one["paused"]}),
            "processes": said,
        }
        return JSONResponse(answer, 503 if reasons else 200)

    async def _metrics(self) -> Response:
        answers = await self._ask_all(b"/metrics")
        texts = {name: one.body.decode() for name, one in answers.items() if _is_ok(one)}
        if not texts:
            return _nobody()
        text = await asyncio.to_thread(merged, texts, dropped_lines())
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _pass_on(self, request: Request) -> Response:
        """The answer of the first process that is ready; if none is, of the first one that answers."""
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) >= _LONGEST_BODY:
                break
        name = await self._choose()
        if name is None:
            return _nobody()
        scope = request.scope
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        client = f"{scope['http_version']} {scope['client'][0] if scope['client'] else ''}"
        headers = [one for one in scope["headers"] if one[0] != CLIENT.encode()]
        answer = await self._ask(
            name,
            scope["raw_path"] + query,
            _SECONDS,
            method=request.method,
            headers=[*headers, (CLIENT.encode(), client.encode())],
            body=bytes(body[:_LONGEST_BODY]),
        )
        if not answer.status:
            return JSONResponse({"error": f"Process {name} can't answer: {answer.body.decode()}."}, 504)
        response = Response(answer.body, answer.status)
        response.raw_headers = answer.headers
        return response

    async def _choose(self) -> str | None:
        """The first process that is ready; if none is, the first one that answers.

        A process that does not answer, for example a stopped one, delays a request for a moment only.
        """
        asking = {name: asyncio.create_task(self._ask(name, b"/readyz", _PROBE_SECONDS)) for name in self._paths}
        try:
            for seconds in (_SOON, None):
                done, _ = await asyncio.wait(asking.values(), timeout=seconds)
                probed = {name: one.result() for name, one in asking.items() if one in done}
                for name, answer in probed.items():
                    if _is_ok(answer):
                        return name
            return next((name for name, answer in probed.items() if answer.status), None)
        finally:
            await end(asking.values())

    async def _ask_all(self, target: bytes) -> dict[str, Answer]:
        answers = await asyncio.gather(*(self._ask(name, target, _PROBE_SECONDS) for name in self._paths))
        return dict(zip(self._paths, answers, strict=True))

    async def _ask(self, name: str, target: bytes, seconds: float, **request: Any) -> Answer:
        try:
            async with asyncio.timeout(seconds):
                return await ask(self._paths[name], target, **request)
        except (TimeoutError, BlockingIOError):
            return _SILENT
        except (OSError, h11.RemoteProtocolError):
            return _STARTING


def _is_ok(answer: Answer) -> bool:
    return answer.status == 200


def _reasons(answers: Mapping[str, Answer], is_good: Callable[[Answer], bool]) -> list[str]:
    """The reasons of the processes whose answer is not good, each with the name of its process."""
    return [
        f"process {name}: {reason}"
        for name, one in answers.items()
        if not is_good(one)
        for reason in (json.loads(one.body)["reasons"] if one.status else [one.body.decode()])
    ]


def _nobody() -> Response:
    return JSONResponse({"error": "No process answers. Try again in a second."}, 503, headers={"Retry-After": "1"})


def merged(texts: Mapping[str, str], dropped: int = 0) -> bytes:
    """The metrics of several processes as one text. Each sample gets the name of its process as a label.

    Args:
        texts: the metrics of each process, in the format of Prometheus.
        dropped: the number of lines that the supervisor could not write.
    """
    families: dict[str, Metric] = {}
    for name, text in texts.items():
        for family in text_string_to_metric_families(text):
            one = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                one.samples.append(sample._replace(labels={**sample.labels, "process": name}))
    for sample in families[_DROPPED].samples[:1] if _DROPPED in families else ():
        labels = {**sample.labels, "process": "supervisor"}
        families[_DROPPED].samples.append(sample._replace(labels=labels, value=float(dropped)))
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the registry need not compare names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All families."""
        return iter(self._families)
