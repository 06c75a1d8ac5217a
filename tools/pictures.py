"""Makes the pictures of the documentation: `make pictures`.

    docs/images/demo.svg        the end of `dispatcher demo`, as a terminal shows it
    docs/images/dashboard.png   the dashboard of a busy group, in Chromium

Both pictures show real runs on an embedded MongoDB.
"""

import contextlib
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.live import Live

from dispatcher.demo import demo
from dispatcher.demo.run import demonstrate
from dispatcher.demo.screen import Screen
from dispatcher.embedded.server import embedded_mongo
from dispatcher.web.links import link_to

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
TOKEN = "sixteen letters or more"
SECONDS = 75
MEMBERS = 2

# The shop with two more receivers: one fails for some customers, and one is slow.
TROUBLED = """
import asyncio
import random

from examples.shop.app import registry
from examples.shop.models import Order, User
from mongoz.core.signals import post_save, post_update


@post_save(User, name="crm.sync_contact", retry=2)
async def sync_contact(sender, instance, **kwargs):
    await asyncio.sleep(random.uniform(0.005, 0.02))
    if str(instance.id)[-1] == "0":
        raise ConnectionError(f"CRM answers 503 for {instance.email}")


@post_update(Order, name="search.reindex")
async def reindex(sender, instance, **kwargs):
    await asyncio.sleep(random.uniform(0.01, 0.06))
"""


class Still(Screen):
    """The recording without the live view, because a terminal does not show this view after a demo."""

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        self._live = Live(get_renderable=str, auto_refresh=False)
        yield
        self._live = None

    def refresh(self) -> None:
        pass

    def print_line(self, text: str) -> None:
        if "#token=" not in text:  # the link does not work in a picture
            super().print_line(text)


def picture_of_the_demo(seconds: float = 12.0) -> None:
    """Run the demo in a terminal that is recorded."""
    console = Console(record=True, force_terminal=True, width=100, height=40, highlight=False, file=io.StringIO())
    with patch.object(demo, "Terminal", lambda **_: console), patch.object(demo, "Screen", Still):
        demonstrate(seconds)
    drawn = console.export_svg(title="dispatcher demo")
    # The SVG must not load a font from another host.
    (IMAGES / "demo.svg").write_text(re.sub(r"\s*@font-face \{[^}]*\}", "", drawn))


@contextlib.contextmanager
def running(*command: str, **environment: str) -> Iterator[None]:
    """A process during a `with` block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def free_address() -> str:
    """An address with a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def until_it_listens(where: str) -> None:
    """Wait until a process listens at an address."""
    host, _, port = where.rpartition(":")
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens at {where}"
            time.sleep(0.1)
        else:
            return


def picture_of_the_dashboard() -> None:
    """Run a group for a while, and take a picture of its dashboard."""
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        (Path(directory) / "troubled.py").write_text(TROUBLED)
        server = stack.enter_context(embedded_mongo())
        environment = {"PYTHONPATH": f"{directory}:{ROOT}", "DISPATCHER_HTTP_TOKEN": TOKEN}
        places = [free_address() for _ in range(MEMBERS)]
        for where in places:
            command = (
                "dispatcher",
                "run",
                "troubled:registry",
                "--url",
                server.url,
                "--http",
                where,
                "--partitions",
                "4",
            )
            stack.enter_context(running(*command, **environment))
            until_it_listens(where)
        writer = ("examples.shop.writer", "--url", server.url, "--rate", "80", "--seconds", str(SECONDS + 60))
        stack.enter_context(running(*writer))
        playwright = stack.enter_context(sync_playwright())
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1280, "height": 1180})
        page.goto(link_to(f"http://{places[0]}", TOKEN))
        page.wait_for_selector("body[data-loaded]")
        time.sleep(SECONDS)
        page.screenshot(path=IMAGES / "dashboard.png")


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    picture_of_the_demo()
    picture_of_the_dashboard()
