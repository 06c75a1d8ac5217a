"""Where writes come from, for the dispatcher to know: their tokens and their stamps."""

from typing import Any, Final, NamedTuple

import bson

from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.ids import id_of_time, new_token
from mongoz.persistence.target import Target
from mongoz.signals.post_signals import Firing
from mongoz.stamps import FIELD, Call, Form, form_of, key_hash

__all__ = ["UNTOLD", "Origin", "Originator", "is_stamped", "originator", "plain_origin"]


class Origin(NamedTuple):
    """The origin of one write.

    Attributes:
        token: stands for the write; its receivers in this process know it as `delivery.id`.
        stamp: what is written with it, if a dispatcher must know.
    """

    token: str = ""
    stamp: bson.Binary | None = None

    def onto(self, values: dict[str, Any]) -> dict[str, Any]:
        """These values, with the stamp where there is one."""
        return values if self.stamp is None else {**values, FIELD: self.stamp}


UNTOLD: Final = Origin()
"""Of a write that nobody in this process is told about, and no dispatcher needs to know of."""


class Originator:
    """Makes the origins of writes that have all but their documents in common.

    Args:
        firing: who runs in this process.
        target: where it is written to.
        call: what was called.
        stamps: whether a dispatcher must know.
    """

    __slots__ = ("_firing", "_form", "_target")

    def __init__(self, firing: Firing, target: Target, call: Call, *, stamps: bool) -> None:
        self._firing = firing
        self._target = target
        self._form: Form | None = None
        if stamps:
            ids = firing.signal.ids_of(firing.receivers)
            self._form = form_of(target.group or "", call, ids, firing.muted, firing.hops)

    def of(self, id_: Any) -> Origin:
        """The origin of a write that is sent now.

        Args:
            id_: the document's `_id`.
        """
        if self._form is None:
            return plain_origin(self._firing)
        target = self._target
        # By the server's clock: a stamp only counts for a short time.
        token = id_of_time(target.clock.now())
        key = key_hash(target.collection.namespace, id_, CODEC_OPTIONS)
        return Origin(token.hex(), self._form.filled(token, key))


def is_stamped(firing: Firing, target: Target, *, natural: bool) -> bool:
    """Whether a dispatcher must know of a write.

    Args:
        firing: who runs in this process.
        target: where it is written to.
        natural: the server's event alone leads to the same signal.
    """
    return target.group is not None and (firing.tells or not natural)


async def originator(firing: Firing, target: Target, call: Call, *, natural: bool) -> Originator:
    """Decide whether writes are stamped.

    Args:
        firing: who runs in this process.
        target: where it is written to.
        call: what was called.
        natural: the server's event alone leads to the same signal.
    """
    stamps = is_stamped(firing, target, natural=natural)
    if stamps and not target.clock.is_fresh:
        await target.clock.compare(target.client)
    return Originator(firing, target, call, stamps=stamps)


def plain_origin(firing: Firing) -> Origin:
    """The origin of a write that is not stamped."""
    return Origin(new_token()) if firing.receivers else UNTOLD
