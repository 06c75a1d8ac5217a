"""The change stream breaks repeatedly without a pause, and no resources accumulate."""

import asyncio
import gc
import time
from typing import Any, Final

import psutil
from pymongo import MongoClient

import mongoz
from dispatcher.core.output.logs import configure_logging
from dispatcher.embedded.server import embedded_mongo
from dispatcher.runtime.service import Service
from dispatcher.settings import Settings
from dispatcher.stream import change_stream
from mongoz.core.signals import post_save
from tests.chaos.figures import Figure
from tests.chaos.scenario import Plan, Report, Scenario, Size
from tests.support import eventually

__all__ = ["SCENARIO"]

_CURSOR_NOT_FOUND: Final = 43
_DATABASE: Final = "reconnects"
_FAILING: Final = ("--setParameter", "enableTestCommands=1")  # enables fail points of the server
_MEMORY_MB: Final = 5.0

# The share of reconnects before the first measurement; by then all long-lived objects exist.
_FIRST: Final = 0.1


def run(plan: Plan) -> Report:
    """Makes every read of the stream fail; measures the resources of the process early and at the end."""
    configure_logging("json", "critical")  # the dispatcher in this process logs many warnings
    pause, change_stream.pause_after = change_stream.pause_after, lambda _failures: 0.0
    try:
        with embedded_mongo(extra_args=_FAILING) as server, MongoClient(server.url) as client:
            return asyncio.run(_run(plan, server.url, client))
    finally:
        change_stream.pause_after = pause


async def _run(plan: Plan, url: str, client: MongoClient[Any]) -> Report:
    began, told = time.monotonic(), []

    class Thing(mongoz.Document):
        number: int = mongoz.Integer()

        Meta = type("Meta", (), {"registry": mongoz.Registry(url, dispatched=_DATABASE), "database": _DATABASE})

    @post_save(Thing, name="told")
    async def receive(sender: Any, instance: Any, **kwargs: Any) -> None:
        told.append(instance.number)

    service, stop = Service(Thing.meta.registry, Settings(http="off")), asyncio.Event()
    working = asyncio.create_task(service.run(stop))
    await eventually(lambda: service.ready, what="the dispatcher reads")
    failing = {"failCommands": ["getMore"], "errorCode": _CURSOR_NOT_FOUND, "appName": "mongoz-dispatcher"}
    client.admin.command("configureFailPoint", "failCommand", mode="alwaysOn", data=failing)
    seen = []
    for times in (max(1, round(plan.size.faults * _FIRST)), plan.size.faults):
        await eventually(lambda times=times: service.stats.reconnects >= times, within=600)  # type: ignore[misc]
        seen.append(_held())
        plan.say(f"{service.stats.reconnects:,} reconnects: {seen[-1]}")
    client.admin.command("configureFailPoint", "failCommand", mode="off")
    client[_DATABASE].things.insert_many([{"number": number} for number in range(plan.size.writes)])
    await eventually(lambda: len(told) >= plan.size.writes, what="everything is delivered")
    stop.set()
    await working
    return Report(_figures(service.stats.reconnects, plan, seen, told, time.monotonic() - began))


def _held() -> dict[str, float]:
    gc.collect()
    process = psutil.Process()
    return {
        "sockets": len(process.net_connections()),
        "tasks": len(asyncio.all_tasks()),
        "objects": len(gc.get_objects()),
        "memory": process.memory_info().rss / 1_000_000,
    }


def _figures(
    reconnects: int, plan: Plan, seen: list[dict[str, float]], told: list[int], seconds: float
) -> list[Figure]:
    first, last = seen
    grown = {name: last[name] - first[name] for name in first}
    return [
        Figure("reconnects", reconnects, least=plan.size.faults),
        Figure("sockets", last["sockets"]),
        Figure("  more than at first", grown["sockets"], most=2),
        Figure("tasks", last["tasks"]),
        Figure("  more than at first", grown["tasks"], most=2),
        Figure("Python objects", last["objects"]),
        Figure("  more than at first", grown["objects"], most=2_000),
        Figure("resident memory", last["memory"], "MB"),
        Figure("  more than at first", grown["memory"], "MB", most=_MEMORY_MB),
        Figure("lost", plan.size.writes - len(set(told)), most=0),
        Figure("repeated", len(told) - len(set(told)), most=0),
        Figure("took", seconds, "s"),
    ]


SCENARIO = Scenario(
    name="reconnects",
    title="the change stream breaks at every read",
    faults="reconnects",
    full=Size(writes=1_000, documents=1_000, faults=10_000),
    short=Size(writes=100, documents=100, faults=1_000),
    run=run,
)
