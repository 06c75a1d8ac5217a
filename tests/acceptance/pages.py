"""Pages of the dashboard in Chromium."""

from typing import Any
from urllib.parse import quote

from playwright.sync_api import Browser, Page

from tests.support import PATIENCE, Daemon, eventually_sync

APP = "tests.acceptance.apps.dashboard:registry"
TOKEN = "sixteen letters or more"
HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"

# Counts the filled pixels of a plot: the area below its first line. A line at zero has no such area.
FILLED = """id => {
  const canvas = document.querySelector(`#${id} canvas`);
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  let filled = 0;
  for (let at = 3; at < pixels.length; at += 4) filled += pixels[at] > 25 && pixels[at] < 45;
  return filled;
}"""
# The words of the page that are broken across lines.
BROKEN_WORDS = """() => {
  const broken = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.parentElement.checkVisibility()) continue;
    for (const { 0: word, index } of node.data.matchAll(/[\\p{L}\\p{N}_]+/gu)) {
      const range = document.createRange();
      range.setStart(node, index);
      range.setEnd(node, index + word.length);
      if (new Set([...range.getClientRects()].map((part) => Math.round(part.top))).size > 1) broken.push(word);
    }
  }
  return broken;
}"""
SCROLLS_SIDEWAYS = "document.documentElement.scrollWidth > window.innerWidth"


class Watched:
    """A page with records of its errors and requests."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self._context = browser.new_context(**options)
        self.page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("console", lambda said: self._complain(said.type, said.text))
        self.page.on("pageerror", lambda error: self._complain("error", str(error)))
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(url)
        self.page.wait_for_selector("body[data-loaded]")

    def _complain(self, kind: str, text: str) -> None:
        if kind in ("error", "warning") and "getImageData" not in text:  # caused by this test, see FILLED
            self.complaints.append(text)

    def close(self) -> None:
        self._context.close()


def url_of(running: Daemon) -> str:
    (listening,) = eventually_sync(lambda: running.lines("http.listening"), within=60, what=running)
    return f"{listening['address']}/dashboard/"


def link_of(running: Daemon) -> str:
    return f"{url_of(running)}#token={quote(TOKEN)}"


def tile(page: Page, name: str) -> Any:
    return page.locator(".tile", has_text=name).locator("dd")


def figure(page: Page, title: str, name: str) -> Any:
    """A figure of a tile with several figures."""
    exact = page.get_by_text(name, exact=True)
    return page.get_by_label(title, exact=True).locator("dl > div").filter(has=exact).locator("dd")


def row(page: Page, receiver: str) -> Any:
    return page.locator("#receivers tr", has_text=receiver)


def unlock(page: Page, token: str) -> None:
    page.get_by_role("button", name="Unlock").first.click()
    page.get_by_label("Token").fill(token)
    page.locator("#unlock-dialog").get_by_role("button", name="Unlock").click()
