"""The page about webhooks: its sender, its target and its orders work together as printed."""

import socket
import subprocess
import sys
from pathlib import Path

from dispatcher.embedded.server import EmbeddedMongo
from tests.integration.test_docs import blocks, localized, running, wait_for
from tests.support import PATIENCE, eventually_sync, free_port

PAGE = "docs/how-to/webhook.md"


def is_open(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_the_target_gets_what_the_page_prints(mongo: EmbeddedMongo, database: str, tmp_path: Path):
    """The orders may arrive in another order than printed. The signatures are right, or nothing would arrive."""
    printed = {block.title: block.text for block in blocks(PAGE)}
    port = str(free_port())
    for title, text in printed.items():
        if title.endswith(".py") and not title.startswith("output"):
            own = localized(text, mongo, database).replace("dispatched=True", f"dispatched={database!r}")
            (tmp_path / title).write_text(own.replace("9000", port))
    with (
        running(["python", "target.py"], tmp_path, tmp_path / "target", {}) as got,
        running(["dispatcher", "run", "app:registry"], tmp_path, tmp_path / "log", {}) as said,
    ):
        eventually_sync(lambda: is_open(int(port)), what="the target listens")
        wait_for("dispatcher.started", said)
        subprocess.run([sys.executable, "orders.py"], cwd=tmp_path, check=True, timeout=PATIENCE)
        wait_for("order of 10", got)
        wait_for("order of 20", got)
        wait_for("order of 30", got)
        assert got().splitlines()[0] == "too many requests"
        assert sorted(got().splitlines()) == sorted(printed["output of target.py"].splitlines())
    assert said().count("delivery.retry_after") == 1
    assert "delivery.attempt_failed" not in said()
