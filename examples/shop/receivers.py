"""What happens in the shop when documents change, whoever changed them.

A delivery may be repeated after a crash, with the same `delivery.id`. So every receiver here makes sure that
its second run changes nothing: either the id is the `_id` of what it writes, or it is recorded by the same
atomic update that has the effect.
"""

from contextlib import suppress
from typing import Any

from pymongo.errors import DuplicateKeyError

from mongoz.core.signals import post_delete, post_save, post_update
from mongoz.signals import Delivery

from .models import AuditEntry, Mail, Order, ShopDocument, Stock, User

# How many deliveries a product remembers. A crash repeats about the last second of them: plenty for this shop.
REMEMBERED = 100


@post_save(User)
async def welcome(sender: type[User], instance: User, created: bool, delivery: Delivery, **kwargs: Any) -> None:
    """Write to a new user. A mail that is in the outbox already was put there by an earlier attempt."""
    if not created:
        return
    with suppress(DuplicateKeyError):
        await Mail(id=delivery.id, to=instance.email, subject=f"Welcome, {instance.name}!").create()


# delivery="dispatcher": not even our own process takes from the stock while it handles a request. The
# dispatcher does, and it does so too when that process dies right after the order was written.
@post_save(Order, delivery="dispatcher")
async def take_from_stock(
    sender: type[Order], instance: Order, created: bool, delivery: Delivery, **kwargs: Any
) -> None:
    """Lower the stock by what was ordered, exactly once.

    The condition, the new level and the note that this delivery is done are one atomic update. It goes to the
    driver's own collection: the ODM has no operator updates.
    """
    if not created:
        return
    await Stock.get_collection()._collection.update_one(
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
    """Note every change. Of a deleted document often only the id is known: see `delivery.image`."""
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
