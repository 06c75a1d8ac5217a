"""The sample application of the demo: its location, its commands, and the expected effects of its receivers."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from pymongo import MongoClient
from pymongo.database import Database

from dispatcher.demo.ledger import Ledger
from dispatcher.exceptions import ApplicationError


class Shop(NamedTuple):
    """The sample application.

    Attributes:
        package: its import name.
        directory: the directory from which it is imported; None is the working directory.
    """

    package: str
    directory: Path | None

    @property
    def environment(self) -> dict[str, str]:
        """Our environment without the settings of the user's application: they must not change the demo."""
        return {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("DISPATCHER_") and name != "MONGOZ_SETTINGS_MODULE"
        }

    def dispatcher(self, url: str) -> list[str]:
        """The command that starts a dispatcher for the sample application. The dispatcher logs each delivery."""
        return [*self._command("run", url), "--log-level", "debug"]

    def relay(self, url: str) -> list[str]:
        """The command that starts a relay for the sample application."""
        return self._command("relay", url)

    def _command(self, name: str, url: str) -> list[str]:
        command = [sys.executable, "-m", "dispatcher", name, f"{self.package}.app:registry", "--url", url]
        return [*command, "--log-format", "json"]

    def writer(self, url: str, seconds: float, rate: float) -> list[str]:
        """The command that starts the client that writes to the shop. It reports each write."""
        command = [sys.executable, "-m", f"{self.package}.writer", "--url", url, "--report"]
        return [*command, "--seconds", str(seconds), "--rate", str(rate)]

    def owed(self) -> dict[tuple[str, str], frozenset[str]]:
        """The receivers that the dispatcher must call, by (namespace, signal)."""
        command = [sys.executable, "-m", "dispatcher", "receivers", f"{self.package}.app:registry", "--json"]
        listing = subprocess.run(  # noqa: S603 - our own interpreter
            command,
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C must reach this process only
        )
        if listing.returncode:
            raise ApplicationError(f"The sample application does not load: {listing.stderr.strip()}")
        owed: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in json.loads(listing.stdout):
            owed[row["collection"], row["signal"]].add(row["receiver"])
        return {key: frozenset(receivers) for key, receivers in owed.items()}


def find_shop() -> Shop:
    """Find the sample application: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    if (package / "examples" / "shop" / "app.py").is_file():
        return Shop("dispatcher.examples.shop", None)
    if (package.parent / "examples" / "shop" / "app.py").is_file():
        return Shop("examples.shop", package.parent)
    raise ApplicationError(
        f"The sample application is missing: there is no examples/shop in or beside {package}.",
        remedy="Install it again: pip install . (in a checkout of the repository)",
    )


class Effect(NamedTuple):
    """An expected effect of the receivers of the shop."""

    name: str
    text: str
    holds: bool


def check_effects(url: str, ledger: Ledger) -> list[Effect]:
    """Check in the database that all writes had the expected effects."""
    with MongoClient[dict[str, Any]](url) as client:
        shop = client["shop"]
        return [_stock(shop, ledger), _mails(shop, ledger), _audit(shop, ledger)]


def _stock(shop: Database[dict[str, Any]], ledger: Ledger) -> Effect:
    rows = list(shop["stock"].find())
    stocked, level = sum(row["stocked"] for row in rows), sum(row["level"] for row in rows)
    ordered = ledger.ordered.total()
    return Effect(
        "stock level",
        f"{level:,} left of {stocked:,}, {ordered:,} ordered",
        all(row["level"] == row["stocked"] - ledger.ordered[row["_id"]] for row in rows),
    )


def _mails(shop: Database[dict[str, Any]], ledger: Ledger) -> Effect:
    mails, users = shop["outbox"].count_documents({}), ledger.operations["shop.users", "insert"]
    return Effect("welcome mails", f"{mails:,} for {users:,} new users", mails == users)


def _audit(shop: Database[dict[str, Any]], ledger: Ledger) -> Effect:
    entries = shop["audit_trail"].count_documents({})
    return Effect("audit trail", f"{entries:,} entries for {ledger.written:,} changes", entries == ledger.written)
