"""The shop's documents. Other services write to the same collections, with mongoz or without."""

import os
from datetime import datetime
from typing import Any

import mongoz

# dispatched=True: a dispatcher serves this registry and delivers the writes of other clients. So our own writes
# carry a stamp that names the receivers that this process runs.
registry = mongoz.Registry(
    os.environ.get("SHOP_MONGODB_URL", "mongodb://localhost:27017/?replicaSet=rs0"), dispatched=True
)


class ShopDocument(mongoz.Document):
    """The base of all documents of the shop."""

    class Meta:
        abstract = True
        registry = registry
        database = "shop"


class KeyedDocument(ShopDocument):
    """A document with a chosen text as `_id`, so that writing it twice makes one document."""

    id: Any = mongoz.String(alias="_id")  # instead of an ObjectId

    class Meta(ShopDocument.Meta):
        abstract = True


class User(ShopDocument):
    name: str = mongoz.String(max_length=100)
    email: str = mongoz.Email()
    visits: int = mongoz.Integer(default=0, minimum=0)
    joined_at: datetime = mongoz.DateTime(auto_now_add=True)


class Address(mongoz.EmbeddedDocument):
    street: str = mongoz.String()
    city: str = mongoz.String()


class Order(ShopDocument):
    customer: mongoz.ObjectId = mongoz.ObjectId()
    product: str = mongoz.String()
    quantity: int = mongoz.Integer(minimum=1)
    status: str = mongoz.String(default="placed")
    ship_to: Address = mongoz.Embed(Address)
    placed_at: datetime = mongoz.DateTime(auto_now_add=True)


class Stock(KeyedDocument):
    """The stock of one product; `_id` is its name."""

    stocked: int = mongoz.Integer()
    level: int = mongoz.Integer()
    # The latest deliveries that changed the level. See receivers.take_from_stock.
    applied: list[str] = mongoz.Array(str, default=list)

    class Meta(KeyedDocument.Meta):
        collection = "stock"


class Mail(KeyedDocument):
    """A mail that another job sends. `_id` is the id of its delivery."""

    to: str = mongoz.Email()
    subject: str = mongoz.String()

    class Meta(KeyedDocument.Meta):
        collection = "outbox"


class AuditEntry(KeyedDocument):
    """One change of a user or an order. `_id` is the id of its delivery."""

    document: str = mongoz.String()
    key: str = mongoz.String()
    operation: str = mongoz.String()
    fields: list[str] = mongoz.Array(str, default=list)
    at: datetime = mongoz.DateTime(null=True)

    class Meta(KeyedDocument.Meta):
        collection = "audit_trail"
