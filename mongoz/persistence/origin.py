"""The origins of writes: their tokens, and their stamps for dispatchers."""

from typing import Any, Final, NamedTuple

import bson

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.ids import id_of_time, new_token
from mongoz.persistence.target import WriteTarget
from mongoz.signals.post_signals import Firing
from mongoz.stamps import FIELD, Call, Form, form_of, key_hash

__all__ = ["NO_ORIGIN", "Origin", "Originator", "make_originator", "must_stamp", "unstamped_origin"]


class Origin(NamedTuple):
    """The origin of one write.

    Attributes:
        token: the id of the write; receivers in this process get it as `delivery.id`.
        stamp: the stamp for dispatchers, or None.
    """

    token: str = ""
    stamp: bson.Binary | None = None

    def stamped(self, values: dict[str, Any]) -> dict[str, Any]:
        """These values, with the stamp if there is one."""
        return values if self.stamp is None else {**values, FIELD: self.stamp}


NO_ORIGIN: Final = Origin()
"""The origin of a write without receivers in this process, and without a stamp."""


class Originator:
    """Makes the origins of writes that differ in their documents only.

    Args:
        firing: the receivers of this process.
        target: the target of the writes.
        call: the called method.
        stamps: whether the writes are stamped.
    """

    __slots__ = ("_firing", "_form", "_target")

    def __init__(self, firing: Firing, target: WriteTarget, call: Call, *, stamps: bool) -> None:
        self._firing = firing
        self._target = target
        self._form: Form | None = None
        if stamps:
            ids = firing.signal.ids_of(firing.receivers)
            self._form = form_of(target.group or "", call, ids, firing.muted, firing.hops)

    def origin_for(self, id_: Any) -> Origin:
        """The origin of a write that is sent now.

        Args:
            id_: the document's `_id`.
        """
        if self._form is None:
            return unstamped_origin(self._firing)
        target = self._target
        # Use the server's clock: a stamp is valid for a short time only.
        token = id_of_time(target.clock.now())
        key = key_hash(target.collection.namespace, id_, CODEC_OPTIONS)
        return Origin(token.hex(), self._form.filled(token, key))


def must_stamp(firing: Firing, target: WriteTarget, *, natural: bool) -> bool:
    """Whether a write needs a stamp.

    Args:
        firing: the receivers of this process.
        target: the target of the write.
        natural: even without a stamp, a dispatcher would fire the same signal for the server's event.
    """
    return target.group is not None and (firing.concerns_dispatchers or not natural)


async def make_originator(firing: Firing, target: WriteTarget, call: Call, *, natural: bool) -> Originator:
    """Make the originator of some writes.

    If the writes need stamps and the last measurement of the server's time is old, the time is measured first.

    Args:
        firing: the receivers of this process.
        target: the target of the writes.
        call: the called method.
        natural: even without a stamp, a dispatcher would fire the same signal for the server's event.
    """
    stamps = must_stamp(firing, target, natural=natural)
    if stamps and not target.clock.is_fresh:
        await target.clock.compare(target.client)
    return Originator(firing, target, call, stamps=stamps)


def unstamped_origin(firing: Firing) -> Origin:
    """The origin of a write without a stamp."""
    return Origin(new_token()) if firing.receivers else NO_ORIGIN
