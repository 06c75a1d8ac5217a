"""For tests: a dispatcher inside of the test, and hand-made changes for single receivers.

    async with Dispatcher(registry) as dispatcher:
        database.users.insert_one({"name": "Ada"})       # any client
        await dispatcher.until_idle()
    assert [each.receiver for each in dispatcher.deliveries] == ["shop.welcome"]

    await deliver(User, insert({"name": "Ada"}))         # no server at all

Fixtures for pytest are in `dispatcher.testing.fixtures`.
"""

from dispatcher.testing.changes import HandMade, delete, deliver, insert, replace, update
from dispatcher.testing.recording import RecordedDelivery
from dispatcher.testing.running import DeliveryTimeout, Dispatcher

__all__ = [
    "DeliveryTimeout",
    "Dispatcher",
    "HandMade",
    "RecordedDelivery",
    "delete",
    "deliver",
    "insert",
    "replace",
    "update",
]
