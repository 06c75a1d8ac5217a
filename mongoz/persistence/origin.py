"""Where a write comes from, for the dispatcher to know."""

from typing import Any

import bson

from mongoz.persistence.targets import Target
from mongoz.signals.firing import Firing
from mongoz.stamps import FIELD, Call, Stamp, key_hash

__all__ = ["Origin"]


class Origin:
    """The origin of one write: its token, and the stamp if the write needs one."""

    __slots__ = ("stamp", "token")

    def __init__(self, firing: Firing, target: Target, id_: Any, call: Call, *, natural: bool) -> None:
        """Decide whether to stamp.

        Args:
            firing: who runs in this process.
            target: where it is written to.
            id_: the document's `_id`.
            call: what was called.
            natural: the server's event alone leads to the same signal.
        """
        self.token = bson.ObjectId()
        self.stamp: bson.Binary | None = None
        group = target.group
        if group is not None and (firing.receivers or firing.muted or not natural):
            ids = frozenset(receiver.id for receiver in firing.receivers)
            key = key_hash(target.collection.namespace, id_)
            self.stamp = Stamp(group, call, self.token, key, ids, firing.muted).pack()

    def onto(self, values: dict[str, Any]) -> dict[str, Any]:
        """These values, with the stamp where there is one."""
        return values if self.stamp is None else {**values, FIELD: self.stamp}
