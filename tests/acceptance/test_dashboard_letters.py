"""Dead letters on the dashboard in Chromium: groups, search, retry and drop of many, stop."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from playwright.sync_api import Page, expect

from dispatcher.parking.record import short_id
from tests.acceptance.pages import BROKEN_WORDS, SCROLLS_SIDEWAYS, Watched, link_of
from tests.support import eventually_sync


def seeded(foreign: Any, count: int, kind: str = "builtins.TimeoutError", **fields: Any) -> None:
    """Copies of a real dead letter, for other documents and with another error."""
    held = foreign.client[f"{foreign.name}_state"].held
    one = eventually_sync(lambda: held.find_one({"reason": "failed"}), what="a dead letter")
    at = datetime.now(UTC) - timedelta(days=2)
    error = {**one["error"], "type": kind, "message": f"{kind.rpartition('.')[2]}: gave up"}
    copied = {**one, "error": error, "last_attempt_at": at, **fields}
    ids = [f"{kind}-{number:06}" for number in range(count)]
    held.insert_many([{**copied, "_id": id_, "short_id": short_id(id_), "key": ObjectId()} for id_ in ids])


def group(page: Page, error: str) -> Any:
    return page.locator(".group", has=page.locator("summary", has_text=error))


def confirmed(page: Page, name: str) -> None:
    page.locator("#confirm-dialog").get_by_role("button", name=name).click()


@pytest.mark.slow
def test_dead_letters_are_grouped_found_retried_and_dropped(browser, shown, foreign, mended):
    held = foreign.client[f"{foreign.name}_state"].held
    watched = Watched(browser, link_of(shown))
    page = watched.page
    foreign["accounts"].insert_many([{"name": "<a"}, {"name": "<b"}, {"name": "<c"}])
    eventually_sync(lambda: held.count_documents({"reason": "failed"}) == 3, what="dead letters")
    seeded(foreign, 12)
    expect(page.locator(".group")).to_have_count(2)
    expect(page.locator(".group .count").first).to_have_text("12")
    ours = group(page, "LookupError")
    expect(ours.locator("summary").first).to_contain_text("breaks")
    ours.locator("summary").first.click()
    expect(ours.locator(".letter")).to_have_count(3)

    seventh = short_id("builtins.TimeoutError-000007")
    page.get_by_label("Id of letter or document").fill(seventh)
    expect(page.locator(".group")).to_have_count(1)
    expect(page.locator(".letter summary .mono").first).to_have_text(seventh)
    key = held.find_one({"error.type": "builtins.LookupError"})["key"]
    page.get_by_label("Id of letter or document").fill(str(key))
    expect(page.locator(".letter summary")).to_contain_text(str(key))
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".group")).to_have_count(2)
    page.get_by_label("Reason").select_option("invalid")
    expect(page.locator("#letters")).to_have_text("No dead letters match.")
    page.get_by_label("Reason").select_option("")
    page.get_by_label("Receiver").select_option("=breaks")
    yesterday = (datetime.now() - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S")
    page.get_by_label("From").fill(yesterday)
    expect(page.locator(".group")).to_have_count(1)
    expect(page.locator("#drop-found")).to_have_text("Drop all 3")
    page.get_by_role("button", name="Clear").click()

    ours.get_by_role("button", name="Retry 3 dead letters").click()
    confirmed(page, "Retry")
    expect(page.locator(".run")).to_contain_text("3 of 3 done: 3 failed again.")
    expect(ours.locator(".count")).to_have_text("3")
    page.locator(".run").get_by_role("button", name="Close").click()
    expect(page.locator(".run")).to_have_count(0)
    mended.touch()
    ours.get_by_role("button", name="Retry 3 dead letters").click()
    confirmed(page, "Cancel")
    expect(page.locator(".run")).to_have_count(0)
    ours.get_by_role("button", name="Retry 3 dead letters").click()
    confirmed(page, "Retry")
    expect(page.locator(".run")).to_contain_text("3 of 3 done.")
    expect(page.locator(".group")).to_have_count(1)

    group(page, "TimeoutError").locator("summary").first.click()
    for width in (390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        assert (page.evaluate(SCROLLS_SIDEWAYS), page.evaluate(BROKEN_WORDS)) == (False, [])
    page.get_by_role("button", name="Drop 12 dead letters").click()
    confirmed(page, "Drop")
    expect(page.locator(".run").last).to_contain_text("12 dropped.")
    expect(page.locator("#letters")).to_have_text("None.")
    expect(page.locator("#letter-search")).to_be_hidden()
    assert held.count_documents({}) == 0
    assert watched.complaints == []
    watched.close()


@pytest.mark.slow
def test_a_retry_of_many_dead_letters_shows_its_progress_and_can_be_stopped(browser, shown, foreign, mended):
    held = foreign.client[f"{foreign.name}_state"].held
    watched = Watched(browser, link_of(shown))
    page = watched.page
    foreign["accounts"].insert_one({"name": "<a"})
    seeded(foreign, 6_000)
    mended.touch()
    page.get_by_role("button", name="Retry all 6,001").click()
    confirmed(page, "Retry")
    run = page.locator(".run")
    eventually_sync(lambda: page.locator(".run progress").evaluate("bar => bar.value") > 0, what="progress")
    expect(run).to_contain_text("of 6,001")
    run.get_by_role("button", name="Stop").click()
    expect(run).to_contain_text("not retried. Retries that have begun go on.")
    assert held.count_documents({"retry_requested_at": {"$exists": True}}) == 0
    eventually_sync(lambda: not held.count_documents({"retrying_since": {"$exists": True}}), what="retries end")
    left = held.count_documents({})
    assert 0 < left < 6_001
    expect(page.locator("#letter-count")).to_have_text(f"{left:,}")

    held.update_many({}, {"$set": {"retry_requested_at": datetime(2099, 1, 1)}})  # by a command, or another page
    page.locator(".group summary").first.click()
    page.get_by_role("button", name="Stop retries").first.click()
    eventually_sync(lambda: not held.count_documents({"retry_requested_at": {"$exists": True}}), what="stopped")
    assert watched.complaints == []
    watched.close()
