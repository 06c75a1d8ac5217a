"""Another client of the shop's database: plain PyMongo, without mongoz, models or receivers.

Run it with `python -m examples.shop.writer --url mongodb://... --seconds 60`.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Any, NamedTuple

from bson import ObjectId
from pymongo import DeleteOne, InsertOne, MongoClient, ReplaceOne, UpdateOne
from pymongo.collection import Collection
from pymongo.errors import PyMongoError

Row = dict[str, Any]

PRODUCTS = ("chair", "desk", "lamp", "shelf", "stool")
NAMES = ("Ada", "Barbara", "Edsger", "Grace", "Hedy", "John", "Katherine", "Margaret", "Radia", "Tim")
CITIES = ("Bonn", "Graz", "Lyon", "Oslo", "Porto", "Turin")
STOCKED = 100_000
# Maximum number of documents of a kind: a client that writes for hours must also delete.
KEPT = 300


class Change(NamedTuple):
    """One write that changed one document."""

    namespace: str
    id: ObjectId
    operation: str
    row: Row


class Client:
    """Writes to a shop like its other services. It remembers its documents, to change them later.

    Args:
        users, orders: the collections of the shop.
        random: chooses the writes.
    """

    def __init__(self, users: Collection[Row], orders: Collection[Row], random: Random) -> None:
        self.users = users
        self.orders = orders
        self.random = random
        self.rows: dict[str, dict[ObjectId, Row]] = {users.full_name: {}, orders.full_name: {}}
        self.weights: dict[Callable[[], list[Change]], int] = {
            self.register: 12,
            self.order: 30,
            self.visit: 18,
            self.advance: 15,
            self.correct: 8,
            self.rename: 4,
            self.close_account: 3,
            self.cancel: 4,
            self.import_users: 3,
            self.upsert_user: 3,
        }

    def step(self) -> list[Change]:
        """Make a write. Returns its changes, in the order of the commits."""
        (write,) = self.random.choices(list(self.weights), list(self.weights.values()))
        if len(self.rows[self.orders.full_name]) > KEPT:
            write = self.cancel
        elif len(self.rows[self.users.full_name]) > KEPT:
            write = self.close_account
        return write()

    # Single documents

    def register(self) -> list[Change]:
        row = self.new_user()
        self.users.insert_one(row)
        return [self.wrote(self.users, "insert", row)]

    def order(self) -> list[Change]:
        customer = self.any_of(self.users)
        if customer is None:
            return self.register()
        row = self.new_order(customer["_id"])
        self.orders.insert_one(row)
        return [self.wrote(self.orders, "insert", row)]

    def visit(self) -> list[Change]:
        row = self.any_of(self.users)
        if row is None:
            return self.register()
        self.users.update_one({"_id": row["_id"]}, {"$inc": {"visits": 1}})
        return [self.wrote(self.users, "update", {**row, "visits": row["visits"] + 1})]

    def advance(self) -> list[Change]:
        row = self.any_of(self.orders)
        if row is None:
            return self.order()
        status = self.another_status(row)
        self.orders.update_one({"_id": row["_id"]}, {"$set": {"status": status}})
        return [self.wrote(self.orders, "update", {**row, "status": status})]

    def correct(self) -> list[Change]:
        row = self.any_of(self.orders)
        if row is None:
            return self.order()
        row = {**row, "status": self.another_status(row), "ship_to": self.address()}
        self.orders.replace_one({"_id": row["_id"]}, row)
        return [self.wrote(self.orders, "replace", row)]

    def rename(self) -> list[Change]:
        row = self.any_of(self.users)
        if row is None:
            return self.register()
        row = {**row, "name": self.random.choice(NAMES), "visits": row["visits"] + 1}
        self.users.replace_one({"_id": row["_id"]}, row)
        return [self.wrote(self.users, "replace", row)]

    def close_account(self) -> list[Change]:
        return self.delete(self.users) or self.register()

    def cancel(self) -> list[Change]:
        return self.delete(self.orders) or self.order()

    def delete(self, collection: Collection[Row]) -> list[Change]:
        row = self.any_of(collection)
        if row is None:
            return []
        collection.delete_one({"_id": row["_id"]})
        return [self.wrote(collection, "delete", row)]

    # Several writes in one call, and upserts

    def import_users(self) -> list[Change]:
        """Insert some users, then change one, replace one and delete one, in a single bulk write."""
        first, second, third, *rest = (self.new_user() for _ in range(self.random.randint(4, 8)))
        visited = {**first, "visits": 1}
        renamed = {**second, "name": "Alan", "visits": 1}
        self.users.bulk_write(
            [
                *(InsertOne(row) for row in (first, second, third, *rest)),
                UpdateOne({"_id": first["_id"]}, {"$set": {"visits": 1}}),
                ReplaceOne({"_id": second["_id"]}, renamed),
                DeleteOne({"_id": third["_id"]}),
            ]
        )
        return [
            *(self.wrote(self.users, "insert", row) for row in (first, second, third, *rest)),
            self.wrote(self.users, "update", visited),
            self.wrote(self.users, "replace", renamed),
            self.wrote(self.users, "delete", third),
        ]

    def upsert_user(self) -> list[Change]:
        """Count a visit of a known user or of a new one."""
        known = self.any_of(self.users) if self.random.random() < 0.5 else None
        row = known or self.new_user()
        row = {**row, "visits": row["visits"] + 1}
        values = {name: value for name, value in row.items() if name not in ("_id", "visits")}
        self.users.update_one({"_id": row["_id"]}, {"$inc": {"visits": 1}, "$setOnInsert": values}, upsert=True)
        return [self.wrote(self.users, "update" if known else "insert", row)]

    # The contents of documents

    def new_user(self) -> Row:
        name = self.random.choice(NAMES)
        address = f"{name.lower()}.{self.random.randrange(10**6)}@example.org"
        return {"_id": ObjectId(), "name": name, "email": address, "visits": 0, "joined_at": datetime.now(UTC)}

    def new_order(self, customer: ObjectId) -> Row:
        return {
            "_id": ObjectId(),
            "customer": customer,
            "product": self.random.choice(PRODUCTS),
            "quantity": self.random.randint(1, 5),
            "status": "placed",
            "ship_to": self.address(),
            "placed_at": datetime.now(UTC),
        }

    def address(self) -> Row:
        return {"street": f"Main Street {self.random.randint(1, 99)}", "city": self.random.choice(CITIES)}

    def another_status(self, row: Row) -> str:
        """A status that differs from the present one: an update that changes nothing makes no change event."""
        return self.random.choice([status for status in ("paid", "packed", "shipped") if status != row["status"]])

    def any_of(self, collection: Collection[Row]) -> Row | None:
        rows = self.rows[collection.full_name]
        return rows[self.random.choice(list(rows))] if rows else None

    def wrote(self, collection: Collection[Row], operation: str, row: Row) -> Change:
        rows = self.rows[collection.full_name]
        if operation == "delete":
            del rows[row["_id"]]
        else:
            rows[row["_id"]] = row
        return Change(collection.full_name, row["_id"], operation, row)


def fill_stock(stock: Collection[Row]) -> None:
    """Insert the products that are missing."""
    for product in PRODUCTS:
        values: Row = {"stocked": STOCKED, "level": STOCKED, "applied": []}
        stock.update_one({"_id": product}, {"$setOnInsert": values}, upsert=True)


def report(change: Change) -> None:
    """Print a line for machines. The line of an order has the quantity, so that the stock can be checked."""
    line = {"namespace": change.namespace, "id": str(change.id), "operation": change.operation}
    line |= {name: change.row[name] for name in ("product", "quantity") if name in change.row}
    print(json.dumps(line), flush=True)


def write(client: Client, options: argparse.Namespace, stop: threading.Event) -> int:
    """Write at a steady rate until the time is over, or until stopped. Returns the number of changes."""
    written = 0
    due = time.monotonic()
    end = due + options.seconds if options.seconds else float("inf")
    while due < end and not stop.wait(due - time.monotonic()):
        changes = client.step()
        written += len(changes)
        due += len(changes) / options.rate
        if options.report:
            for change in changes:
                report(change)
    return written


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.shop.writer", description=__doc__)
    parser.add_argument(
        "--url",
        default=os.environ.get("SHOP_MONGODB_URL", "mongodb://localhost:27017/?replicaSet=rs0"),
        help="the URL of the server",
    )
    parser.add_argument("--seconds", type=float, help="seconds to write; without it, write until stopped")
    parser.add_argument("--rate", type=float, default=20.0, help="changes per second")
    parser.add_argument("--seed", type=int, help="seed of the random writes; the same seed makes the same writes")
    parser.add_argument("--report", action="store_true", help="print a JSON line for every change")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    stop = threading.Event()

    def stop_soon(*_: object) -> None:
        # In a thread: the main thread may hold the lock of the event when the signal arrives.
        threading.Thread(target=stop.set, daemon=True).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_soon)
    try:
        with MongoClient[Row](options.url, serverSelectionTimeoutMS=10_000) as mongo:
            shop = mongo["shop"]
            fill_stock(shop["stock"])
            client = Client(shop["users"], shop["orders"], Random(options.seed))
            written = write(client, options, stop)
    except PyMongoError as error:
        sys.exit(f"writer: {error}")
    print(f"writer: {written} changes written", file=sys.stderr)


if __name__ == "__main__":
    main()
