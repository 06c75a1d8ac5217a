"""The receivers of the shop. They run for the changes of every client.

A delivery can be repeated after a crash, with the same `delivery.id`. So a second run of a receiver must change
nothing. Some receivers write a document with this id as its `_id`. `take_from_stock` records the id in the same
atomic update that has the effect.
"""

from contextlib import suppress
from typing import Any

from pymongo.errors import DuplicateKeyError

from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals import Delivery

from .models import AuditEntry, Mail, Order, ShopDocument, Stock, User

# The number of deliveries that a product remembers. A crash repeats fewer: the deliveries of about one second.
REMEMBERED = 100


@post_save(User)
async def welcome(sender: type[User], instance: User, created: bool, delivery: Delivery, **kwargs: Any) -> None:
    """Write to a new user. A mail that is already in the outbox is from an earlier attempt."""
    if not created:
        return
    with suppress(DuplicateKeyError):
        await Mail(id=delivery.id, to=instance.email, subject=f"Welcome, {instance.name}!").create()


# delivery="dispatcher": the process that writes an order does not run this receiver. The dispatcher does, even if
# that process dies right after the write.
@post_save(Order, delivery="dispatcher")
async def take_from_stock(
    sender: type[Order], instance: Order, created: bool, delivery: Delivery, **kwargs: Any
) -> None:
    """Lower the stock by the ordered quantity, exactly once.

    The condition, the new level and the id of this delivery are one atomic update, on the driver's collection.
    """
    if not created:
        return
    await Stock.get_collection().driver_collection.update_one(
        {"_id": instance.product, "applied": {"$ne": delivery.id}},
        {
            "$inc": {"level": -instance.quantity},
            "$push": {"applied": {"$each": [delivery.id], "$slice": -REMEMBERED}},
        },
    )


@post_save([User, Order])
@post_update([User, Order])
@post_delete([User, Order])
async def audit(sender: type[ShopDocument], instance: ShopDocument, delivery: Delivery, **kwargs: Any) -> None:
    """Record each change. Often only the id of a deleted document is known: see `delivery.image`."""
    operation = delivery.signal.removeprefix("post_")
    entry = AuditEntry(
        id=delivery.id,
        document=sender.__name__,
        key=str(instance.id),
        operation="create" if kwargs.get("created") else operation,
        fields=sorted(kwargs.get("update_fields", ())),
        at=delivery.wall_time,
    )
    with suppress(DuplicateKeyError):
        await entry.create()
