"""Readiness and liveness of a process, and its report to other members."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from dispatcher.core.state import Group
from dispatcher.core.stats import ClaimGauges, Gauges, RelayFigures, Stats, TopicFigures, TopicGauges
from dispatcher.operate import observer as observer_module
from dispatcher.operate import status as status_module
from dispatcher.operate.observer import Observer
from dispatcher.operate.status_model import GroupStatus, MemberStatus, SourceStatus
from dispatcher.settings import Address, Settings
from dispatcher.web.guard import Guard, denied, is_loopback

WELL = Gauges(True, 0, 0, 0, 0.0, 0.0, 1_000.0, 0.0)


def observer(*gauges: Gauges) -> Observer:
    made = Observer(Stats(), group="billing", settings=Settings(), gauges=lambda: dict(enumerate(gauges)))
    made.begin(asyncio.Event())
    return made


async def test_a_delivering_or_standby_process_is_ready():
    assert observer(WELL).not_ready() == []
    assert observer().not_ready() == []
    assert observer(WELL).must_restart() == []


async def test_a_starting_or_stopping_process_is_not_ready():
    starting = Observer(Stats(), group="billing", settings=Settings(), gauges=dict)
    assert starting.not_ready() == ["the dispatcher is starting"]
    assert starting.must_restart() == []
    stop = asyncio.Event()
    starting.begin(stop)
    stop.set()
    assert starting.not_ready() == ["the dispatcher is stopping"]


async def test_a_member_that_can_not_take_part_is_not_ready():
    alone = Observer(Stats(), group="g", settings=Settings(), gauges=dict, troubles=lambda: ["out of touch"])
    alone.begin(asyncio.Event())
    assert alone.not_ready() == ["out of touch"]
    assert alone.must_restart() == []


async def test_a_process_with_a_broken_or_silent_stream_is_not_ready():
    broken = observer(WELL, WELL._replace(connected=False))
    assert broken.not_ready() == ["the change stream of partition 1 is not open"]
    assert broken.must_restart() == []  # the stream is being reopened; a restart would not help
    silent = observer(WELL._replace(silent_seconds=20.0))
    assert silent.not_ready() == ["the change stream of partition 0 is silent for 20 s"]
    assert silent.must_restart() == []
    stuck = observer(WELL._replace(silent_seconds=400.0))
    assert len(stuck.must_restart()) == 1


async def test_partitions_with_the_same_trouble_are_one_reason():
    closed, quiet = WELL._replace(connected=False), WELL._replace(silent_seconds=20.0)
    several = observer(closed, closed, closed, WELL, quiet, quiet._replace(silent_seconds=350.0))
    assert several.not_ready() == [
        "the change stream of partitions 0 to 2 is not open",
        "the change stream of partitions 4, 5 is silent for up to 350 s",
    ]
    assert several.must_restart() == [
        "the change stream of partition 5 is silent for 350 s, though the server answers"
    ]


async def test_a_process_that_can_not_use_its_topic_is_not_ready_and_a_restart_does_not_help():
    gone = WELL._replace(connected=False, silent_seconds=400.0, topic=TopicGauges("no broker answers"))
    reading = Observer(
        Stats(topic=TopicFigures()), group="g", settings=Settings(), gauges=lambda: {0: WELL, 3: gone, 4: gone}
    )
    reading.begin(asyncio.Event())
    assert reading.not_ready() == ["partitions 3, 4 of the topic can't be read: no broker answers"]
    assert reading.must_restart() == []
    assert reading.stats_document()["trouble"] == "no broker answers"


async def test_the_reasons_and_the_report_of_a_relay_show_that_it_is_a_relay():
    relay = Observer(Stats(relay=RelayFigures(term=7)), group="g", settings=Settings(), gauges=lambda: {0: WELL})
    assert relay.not_ready() == ["the relay is starting"]
    told = relay.stats_document()["relay"]
    assert told == {"records": 0, "bytes": 0, "large_events": 0, "term": 7, "in_flight": 0}


def test_the_report_to_other_members_has_counters_lags_and_rates():
    stats = Stats(read=3)
    told = Observer(stats, group="g", settings=Settings(), gauges=lambda: {2: WELL}).stats_document()
    assert told["read"] == 3
    assert told["partitions"] == {"2": {"lag_seconds": 0.0, "lag_changes": 0.0, "connected": True}}
    assert told["per_second"] == {"deliveries": 0.0, "changes": 0.0}


def test_the_report_sums_the_deliveries_that_wait_for_processes_over_all_partitions():
    one = WELL._replace(claims=ClaimGauges(3, 1.5, {"aa": 2, "bb": 1}))
    two = WELL._replace(claims=ClaimGauges(1, 7.0, {"bb": 1}))
    told = observer(one, two).stats_document()["claims"]
    assert told == {"waiting": 4, "oldest_seconds": 7.0, "processes": {"aa": 2, "bb": 2}}


def seen(group: Group, myself: MemberStatus | None) -> GroupStatus:
    status = GroupStatus(group.name, datetime.now(UTC), 0.0, None, parked_deliveries=3)
    status.members = [one for one in (myself,) if one is not None]
    return status


async def test_metrics_dashboard_and_status_share_one_observation(monkeypatch):
    looks: list[Group] = []

    async def read_status(group: Group, myself: MemberStatus, _server: object) -> GroupStatus:
        looks.append(group)
        await asyncio.sleep(0)
        return seen(group, myself)

    monkeypatch.setattr(status_module, "read_status", read_status)
    watching = observer(WELL)
    watching.group = Group(None, "billing")  # type: ignore[arg-type]
    first, second = await asyncio.gather(watching.status(), watching.status())
    assert first is second
    assert first.members[0].stats["partitions"] == watching.stats_document()["partitions"]
    assert watching.snapshot().status is first
    assert len(looks) == 1
    watching.cache.forget()
    assert await watching.status() is not first
    assert len(looks) == 2


async def test_metrics_keep_the_last_values_but_not_the_health_if_the_server_does_not_answer(monkeypatch):
    answers = [seen]

    async def read_status(group: Group, myself: MemberStatus, _server: object) -> GroupStatus:
        return answers.pop()(group, myself)

    monkeypatch.setattr(status_module, "read_status", read_status)
    watching = observer(WELL)
    assert (await watching.status()).members[0].alive
    assert watching.cache.error == "the dispatcher is not connected yet"
    watching.group = Group(None, "billing")  # type: ignore[arg-type]
    assert ((await watching.status()).parked_deliveries, watching.cache.error) == (3, "")
    watching.cache.forget()
    alone = await watching.status()
    assert (alone.parked_deliveries, len(alone.members), alone.health.health) == (0, 1, "down")
    assert "pop from empty list" in watching.cache.error
    last = watching.snapshot().status
    assert (last.parked_deliveries, last.health.health) == (3, "down")
    assert last.health.why == f"the group's state can't be read: {watching.cache.error}"


async def test_without_an_answer_of_the_server_the_status_still_shows_a_relay(monkeypatch):
    def relay(group: Group, myself: MemberStatus | None) -> GroupStatus:
        return replace(seen(group, myself), is_relay=True, source=SourceStatus("t", "c"))

    answers = [relay]

    async def read_status(group: Group, myself: MemberStatus, _server: object) -> GroupStatus:
        return answers.pop()(group, myself)

    monkeypatch.setattr(status_module, "read_status", read_status)
    watching = observer(WELL)
    watching.group = Group(None, "mongoz.changes")  # type: ignore[arg-type]
    assert (await watching.status()).is_relay
    watching.cache.forget()
    alone = await watching.status()
    assert (bool(watching.cache.error), alone.is_relay, alone.source.topic) == (True, True, "t")


def request(**headers: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw})


def test_a_request_with_an_effect_needs_the_token():
    assert denied(request(authorization="Bearer sesame"), "sesame") is None
    assert denied(request(authorization="bearer sesame"), "sesame") is None
    for headers in (
        {},
        {"authorization": "Bearer "},
        {"authorization": "Bearer wrong"},
        {"authorization": "sesame"},
    ):
        refused = denied(request(**headers), "sesame")
        assert refused is not None
        assert refused.status_code == 401
        assert b"sesame" not in bytes(refused.body)
    switched_off = denied(request(authorization="Bearer sesame"), None)
    assert switched_off is not None
    assert (switched_off.status_code, b"DISPATCHER_HTTP_TOKEN" in bytes(switched_off.body)) == (403, True)
    empty = denied(request(authorization="Bearer "), "")
    assert empty is not None
    assert empty.status_code == 403


async def answered(guard: Guard, host: str) -> int:
    sent: list = []

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host.encode())]}
    await guard(scope, None, send)
    assert dict(sent[0]["headers"])[b"x-frame-options"] in (b"DENY", b"SAMEORIGIN")
    return sent[0]["status"]


async def hello(_scope, _receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-frame-options", b"SAMEORIGIN")]})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8787", 200),
        ("localhost", 200),
        ("[::1]:8787", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8787", 421),
        ("", 421),
    ],
)
async def test_foreign_host_names_are_refused(host: str, status: int):
    assert await answered(Guard(hello, ["127.0.0.1", "localhost", "::1"]), host) == status
    assert await answered(Guard(hello), host) == 200


async def test_a_client_that_is_gone_before_its_request_is_complete_is_no_error(capsys):
    sent: list[Any] = []

    async def read(scope: Any, receive: Any, send: Any) -> None:
        await Request(scope, receive).body()

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await Guard(read)(scope, receive, send)
    assert (sent, capsys.readouterr().out) == ([], "")


def test_addresses_are_parsed():
    assert Address.parse("0.0.0.0:80") == ("0.0.0.0", 80)
    assert Address.parse(":0") == ("127.0.0.1", 0)
    assert Address.parse("[::]:8787") == ("::", 8787)
    for wrong in ("", "80", "host", "host:", "host:-1", "host:65536"):
        with pytest.raises(ValueError, match="is not HOST:PORT"):
            Address.parse(wrong)
    assert is_loopback("127.1.2.3")
    assert not is_loopback("0.0.0.0")


@pytest.mark.parametrize(("members", "reads"), [(4, 3), (20, 1)])
async def test_members_of_a_large_group_read_its_status_less_often(monkeypatch, members, reads):
    """So the number of commands of all members grows with the number of members, not with its square."""
    looks: list[Group] = []
    checks, now = [], [1_000.0]

    async def read_status(group: Group, myself: MemberStatus, _server: object) -> GroupStatus:
        looks.append(group)
        status = seen(group, myself)
        status.members *= members
        return status

    async def check(_client: object) -> None:
        checks.append(now[0])
        if len(checks) == 4:
            raise asyncio.CancelledError

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(status_module, "read_status", read_status)
    monkeypatch.setattr(status_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(observer_module, "monotonic", lambda: now[0])
    monkeypatch.setattr(observer_module.asyncio, "sleep", sleep)
    watching = observer(WELL)
    monkeypatch.setattr(watching, "_check", check)
    group = Group(SimpleNamespace(client=None), "billing")  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await watching._check_regularly(group)
    assert [at - 1_000 for at in checks] == [0, 10, 20, 30]
    assert len(looks) == reads
