"""The API of the dashboard: access rights, actions, and dead letters."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import bson
import pytest
from bson import ObjectId
from gridfs import GridFSBucket
from pymongo import AsyncMongoClient
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from dispatcher.core.state import Group, State
from dispatcher.core.stats import BOUNDS, Stats
from dispatcher.operate.observer import Observer
from dispatcher.settings import Settings
from dispatcher.web import dashboard
from dispatcher.web.app import make_app
from dispatcher.web.dashboard.api import Dashboard
from tests.books import book
from tests.support import PATIENCE

TOKEN = "sixteen letters or more"
WRONG = "sixteen letters or less"
ASSETS = Path(dashboard.__file__).parent / "assets"
HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Page:
    """Sends requests to the application like a browser, without a socket."""

    def __init__(
        self,
        client: AsyncMongoClient,
        group: str,
        *,
        token: str | None,
        loopback: bool,
        further: Sequence[BaseRoute] = (),
    ) -> None:
        settings = Settings(state_database=f"{group}_state")
        self.observer = Observer(Stats(), group=group, settings=settings, gauges=dict)
        self.observer.group = Group(State(client, settings.state_database), group)
        self.dashboard = Dashboard(self.observer, loopback=loopback, token=token)
        hosts = ("localhost", "127.0.0.1") if loopback else None
        self.http_version = "1.1"
        self._app = make_app(self.observer, hosts=hosts, further=[*self.dashboard.routes(), *further])

    async def ask(
        self, method: str, path: str, *, body: bytes = b"", token: str | None = None, **headers: str
    ) -> Answer:
        path, _, query = path.partition("?")
        sent = {"host": "127.0.0.1:8787", "content-type": "application/json", **headers}
        if token is not None:
            sent["authorization"] = f"Bearer {token}"
        scope = {
            "type": "http",
            "http_version": self.http_version,
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            "scheme": "http",
            "server": ("127.0.0.1", 8787),
            "client": ("127.0.0.1", 50_000),
            "root_path": "",
        }
        messages: list[Any] = []
        requests = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return requests.pop() if requests else await asyncio.Event().wait()  # the client stays connected

        async def send(message: Any) -> None:
            messages.append(message)

        await self._app(scope, receive, send)
        start = next(one for one in messages if one["type"] == "http.response.start")
        said = b"".join(one.get("body", b"") for one in messages if one["type"] == "http.response.body")
        return Answer(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, said)

    async def get(self, path: str, token: str | None = TOKEN, **parameters: Any) -> Answer:
        return await self.ask("GET", f"/dashboard/api/{path}?{urlencode(parameters)}", token=token)

    async def post(self, path: str, content: Any = None, token: str | None = TOKEN, **headers: str) -> Answer:
        body = json.dumps({} if content is None else content).encode()
        return await self.ask("POST", f"/dashboard/api/{path}", body=body, token=token, **headers)


@pytest.fixture
def page(client, database) -> Page:
    return Page(client, database, token=TOKEN, loopback=True)


@pytest.fixture
def abroad(client, database) -> Page:
    """A page that other machines can reach."""
    return Page(client, database, token=TOKEN, loopback=False)


@pytest.fixture
def state(foreign) -> Any:
    return foreign.client[f"{foreign.name}_state"]


@pytest.fixture
async def client(mongo) -> AsyncIterator[AsyncMongoClient]:
    async with AsyncMongoClient(mongo.url, tz_aware=False) as made:
        yield made


def letter(group: str, number: int = 0, receiver: str = "shop.mail", **changes: Any) -> dict[str, Any]:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
    return {
        "_id": f"delivery-{number:03}:00aa:shop.User",
        "group": group,
        "receiver": receiver,
        "receiver_id": "00aa",
        "document": "shop.User",
        "signal": "post_save",
        "namespace": {"db": "shop", "coll": "users"},
        "key": number,
        "reason": "failed",
        "error": {
            "type": "builtins.LookupError",
            "message": "LookupError: no luck",
            "traceback": "Traceback: no luck",
        },
        "attempts": 5,
        "delivery_id": f"delivery-{number:03}",
        "first_attempt_at": at,
        "last_attempt_at": at,
        "wall_time": at,
        "parts": {"document": bson.encode({"_id": number, "name": "Ada"})},
        "state": "dead",
        **changes,
    }


# -- the page ----------------------------------------------------------------------------------------


async def test_the_page_loads_nothing_from_elsewhere_and_has_no_inline_script(page):
    answer = await page.ask("GET", "/dashboard/")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    text = answer.body.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", text)
    loaded = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert loaded
    for path in loaded:
        asset = await page.ask("GET", f"/dashboard/{path}")
        assert asset.status == 200, path
        assert asset.headers["cache-control"] == "no-cache"


def test_assets_refer_to_no_other_host():
    for path in ASSETS.rglob("*"):
        if path.is_file() and not path.name.endswith("LICENSE"):
            hosts = set(re.findall(r"https?://([^/\s\"'`]+)", path.read_text()))
            assert hosts <= {"www.w3.org", "github.com"}, path  # an XML namespace, a comment of uPlot


async def test_the_root_address_redirects_to_the_page(page):
    for path in ("/", "/dashboard"):
        answer = await page.ask("GET", path)
        assert (answer.status, answer.headers["location"]) == (307, "/dashboard/")


async def test_asset_paths_can_not_leave_their_directory(page):
    for path in ("../api.py", "%2e%2e/api.py", "..%2fapi.py", "vendor/../../api.py"):
        assert (await page.ask("GET", f"/dashboard/assets/{path}")).status == 404


async def test_a_foreign_host_name_that_points_to_this_machine_is_refused(page, state, database):
    state.held.insert_one(letter(database))
    for path in ("/dashboard/", "/dashboard/api/state", "/dashboard/api/letters"):
        answer = await page.ask("GET", path, host="evil.example.org:8787")
        assert answer.status == 421
        assert b"shop.mail" not in answer.body


# -- contents ----------------------------------------------------------------------------------------


async def test_the_state_has_the_group_and_a_sample_of_its_counters(page, state, database):
    now = datetime.now(UTC)
    known = [{"id": "00aa", "name": "shop.mail", "signal": "post_save", "document": "shop.models.User"}]
    stats = {"delivered": 5, "partitions": {"0": {"lag_seconds": 7.5, "lag_changes": 3}}, "in_flight": 2}
    member = {"_id": "m1", "group": database, "host": "elsewhere", "pid": 7, "seen_at": now, "receivers": known}
    state.members.insert_one({**member, "lease_seconds": 10, "partitions": [0], "stats": stats})
    state.positions.insert_one(
        {"_id": f"{database}:0", "group": database, "partition": 0, "owner": "m1", "term": 4}
    )
    state.held.insert_many([letter(database, 1), letter(database, 2), letter("another", 3)])
    told = (await page.get("state")).json
    assert told["group"] == database
    assert told["sample"]["members"]["m1"]["lag_seconds"] == 7.5
    assert told["sample"]["members"]["m1"]["delivered"] == 5
    assert told["members"][0]["host"] == "elsewhere"
    assert len(told["members"]) == 2  # the other member is this process
    (partition,) = told["partitions"]
    assert (partition["where"], partition["term"], partition["lag_changes"]) == ("elsewhere, pid 7", 4, 3)
    (receiver,) = told["receivers"]
    assert (receiver["name"], receiver["documents"], receiver["dead_letters"]) == ("shop.mail", ["User"], 2)
    assert told["dead_letter_count"] == 2


async def test_the_health_is_the_same_on_the_page_in_the_status_and_in_the_metrics(page, state, database):
    """A receiver failed two hours ago, and has had no success since. Another receiver is gone."""
    await page.observer.group.state.create_indexes()
    now = datetime.now(UTC)
    known = [
        {"id": "00aa", "name": "shop.mail", "signal": "post_save", "formerly": ["shop.post"], "document": "User"}
    ]
    recent = {"delivered": 0, "failed": 0, "refused": 0, "retried": 0, "failed_seconds": 7_200.0}
    counted = [{"receiver": "shop.mail", "signal": "post_save", "failed": 1, "recent": recent}]
    member = {"_id": "m1", "group": database, "host": "elsewhere", "pid": 7, "seen_at": now, "receivers": known}
    state.members.insert_one({**member, "lease_seconds": 10, "partitions": [0], "stats": {"receivers": counted}})
    state.held.insert_many([letter(database, 1, "shop.post"), letter(database, 2, "shop.gone")])
    told = (await page.get("state")).json
    words = {one["receiver"]: one["health"] for one in told["health"]["receivers"]}
    assert (told["health"]["health"], words) == ("failing", {"shop.gone": "down", "shop.mail": "failing"})
    rows = {one["name"]: (one["health"], one["dead_letters"]) for one in told["receivers"]}
    assert rows == {"shop.gone": ("down", 1), "shop.mail": ("failing", 1)}
    status = json.loads((await page.ask("GET", "/status.json")).body)
    assert status["group"]["health"] == told["health"]
    metrics = (await page.ask("GET", "/metrics")).body.decode()
    assert re.search(r'_health\{group="\w+",health="failing"\} 1.0', metrics)
    assert re.search(
        r'_receiver_health\{.*health="failing",receiver="shop.mail",signal="post_save"\} 1.0', metrics
    )


async def test_the_history_has_the_last_sample_and_the_bounds_of_its_buckets(page):
    empty = {"bounds": list(BOUNDS), "receivers": {}, "last": None, "steps": []}
    assert (await page.get("history")).json == empty
    watching = asyncio.create_task(page.dashboard.watch())
    try:
        async with asyncio.timeout(PATIENCE):
            while not (last := (await page.get("history")).json["last"]):
                await asyncio.sleep(0.02)
    finally:
        watching.cancel()
    assert [one["delivered"] for one in last["members"].values()] == [0]  # this process


async def test_runs_are_shown_without_the_keys_of_documents(page, state, database):
    run = {"_id": f"{database}:run:ab12", "group": database, "kind": "run", "run": "ab12", "what": "backfill"}
    progress = {"done": [], "namespace": "shop.users", "last": bson.encode({"": "secret@example.org"})}
    asked = {"receivers": ["shop.mail"]}
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    counted = {"delivered": 7, "failed": 1, "status": "running", "started_at": now, "beat_at": now}
    state.controls.insert_one({**run, "asked": asked, "progress": progress, **counted})
    answer = await page.get("state")
    (told,) = answer.json["runs"]
    assert (told["what"], told["id"], told["receivers"]) == ("backfill", "ab12", ["shop.mail"])
    assert (told["delivered"], told["failed"], told["status"]) == (7, 1, "running")
    assert told["beat_at"] == "2026-01-02T03:04:05+00:00"
    assert b"secret" not in answer.body


async def test_the_state_has_the_processes_that_claim(page, state, database):
    state.claims.insert_many([book(database, 1), book("another", 2)])
    claims = (await page.get("state")).json["claims"]
    assert (claims["open"], claims["processes"], claims["waiting"], claims["oldest_seconds"]) == (2, 1, 0, 0.0)
    assert [(one["process"], one["host"], one["alive"]) for one in claims["books"]] == [
        (f"{1:016x}", "web1", True)
    ]


async def test_the_state_has_an_error_if_the_server_does_not_answer(database):
    async with AsyncMongoClient("mongodb://127.0.0.1:1", serverSelectionTimeoutMS=50) as nowhere:
        page = Page(nowhere, database, token=TOKEN, loopback=True)
        told = (await page.get("state")).json
        assert "state can't be read" in told["trouble"]
        assert told["health"]["health"] == "down"
        assert told["partitions"] == []
        assert [one["alive"] for one in told["members"]] == [True]  # this process
        assert (await page.get("letters")).status == 503
        starting = Page(nowhere, database, token=TOKEN, loopback=True)
        starting.observer.group = None
        assert "not connected" in (await starting.get("state")).json["trouble"]
        assert "not connected" in (await starting.get("letters")).json["error"]


async def test_dead_letters_are_listed_in_pages_the_newest_first(page, state, database):
    state.held.insert_many(
        [letter(database, number, "shop.mail" if number % 2 else "shop.index") for number in range(25)]
    )
    state.held.insert_one(letter("another", 30))
    keys: list[str] = []
    before: dict[str, str] = {}
    while True:
        told = (await page.get("letters", **before)).json
        keys += [one["key"] for one in told["letters"]]
        if told["next"] is None:
            break
        before = {"before": told["next"]}
    assert keys == [str(number) for number in range(24, -1, -1)]
    only = (await page.get("letters", receiver="shop.index")).json["letters"]
    assert {one["receiver"] for one in only} == {"shop.index"}
    assert (await page.get("letters", before="nonsense")).status == 400
    assert (await page.get("letters", before="9999999999999999~x")).status == 400


async def test_a_dead_letter_is_shown_in_full(page, state, database):
    stored = letter(database, 7, update_fields=["name"], retries=2)
    stored["parts"]["before"] = bson.encode({"_id": 7, "name": "Bea", "at": ObjectId("0" * 24)})
    state.held.insert_one(stored)
    told = (await page.get("letter", id=stored["_id"])).json
    assert (told["traceback"], told["error_type"]) == ("Traceback: no luck", "builtins.LookupError")
    assert (told["update_fields"], told["retries"]) == (["name"], 2)
    parts = {one["name"]: one["text"] for one in told["parts"]}
    assert json.loads(parts["document"]) == {"_id": 7, "name": "Ada"}
    assert json.loads(parts["before"]) == {"_id": 7, "name": "Bea", "at": {"$oid": "0" * 24}}
    assert (await page.get("letter", id="nobody")).status == 404


async def test_a_dead_letter_of_another_group_is_not_found(page, state):
    stored = letter("another", 1)
    state.held.insert_one(stored)
    assert (await page.get("letter", id=stored["_id"])).status == 404
    assert (await page.post("letters/retry", {"ids": [stored["_id"]]})).status == 404
    assert (await page.post("letters/drop", {"ids": [stored["_id"]]})).status == 404
    assert state.held.find_one() == {**stored, **state.held.find_one()}
    assert "retry_requested_at" not in state.held.find_one()


async def test_content_of_documents_is_shown_as_text(page, state, database):
    document = bytearray(bson.encode({"_id": 1, "html": HOSTILE, "bad": "xx", "far": 5}))
    document[document.index(b"xx")] = 0xFF
    stored = letter(database, 1, key={"a": HOSTILE})
    stored["parts"] = {"document": bytes(document), "event": b"no BSON at all"}
    stored["parts"]["before"] = bson.encode({"at": bson.DatetimeMS(2**62)})
    state.held.insert_one(stored)
    answer = await page.get("letter", id=stored["_id"])
    assert answer.headers["content-type"] == "application/json"
    parts = {one["name"]: one["text"] for one in answer.json["parts"]}
    assert json.loads(parts["document"])["html"] == HOSTILE
    assert parts["event"].startswith("6e 6f 20 42")
    assert str(2**62) in parts["before"]
    assert HOSTILE in answer.json["key"]


async def test_long_parts_are_shown_by_their_size_only(page, state, database):
    stored = letter(database, 1, files={"before": GridFSBucket(state, "held").upload_from_stream("x", b"x" * 200)})
    stored["parts"] = {"document": bson.encode({"text": "x" * 200_000})}
    state.held.insert_one(stored)
    answer = await page.get("letter", id=stored["_id"])
    assert len(answer.body) < 5_000
    parts = {one["name"]: one for one in answer.json["parts"]}
    assert (parts["document"]["text"], parts["before"]["text"]) == (None, None)
    assert (parts["document"]["size"] > 200_000, parts["before"]["size"]) == (True, 200)


# -- access ------------------------------------------------------------------------------------------


async def test_without_the_token_other_machines_see_the_state_but_no_documents(abroad, state, database):
    stored = letter(database, 1)
    state.held.insert_one(stored)
    told = (await abroad.get("state", None)).json
    assert (told["may_read"], told["may_change"], told["dead_letter_count"]) == (False, False, 1)
    assert "Ada" not in json.dumps(told)
    for path in ("letters", "letters/groups", "letter"):
        for token in (None, WRONG, ""):
            answer = await abroad.get(path, token, id=stored["_id"])
            assert answer.status == 401
            assert b"no luck" not in answer.body
        assert (await abroad.get(path, TOKEN, id=stored["_id"])).status == 200
    assert (await abroad.get("state", TOKEN)).json["may_change"] is True


async def test_if_a_token_is_set_this_machine_sees_documents_only_with_the_token(page, client, state, database):
    """Behind a proxy on this machine, every client seems to come from the loopback address."""
    stored = letter(database, 1)
    state.held.insert_one(stored)
    told = (await page.get("state", None)).json
    assert (told["may_read"], told["token_set"], told["dead_letter_count"]) == (False, True, 1)
    for path in ("letters", "letter"):
        for token in (None, WRONG):
            answer = await page.get(path, token, id=stored["_id"])
            assert (answer.status, b"no luck" in answer.body) == (401, False)
    without = Page(client, database, token=None, loopback=True)
    assert (await without.get("state", None)).json["may_read"] is True
    for path in ("letters", "letter"):
        answer = await without.get(path, None, id=stored["_id"])
        assert (answer.status, b"no luck" in answer.body) == (200, True)


PROXIES = [
    {"x-forwarded-for": "203.0.113.7"},
    {"x-forwarded-host": "status.example.org"},
    {"x-forwarded-proto": "https"},
    {"forwarded": "for=203.0.113.7"},
    {"via": "1.1 proxy.example.org"},
    {"x-real-ip": "203.0.113.7"},
    {"cf-connecting-ip": "203.0.113.7"},
    {"http_version": "1.0"},  # the default of nginx
]


@pytest.mark.parametrize("added", PROXIES, ids=str)
async def test_a_forwarded_request_is_not_from_this_machine(client, state, database, added):
    stored = letter(database, 1)
    state.held.insert_one(stored)
    page = Page(client, database, token=None, loopback=True)
    added = dict(added)
    page.http_version = added.pop("http_version", "1.1")
    told = (await page.ask("GET", "/dashboard/api/state", **added)).json
    assert (told["may_read"], told["dead_letter_count"]) == (False, 1)
    for path in ("letters", f"letter?id={stored['_id']}"):
        answer = await page.ask("GET", f"/dashboard/api/{path}", **added)
        assert (answer.status, "DISPATCHER_HTTP_TOKEN" in answer.json["error"]) == (403, True)
        assert b"no luck" not in answer.body
    page = Page(client, database, token=TOKEN, loopback=True)
    answer = await page.ask("GET", "/dashboard/api/letters", token=TOKEN, **added)
    assert (answer.status, b"no luck" in answer.body) == (200, True)


async def test_a_failed_answer_is_logged_with_its_cause(client, database, capsys):
    async def break_down(_request: Request) -> Response:
        raise ZeroDivisionError("the cause")

    page = Page(client, database, token=TOKEN, loopback=True, further=[Route("/broken", break_down)])
    answer = await page.ask("GET", "/broken")
    assert (answer.status, "http.error" in answer.json["error"]) == (500, True)
    assert b"the cause" not in answer.body
    assert answer.headers["x-content-type-options"] == "nosniff"
    logged = capsys.readouterr().out
    assert "http.error" in logged
    assert "path=/broken" in logged
    assert "ZeroDivisionError: the cause" in logged
    assert "in break_down" in logged


async def test_probes_are_answered_under_load(client, database):
    going = asyncio.Event()

    async def slow(_request: Request) -> Response:
        await going.wait()
        return Response("done")

    page = Page(client, database, token=TOKEN, loopback=True, further=[Route("/slow", slow)])
    asking = [asyncio.create_task(page.ask("GET", "/slow")) for _ in range(200)]
    try:
        async with asyncio.timeout(PATIENCE):
            while sum(one.done() for one in asking) < 150:
                await asyncio.sleep(0.01)
        refused = [one.result() for one in asking if one.done()]
        assert {(one.status, one.headers["retry-after"]) for one in refused} == {(503, "1")}
        assert (await page.ask("GET", "/livez")).status == 200
        assert (await page.ask("GET", "/readyz")).json["phase"] == "starting"
    finally:
        going.set()
        answers = await asyncio.gather(*asking)
    assert sum(one.status == 200 for one in answers) == 50
    assert (await page.ask("GET", "/slow")).status == 200


CHANGES = [
    ("letters/retry", {"ids": ["delivery-001:00aa:shop.User"]}),
    ("letters/retry", {"all": True}),
    ("letters/drop", {"ids": ["delivery-001:00aa:shop.User"]}),
    ("letters/drop", {"all": True}),
    ("letters/stop", {"all": True}),
    ("pause", {"receiver": None}),
    ("resume", {"receiver": None}),
]


@pytest.mark.parametrize(("path", "content"), CHANGES)
async def test_without_the_right_token_nothing_is_changed(page, client, state, database, path, content, capsys):
    state.held.insert_one(letter(database, 1))
    state.controls.insert_one({"_id": "x", "group": database, "kind": "pause", "receiver_name": None})
    before = list(state.held.find()), list(state.controls.find())
    for token in (None, "", WRONG, TOKEN[:-1], TOKEN + "x"):
        assert (await page.post(path, content, token)).status == 401
    assert (await page.post(path, content, None, authorization=f"Basic {TOKEN}")).status == 401
    assert (await page.post(path, content, None, cookie=f"token={TOKEN}")).status == 401
    assert (await page.ask("GET", f"/dashboard/api/{path}", token=TOKEN)).status == 405
    without = Page(client, database, token=None, loopback=True)
    for token in (None, "", "None", TOKEN):
        answer = await without.post(path, content, token)
        assert (answer.status, "DISPATCHER_HTTP_TOKEN" in answer.json["error"]) == (403, True)
    assert (list(state.held.find()), list(state.controls.find())) == before
    assert TOKEN not in capsys.readouterr().err


async def test_a_page_can_verify_its_token(page):
    assert (await page.post("unlock")).status == 200
    assert (await page.post("unlock", token=WRONG)).json == {"error": "The token is wrong."}


NONSENSE = [
    (b"", 400),
    (b"{", 400),
    (b"[]", 400),
    (b'{"ids": [1], "all": false}', 400),
    (b'{"ids": ["a"], "unknown": 1}', 400),
    (b"{}", 400),
    (b'{"ids": ["a"], "all": true}', 400),
    (b'{"all": true, "began": "yesterday"}', 400),
    (b'{"all": true, "since": "2026-01-01T00:00:00"}', 400),
    (json.dumps({"ids": ["x"] * 1_001}).encode(), 400),
    (b'{"ids": ["' + b"x" * 200_000 + b'"]}', 413),
]


@pytest.mark.parametrize(("body", "status"), NONSENSE)
async def test_invalid_requests_are_refused_and_change_nothing(page, state, database, body, status):
    state.held.insert_one(letter(database, 1))
    for path in ("letters/retry", "letters/drop", "letters/stop"):
        answer = await page.ask("POST", f"/dashboard/api/{path}", body=body, token=TOKEN)
        assert (answer.status, bool(answer.json["error"])) == (status, True)
    assert [set(one) for one in state.held.find()] == [set(letter(database, 1))]


async def test_a_form_of_another_site_is_refused(page, state, database):
    state.held.insert_one(letter(database, 1))
    for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
        answer = await page.post("letters/drop", {"all": True}, **{"content-type": kind})
        assert answer.status == 415
    assert state.held.count_documents({}) == 1


# -- actions -----------------------------------------------------------------------------------------


async def test_a_retry_is_requested_for_the_selected_dead_letters(page, state, database):
    state.held.insert_many(
        [letter(database, 1), letter(database, 2, "shop.index"), letter(database, 3), letter("another", 4)]
    )

    def requested() -> list[int]:
        return [one["key"] for one in state.held.find({"retry_requested_at": {"$type": "date"}}).sort("key")]

    assert (await page.post("letters/retry", {"ids": ["delivery-001:00aa:shop.User"]})).json == {"count": 1}
    assert requested() == [1]
    told = (await page.post("letters/retry", {"all": True, "receiver": "shop.index"})).json
    assert (told["count"], told["more"], requested()) == (1, False, [1, 2])
    assert (await page.post("letters/retry", {"all": True})).json["count"] == 1
    assert requested() == [1, 2, 3]
    assert (await page.post("letters/retry", {"ids": ["gone"]})).status == 404


def failed(group: str, number: int, kind: str = "builtins.LookupError", **changes: Any) -> dict[str, Any]:
    error = {"type": kind, "message": f"{kind.rpartition('.')[2]}: number {number}", "traceback": ""}
    return letter(group, number, error=error, short_id=f"{number:012x}", **changes)


async def test_dead_letters_are_grouped_by_receiver_and_error(page, state, database):
    state.held.insert_many([failed(database, number) for number in range(5)])
    state.held.insert_many([failed(database, 5, "builtins.TypeError"), failed(database, 6, receiver="shop.index")])
    state.held.insert_one(failed(database, 7, receiver=None, receiver_id=None, reason="undecodable"))
    state.held.insert_one(failed("another", 8))
    now = datetime.now(UTC)
    state.held.update_one({"key": 1}, {"$set": {"retry_requested_at": now}})
    state.held.update_one({"key": 2}, {"$set": {"retrying_since": now, "lane": "l", "due_at": now}})
    told = (await page.get("letters/groups")).json
    assert told["complete"] is True
    assert [(one["receiver"], one["error"], one["count"], one["retrying"]) for one in told["groups"]] == [
        ("shop.mail", "builtins.LookupError", 5, 2),
        (None, "builtins.LookupError", 1, 0),
        ("shop.index", "builtins.LookupError", 1, 0),
        ("shop.mail", "builtins.TypeError", 1, 0),
    ]
    largest = told["groups"][0]
    assert (largest["message"], largest["newest_at"]) == ("LookupError: number 4", "2026-01-01T00:00:04+00:00")
    unreadable = {"receiver": "", "error": "builtins.LookupError", "reason": "undecodable"}
    assert [one["key"] for one in (await page.get("letters", **unreadable)).json["letters"]] == ["7"]


async def test_only_a_part_of_too_many_dead_letters_is_grouped(page, state, database, monkeypatch):
    monkeypatch.setattr("dispatcher.operate.letter_groups._PATIENCE_MS", 1)
    monkeypatch.setattr("dispatcher.operate.letter_groups._COUNTED", 7)
    state.held.insert_many([failed(database, number) for number in range(20_000)])
    told = (await page.get("letters/groups")).json
    assert (told["complete"], told["groups"][0]["count"]) == (False, 7)
    assert told["groups"][0]["message"] == "LookupError: number 19999"


async def test_groups_leave_out_malformed_dead_letters_and_keep_those_without_an_error(page, state, database):
    state.held.insert_many([failed(database, 1), failed(database, 2, receiver=7), failed(database, 3)])
    state.held.update_one({"key": 3}, {"$set": {"error": "edited by hand"}})
    told = (await page.get("letters/groups")).json
    assert {(one["error"], one["count"], one["message"]) for one in told["groups"]} == {
        (None, 1, ""),
        ("builtins.LookupError", 1, "LookupError: number 1"),
    }
    assert [one["collection"] for one in told["misfits"]] == [f"{database}_state.held"]
    without_error = {"receiver": "shop.mail", "error": ""}
    assert (await page.post("letters/drop", {"all": True, **without_error})).json["count"] == 1


SEARCHES = [
    ({"text": "000000000003"}, [3]),  # its short id
    ({"text": "delivery-00"}, [1, 2, 3, 4]),
    ({"text": "4"}, [4]),  # `_id` of the document
    ({"text": "nothing"}, []),
    ({"receiver": "shop.index"}, [2]),
    ({"reason": "invalid"}, [3]),
    ({"error": "builtins.TypeError"}, [4]),
    ({"since": "2026-01-01T00:00:02Z"}, [2, 3, 4]),
    ({"until": "2026-01-01T01:00:02+01:00"}, [1]),
    ({"since": "2026-01-01T00:00:02Z", "text": "delivery", "receiver": "shop.mail"}, [3, 4]),
]


@pytest.mark.parametrize(("search", "found"), SEARCHES, ids=str)
async def test_dead_letters_are_found_by_id_receiver_reason_error_and_time(page, state, database, search, found):
    state.held.insert_many(
        [
            failed(database, 1),
            failed(database, 2, receiver="shop.index"),
            failed(database, 3, reason="invalid"),
            failed(database, 4, "builtins.TypeError"),
            failed("another", 5),
        ]
    )
    listed = (await page.get("letters", **search)).json["letters"]
    assert sorted(int(one["key"]) for one in listed) == found
    groups = (await page.get("letters/groups", **search)).json["groups"]
    assert sum(one["count"] for one in groups) == len(found)
    assert (await page.post("letters/drop", {"all": True, **search})).json["count"] == len(found)
    assert {one["key"] for one in state.held.find({"group": database})} == {1, 2, 3, 4} - set(found)


async def test_a_search_with_a_wrong_time_is_refused(page):
    for path in ("letters", "letters/groups"):
        answer = await page.get(path, since="yesterday")
        assert (answer.status, "since" in answer.json["error"]) == (400, True)


async def test_retries_of_many_dead_letters_are_requested_in_steps_and_can_be_stopped(
    page, state, database, monkeypatch
):
    monkeypatch.setattr("dispatcher.operate.letter_groups.STEP", 4)
    state.held.insert_many([failed(database, number) for number in range(10)])
    state.held.insert_many(
        [failed(database, 10, "builtins.TypeError"), failed(database, 11, receiver="shop.index")]
    )
    group = {"all": True, "receiver": "shop.mail", "error": "builtins.LookupError"}
    requested = {"retry_requested_at": {"$exists": True}}
    first = (await page.post("letters/retry", group)).json
    assert (first["count"], first["more"]) == (4, True)
    assert sorted(one["key"] for one in state.held.find(requested)) == [0, 1, 2, 3]
    state.held.delete_one({"key": 0})  # delivered
    now = {"last_attempt_at": datetime.now(UTC) + timedelta(seconds=5), "retries": 1, "error.type": "x.Error"}
    state.held.update_one({"key": 1}, {"$set": now, "$unset": {"retry_requested_at": ""}})  # failed again
    refused = {"at": datetime.now(UTC) + timedelta(seconds=5), "text": "no such receiver"}
    state.held.update_one({"key": 2}, {"$set": {"retry_refused": refused}, "$unset": {"retry_requested_at": ""}})
    asked = {name: value for name, value in group.items() if name != "all"}
    progress = (await page.get("letters/retried", **asked, began=first["began"])).json
    assert progress == {"left": 1, "failed": 1, "refused": 1}
    second = (await page.post("letters/retry", {**group, "began": first["began"]})).json
    third = (await page.post("letters/retry", {**group, "began": first["began"]})).json
    assert (second["began"], second["count"], third["count"], third["more"]) == (first["began"], 4, 2, False)
    state.held.update_one(
        {"key": 3}, {"$set": {"retrying_since": datetime.now(UTC), "lane": "l"}, "$unset": requested}
    )
    assert (await page.post("letters/stop", group)).json == {"count": 6}
    assert (await page.get("letters/retried", **asked, began=first["began"])).json["left"] == 1
    assert state.held.count_documents(requested) == 0


async def test_many_dead_letters_are_dropped_in_steps(page, state, database, monkeypatch):
    monkeypatch.setattr("dispatcher.operate.letter_groups.STEP", 4)
    state.held.insert_many([failed(database, number) for number in range(6)])
    state.held.update_one({"key": 0}, {"$set": {"retry_requested_at": datetime.now(UTC)}})
    first = (await page.post("letters/drop", {"all": True})).json
    assert (first["count"], first["more"]) == (4, True)
    state.held.insert_one(failed(database, 7, last_attempt_at=datetime.now(UTC) + timedelta(seconds=5)))
    second = (await page.post("letters/drop", {"all": True, "began": first["began"]})).json
    assert (second["count"], second["more"]) == (1, False)
    assert [one["key"] for one in state.held.find().sort("key")] == [0, 7]


async def test_a_dropped_dead_letter_leaves_no_files(page, state, database):
    one, another = (GridFSBucket(state, "held").upload_from_stream("x", b"x") for _ in range(2))
    state.held.insert_many([letter(database, 1, files={"document": one}), letter(database, 2)])
    assert (await page.post("letters/drop", {"ids": ["delivery-001:00aa:shop.User"]})).json == {"count": 1}
    assert [one["key"] for one in state.held.find()] == [2]
    assert [file["_id"] for file in state["held.files"].find()] == [another]
    assert [chunk["files_id"] for chunk in state["held.chunks"].find()] == [another]


@pytest.mark.parametrize("mark", ["retry_requested_at", "retrying_since"])
async def test_a_dead_letter_in_retry_is_not_dropped(page, state, database, mark):
    """The retried delivery may succeed, or write the dead letter again."""
    trying = letter(database, 1, **{mark: datetime.now(UTC)})
    state.held.insert_many([trying, letter(database, 2)])
    answer = await page.post("letters/drop", {"ids": [trying["_id"]]})
    assert (answer.status, "being retried" in answer.json["error"]) == (409, True)
    assert (await page.post("letters/drop", {"all": True})).json["count"] == 1
    assert [one["_id"] for one in state.held.find()] == [trying["_id"]]


async def test_one_receiver_or_all_receivers_can_be_paused_and_resumed(page, state, database):
    known = {"id": "00aa", "name": "shop.mail", "signal": "post_save", "document": "shop.User"}
    known["formerly"] = ["shop.post"]
    now = datetime.now(UTC)
    state.members.insert_one({"_id": "m1", "group": database, "receivers": [known], "seen_at": now})
    assert (await page.post("pause", {"receiver": "shop.mail"})).status == 200
    (paused,) = state.controls.find()
    assert (paused["group"], paused["receiver_name"], paused["by"]) == (database, "shop.mail", "dashboard")
    told = (await page.get("state")).json
    assert [(one["name"], one["paused"]) for one in told["receivers"]] == [("shop.mail", True)]
    assert told["paused_all"] is False
    state.controls.update_one({}, {"$set": {"receiver_name": "shop.post"}})
    await page.post("pause", {"receiver": "shop.mail"})
    assert state.controls.count_documents({}) == 1, "the receiver is already paused under its earlier name"
    assert [one["paused"] for one in (await page.get("state")).json["receivers"]] == [True]
    assert (await page.post("pause", {"receiver": None})).status == 200
    assert (await page.get("state")).json["paused_all"] is True
    assert (await page.post("resume", {"receiver": "shop.mail"})).status == 200
    assert [one["receiver_name"] for one in state.controls.find()] == [None]
    assert (await page.post("resume", {"receiver": None})).status == 200
    assert state.controls.count_documents({}) == 0


async def test_a_receiver_called_by_this_process_can_be_paused(page, state):
    page.observer.stats.figures_of("shop.mail", "post_save")
    assert (await page.post("pause", {"receiver": "shop.mail"})).status == 200
    assert state.controls.count_documents({"receiver_name": "shop.mail"}) == 1


@pytest.mark.parametrize("what", ["retry", "drop"])
async def test_a_retry_or_drop_of_the_dead_letters_of_an_unknown_receiver_is_an_error(page, state, database, what):
    state.held.insert_one(letter(database, 1))
    answer = await page.post(f"letters/{what}", {"all": True, "receiver": "shop.mial"})
    assert (answer.status, "Did you mean 'shop.mail'?" in answer.json["error"]) == (404, True)
    assert [set(one) for one in state.held.find()] == [set(letter(database, 1))]


async def test_an_unknown_receiver_is_not_paused(page, state):
    for path in ("pause", "resume"):
        answer = await page.post(path, {"receiver": "shop.mial"})
        assert (answer.status, "shop.mial" in answer.json["error"]) == (404, True)
    assert state.controls.count_documents({}) == 0
