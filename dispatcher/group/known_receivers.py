"""Checks names of receivers: an unknown name is an error, not an empty result.

MongoDB commands raise the `PyMongoError` of the driver.
"""

from collections.abc import Collection

from dispatcher.core.state import Group
from dispatcher.exceptions import UnknownReceiver
from mongoz.synonyms import nearest


async def require_receiver(group: Group, receiver: str, *, known: Collection[str] = ()) -> None:
    """Require that a receiver has this name, or that a dead letter or a parked delivery contains the name.

    Args:
        receiver: its name, or a former name.
        known: names that exist; they are not looked up.
    """
    names = set(known)
    if receiver in names:
        return
    of_group = {"group": group.name}
    for field in ("receivers.name", "receivers.formerly"):
        names |= set(await group.state.members.distinct(field, of_group))
    if receiver not in names:
        names |= set(await group.state.held.distinct("receiver", of_group)) - {None}
    if receiver not in names:
        raise UnknownReceiver(
            f"No dispatcher of group {group.name!r} has a receiver {receiver!r}, and no dead letter or parked "
            f"delivery names it.{nearest(receiver, names)}",
            remedy="`dispatcher receivers APP` lists the receivers. Start a dispatcher that has this receiver, "
            "or pass the APP that has it.",
        )
