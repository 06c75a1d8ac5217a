"""The dashboard of a real daemon in Chromium."""

import time

import pytest
from playwright.sync_api import Route, expect

from tests.acceptance.pages import (
    BROKEN_WORDS,
    FILLED,
    HOSTILE,
    SCROLLS_SIDEWAYS,
    TOKEN,
    Watched,
    figure,
    link_of,
    row,
    tile,
    unlock,
    url_of,
)
from tests.books import book
from tests.support import eventually_sync


@pytest.mark.slow
def test_the_page_shows_deliveries_and_executes_no_script_in_a_document(browser, shown, foreign):
    watched = Watched(browser, url_of(shown))
    page = watched.page
    title = page.title()
    assert page.evaluate(FILLED, "plot-throughput") < 200  # an empty plot: only its letters have such pixels
    foreign["accounts"].insert_many([{"name": f"account {number}"} for number in range(200)])
    foreign["accounts"].insert_one({"name": HOSTILE})
    gaps = foreign.client[f"{foreign.name}_state"]["gaps"]
    gaps.insert_one({"_id": HOSTILE, "group": foreign.name, "noted_at": "yesterday"})
    eventually_sync(lambda: page.evaluate(FILLED, "plot-throughput") > 1_000, what="the plot moves")
    expect(row(page, "works").locator("[data-label=Delivered]")).to_have_text("201")
    expect(page.locator("#partitions tbody tr")).to_have_count(1)
    expect(page.locator("#members tbody tr")).to_have_count(1)
    expect(page.locator("#status")).to_have_text("delivering")
    expect(row(page, "works").locator("[data-label=State]")).to_have_text("delivering")
    expect(tile(page, "Dead letters")).to_have_text("1")
    expect(page.locator("#misfits tbody tr")).to_have_count(1)
    expect(page.locator("#misfits [data-label=Document]")).to_contain_text("<img src=x onerror=")
    expect(page.locator("#letters-locked")).to_have_text("Dead letters hold documents: unlock to see them.")
    expect(page.locator(".letter")).to_have_count(0)
    unlock(page, TOKEN)

    page.locator(".letter summary").click()
    letter = page.locator(".letter[open]")
    expect(letter).to_contain_text("LookupError: no such account: <script>")
    expect(letter.locator("pre").first).to_contain_text("<img src=x onerror=")
    expect(letter.locator("pre").last).to_contain_text("in breaks")
    assert page.locator("img[src=x]").count() == 0
    assert page.title() == title

    assert watched.complaints == []
    assert watched.hosts == {page.url.split("/")[2]}
    watched.close()
    for width in (390, 320):
        phone = Watched(browser, link_of(shown), viewport={"width": width, "height": 844}, has_touch=True)
        phone.page.locator(".letter summary").tap()
        expect(phone.page.locator(".letter[open] pre").last).to_contain_text("in breaks")
        assert not phone.page.evaluate(SCROLLS_SIDEWAYS)
        assert phone.complaints == []
        phone.close()


@pytest.mark.slow
def test_the_last_hours_are_shown_on_request(browser, shown):
    """A member delivered for an hour, from four to three hours ago."""
    now = time.time()
    step = {"seconds": 60.0, "lag_seconds": 0.0, "read": 0, "failed": 0, "retried": 0, "latency": [0, 0]}
    minutes = range(360, 0, -1)
    delivered = [1_000 if 180 < minute <= 240 else 0 for minute in minutes]
    steps = [
        {**step, "at": now - 60.0 * minute, "delivered": count}
        for minute, count in zip(minutes, delivered, strict=True)
    ]
    receivers = {"works post_save": {"delivered": delivered, "failed": [0] * 360, "retried": [0] * 360}}
    history = {"bounds": [1.0], "steps": steps, "receivers": receivers, "last": None}
    context = browser.new_context()
    context.route("**/api/history", lambda route: route.fulfill(json=history))
    page = context.new_page()
    page.goto(url_of(shown))
    page.wait_for_selector("body[data-loaded]")
    assert page.evaluate(FILLED, "plot-throughput") < 200
    for choice, filled in (("6 hours", True), ("hour", False), ("6 hours", True), ("15 minutes", False)):
        page.get_by_label("Last").select_option(choice)
        eventually_sync(
            lambda want=filled: (page.evaluate(FILLED, "plot-throughput") > 1_000) is want, what=choice
        )
        eventually_sync(lambda want=filled: bool(spark(page, "works", "good")) is want, what=f"row: {choice}")
    context.close()


def spark(page, receiver: str, kind: str) -> str:
    """The path of the small chart in the row of a receiver."""
    return row(page, receiver).locator(f".spark-{kind}").get_attribute("d")


@pytest.mark.slow
def test_each_receiver_has_a_chart_an_error_rate_and_its_limits(browser, shown, foreign):
    watched = Watched(browser, link_of(shown))
    page = watched.page
    foreign["accounts"].insert_many([{"name": f"good {n}"} for n in range(3)])
    foreign["accounts"].insert_one({"name": HOSTILE})
    expect(row(page, "works").locator("[data-label=Errors]")).to_have_text("0 %")
    expect(row(page, "breaks").locator("[data-label=Errors]")).to_have_text("25 %")
    expect(row(page, "works").locator("[data-label=Limits]")).to_have_text("1000 at once")
    expect(row(page, "breaks").locator("[data-label=Limits]")).to_have_text("")
    eventually_sync(lambda: spark(page, "works", "good"), what="the chart of works")
    eventually_sync(lambda: "NaN" not in spark(page, "breaks", "bad") != "", what="the chart of breaks")
    expect(page.locator("#receiver-chart")).to_be_hidden()
    page.get_by_role("button", name="Chart of breaks").click()
    expect(page.locator("#chart-receiver")).to_have_text("breaks")
    eventually_sync(lambda: page.evaluate(FILLED, "plot-errors") > 1_000, what="the error rate is drawn")
    eventually_sync(lambda: page.evaluate(FILLED, "plot-receiver") > 1_000, what="the attempts are drawn")
    page.get_by_role("button", name="Chart of works").click()
    expect(page.locator("#chart-receiver")).to_have_text("works")
    page.set_viewport_size({"width": 320, "height": 844})
    assert not page.evaluate(SCROLLS_SIDEWAYS)
    cells = page.locator("#receivers td").evaluate_all(
        "all => all.filter((one) => one.scrollWidth > one.clientWidth)"
    )
    assert cells == []  # no content covers the next cell
    page.get_by_role("button", name="Close", exact=True).click()
    expect(page.locator("#receiver-chart")).to_be_hidden()
    assert watched.complaints == []
    watched.close()


@pytest.mark.slow
def test_words_never_break_in_the_middle(browser, shown, foreign):
    long = "billing.receivers.after_commit.send_confirmation_with_attachment"

    def with_long_names(route: Route) -> None:
        answer = route.fetch()
        state = answer.json()
        of_receivers = [{**one, "name": long, "why": f"{long} is failing"} for one in state["receivers"]]
        members = [{**one, "host": "worker-0123456789abcdef.production.example.org"} for one in state["members"]]
        health = {**state["health"], "why": f"{long} is failing"}
        route.fulfill(
            response=answer, json={**state, "receivers": of_receivers, "members": members, "health": health}
        )

    watched = Watched(browser, link_of(shown))
    page = watched.page
    foreign["accounts"].insert_one({"name": f"<{'x' * 300}"})
    page.locator(".letter summary").click()
    expect(page.locator(".letter[open] pre").last).to_contain_text("in breaks")
    page.route("**/api/state", with_long_names)
    expect(page.locator("#why")).to_have_text(f"{long} is failing")
    for width in (1400, 1000, 641, 390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate(BROKEN_WORDS) == [], width
        assert not page.evaluate(SCROLLS_SIDEWAYS), width
    page.unroute_all(behavior="wait")
    assert watched.complaints == []
    watched.close()


@pytest.mark.slow
def test_a_partial_count_of_dead_letters_is_shown_as_a_minimum(browser, shown):
    def with_many(route: Route) -> None:
        answer = route.fetch()
        many = {"dead_letter_count": 12345, "at_least": ["dead_letters"]}
        route.fulfill(response=answer, json={**answer.json(), **many})

    watched = Watched(browser, url_of(shown))
    watched.page.route("**/api/state", with_many)
    expect(tile(watched.page, "Dead letters")).to_have_text("12,345 or more")
    expect(watched.page.locator("#letter-count")).to_have_text("12,345 or more")
    watched.page.unroute_all(behavior="wait")
    assert watched.complaints == []
    watched.close()


@pytest.mark.slow
def test_the_processes_that_claim_are_shown(browser, shown, foreign):
    def with_waiting(route: Route) -> None:
        answer = route.fetch()
        state = answer.json()
        waiting = {"waiting": 3, "oldest_seconds": 301.0, "taken_over": 7, "orphaned": 1, "released": 2}
        books = [{**one, "waiting": 3 if one["pid"] == 1 else 0} for one in state["claims"]["books"]]
        route.fulfill(response=answer, json={**state, "claims": {**state["claims"], **waiting, "books": books}})

    watched = Watched(browser, url_of(shown))
    page = watched.page
    expect(page.locator("#claims-section")).to_be_hidden()
    names = ("open", "released", "taken over", "orphaned", "processes")
    assert [figure(page, "Claims", name).inner_text() for name in names] == ["0"] * 5
    claims = foreign.client[f"{foreign.name}_state"].claims
    claims.insert_many([book(foreign.name, 1, open=[1, 3], host=HOSTILE), book(foreign.name, 2, silent=1_200)])
    rows = page.locator("#claims tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first.locator("[data-label=Process]")).to_have_text(f"{HOSTILE}, pid 1")
    expect(rows.first.locator("[data-label=Open]")).to_have_text("3")
    expect(rows.last.locator("[data-label=State]")).to_have_text("silent")
    expect(rows.last.locator("[data-label='Last beat']")).to_contain_text("min ago")
    expect(figure(page, "Claims", "open")).to_have_text("5")
    expect(figure(page, "Claims", "processes")).to_have_text("1")
    page.route("**/api/state", with_waiting)
    for name, text in {"oldest waits": "5 min", "taken over": "7", "orphaned": "1", "released": "2"}.items():
        expect(figure(page, "Claims", name)).to_have_text(text)
    expect(rows.first.locator("[data-label=Waiting]")).to_have_text("3")
    expect(page.locator(".tile.wide.bad", has_text="Claims")).to_have_count(1)
    page.set_viewport_size({"width": 320, "height": 844})
    assert not page.evaluate(SCROLLS_SIDEWAYS)
    page.unroute_all(behavior="wait")
    assert watched.complaints == []
    watched.close()


@pytest.mark.slow
def test_an_answer_to_a_request_from_before_the_unlock_does_not_lock_the_page(browser, shown):
    watched = Watched(browser, url_of(shown))
    page = watched.page
    held: list[Route] = []
    page.route("**/api/state", lambda route: route.continue_() if held else held.append(route))
    eventually_sync(lambda: page.wait_for_timeout(20) or held, what="the page sends a request")
    unlock(page, TOKEN)
    expect(page.locator("#pause-all")).to_be_visible()
    with page.expect_response("**/api/state") as late:
        held[0].continue_()
    assert late.value.json()["may_change"] is False
    with page.expect_response(lambda answer: "/api/state" in answer.url) as next_:
        pass
    assert next_.value.json()["may_change"] is True
    expect(page.locator("#pause-all")).to_be_visible()
    expect(page.get_by_role("button", name="Unlock").first).to_be_hidden()
    watched.close()


@pytest.mark.slow
def test_a_link_without_a_valid_token_opens_the_page_locked(browser, shown):
    for token in ("%E0%A4%A", "%", "", "wrong"):
        watched = Watched(browser, f"{url_of(shown)}#token={token}")
        page = watched.page
        expect(page.locator("#status")).not_to_have_text("connecting")
        expect(page.get_by_role("button", name="Unlock").first).to_be_visible()
        assert "#" not in page.url
        if "%" in token:
            expect(page.locator("#toasts")).to_contain_text("The token in the link can't be read")
        unlock(page, TOKEN)
        expect(page.locator("#pause-all")).to_be_visible()
        assert watched.complaints == []
        watched.close()


@pytest.mark.slow
def test_an_operator_retries_pauses_and_resumes(browser, shown, foreign, mended):
    state = foreign.client[f"{foreign.name}_state"]
    watched = Watched(browser, url_of(shown))
    page = watched.page
    foreign["accounts"].insert_one({"name": HOSTILE})

    page.get_by_role("button", name="Unlock").first.click()
    expect(page.locator("#unlock-dialog")).to_contain_text("DISPATCHER_HTTP_TOKEN")
    page.get_by_role("button", name="Cancel").first.click()
    unlock(page, "sixteen letters or less")
    expect(page.locator("#token-trouble")).to_have_text("The token is wrong.")
    page.get_by_role("button", name="Cancel").first.click()
    assert watched.complaints == [
        "Failed to load resource: the server responded with a status of 401 (Unauthorized)"
    ]
    watched.complaints.clear()
    expect(page.get_by_role("button", name="Retry")).to_have_count(0)
    unlock(page, TOKEN)
    page.locator(".letter summary").click()
    expect(row(page, "breaks").locator("[data-label=State]")).to_have_text("failing")
    expect(page.locator("#status")).to_have_text("failing")
    expect(page.locator("#why")).to_have_text("breaks is failing")

    mended.touch()
    page.locator(".letter[open]").get_by_role("button", name="Retry").click()
    expect(page.locator(".letter")).to_have_count(0)
    assert state.held.count_documents({}) == 0

    row(page, "works").get_by_role("button", name="Pause works").click()
    expect(row(page, "works").locator("[data-label=State]")).to_have_text("paused")
    eventually_sync(lambda: shown.lines("dispatcher.paused"), what=shown)
    foreign["accounts"].insert_one({"name": "waits"})
    expect(page.locator("#parked tbody tr")).to_contain_text("works")
    row(page, "works").get_by_role("button", name="Resume works").click()
    expect(page.locator("#parked-section")).to_be_hidden()
    expect(row(page, "works").locator("[data-label=Delivered]")).to_have_text("2")

    page.get_by_role("button", name="Pause everything").click()
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.locator("#status")).to_have_text("paused")
    page.locator("#pause-all").click()
    expect(page.locator("#status")).not_to_have_text("paused")
    assert watched.complaints == []

    page.reload()
    expect(page.locator("#pause-all")).to_be_visible()  # the tab still has the token
    shown.kill()
    expect(page.locator("#status")).to_have_text("no answer")
    watched.close()
