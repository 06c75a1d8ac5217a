"""The dashboard of a relay, and of a group that reads from its topic, in Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from playwright.sync_api import Browser, Route, expect

from dispatcher.embedded.broker import EmbeddedBroker
from tests.acceptance.pages import BROKEN_WORDS, SCROLLS_SIDEWAYS, Watched, figure, tile, url_of
from tests.support import Daemon, daemon, eventually_sync

pytest.importorskip("confluent_kafka", reason="the extra `kafka` is not installed")
from tests.integration.relaying import RelayProcess, relay_name

APP = "tests.acceptance.apps.dashboard:registry"


class Shown(NamedTuple):
    """A relay and a dispatcher that reads from its topic."""

    relay: Daemon
    dispatcher: Daemon
    topic: str


@pytest.fixture
def shown(mongo, database, broker: EmbeddedBroker, tmp_path: Path) -> Iterator[Shown]:
    name = relay_name()
    environment = {
        "SHOWN_URL": mongo.url,
        "SHOWN_GROUP": database,
        "SHOWN_MENDED": str(tmp_path / "mended"),
        "DISPATCHER_STATE_DATABASE": f"{database}_state",
        "DISPATCHER_HTTP": "127.0.0.1:0",
        "DISPATCHER_HTTP_TOKEN": "sixteen letters or more",
        "DISPATCHER_KAFKA": broker.address,
        "DISPATCHER_KAFKA_TOPIC": f"mongoz.{name}",
        "DISPATCHER_RELAY_NAME": name,
    }
    relay = RelayProcess(APP, "--partitions", "3", cwd=tmp_path, **environment)
    try:
        eventually_sync(lambda: relay.lines("relay.term"), what="the relay publishes")
        with daemon(APP, cwd=tmp_path, **environment) as running:
            yield Shown(relay, running, f"mongoz.{name}")
    finally:
        relay.kill()


@pytest.mark.slow
def test_relay_and_broker_are_shown_on_the_page_of_a_group(browser: Browser, shown: Shown, foreign):
    watched = Watched(browser, url_of(shown.dispatcher))
    page = watched.page
    foreign["accounts"].insert_many([{"name": f"account {number}"} for number in range(20)])
    expect(page.locator("#receivers tr", has_text="works").locator("[data-label=Delivered]")).to_have_text("20")
    expect(page.locator("#topic")).to_contain_text(f"topic {shown.topic} of the Kafka cluster")
    expect(page.locator("#relay tbody tr")).to_have_count(1)
    expect(page.locator("#relay [data-label=State]")).to_have_text("publishing")
    expect(figure(page, "Relay", "state")).to_have_text("publishing")
    expect(figure(page, "Relay", "alive")).to_have_text("1")
    expect(figure(page, "Relay", "lag")).to_have_text("0 s")
    expect(figure(page, "Broker", "answers")).to_have_text("yes")
    expect(figure(page, "Broker", "lag in records")).to_have_text("0")
    expect(figure(page, "Claims", "open")).to_have_text("0")
    expect(tile(page, "Delivery lag")).to_have_text("0 s")
    page.set_viewport_size({"width": 390, "height": 844})
    assert (page.evaluate(SCROLLS_SIDEWAYS), page.evaluate(BROKEN_WORDS)) == (False, [])
    expect(page.locator("#partitions tbody tr")).to_have_count(3)
    expect(page.locator("#members [data-label='Partitions']")).to_have_text("0 to 2")
    expect(page.locator("#partitions [data-label='Records to read']").first).to_have_text("0")
    expect(page.locator("#readers-section")).to_be_hidden()
    shown.relay.kill()
    expect(page.locator("#relay [data-label=State]")).to_have_text("down")
    expect(figure(page, "Relay", "state")).to_have_text("down")
    expect(page.locator(".tile.wide.bad", has_text="Relay")).to_have_count(1)
    expect(page.locator("#status")).to_have_text("behind")
    expect(page.locator("#why")).to_contain_text("no relay is alive")
    assert watched.complaints == []
    watched.close()


@pytest.mark.slow
def test_a_relay_has_its_own_page_as_soon_as_it_has_read_the_state(browser: Browser, shown: Shown):
    context = browser.new_context()
    page = context.new_page()
    unknown = {"is_relay": False, "relay": None, "source": {"topic": None, "cluster": None}}

    def at_first(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), **unknown})

    page.route("**/api/state", at_first, times=1)
    page.goto(url_of(shown.relay))
    expect(page.locator("#publishes tbody tr")).to_have_count(1)
    expect(page.locator("#receivers-section")).to_be_hidden()
    context.close()


@pytest.mark.slow
def test_a_relay_has_a_page_without_receivers(browser: Browser, shown: Shown, foreign):
    watched = Watched(browser, url_of(shown.relay))
    page = watched.page
    expect(page.locator("#group")).to_have_text(shown.topic)
    expect(page.locator("#publishes tbody tr")).to_contain_text(f"{foreign.name}.accounts")
    expect(page.locator("#readers tbody tr")).to_contain_text(foreign.name)
    expect(page.locator("#readers [data-label=Alive]")).to_have_text("1")
    expect(figure(page, "Relay", "lag")).to_have_text("0 s")
    expect(figure(page, "Broker", "readers")).to_have_text("1")
    for section in ("receivers-section", "letters-section", "latency-section", "pause-all", "unlock"):
        expect(page.locator(f"#{section}")).to_be_hidden()
    refused = page.evaluate("fetch('api/pause', {method: 'POST'}).then((answer) => answer.status)")
    assert refused in (404, 405)
    page.set_viewport_size({"width": 390, "height": 844})
    assert not page.evaluate(SCROLLS_SIDEWAYS)
    shown.dispatcher.terminate()
    foreign["accounts"].insert_many([{"name": f"account {number}"} for number in range(7)])
    expect(page.locator("#readers [data-label='Broker lag']")).to_have_text("7")
    expect(page.locator("#readers [data-label=Alive]")).to_have_text("0")
    assert [one for one in watched.complaints if "404" not in one and "405" not in one] == []
    watched.close()
