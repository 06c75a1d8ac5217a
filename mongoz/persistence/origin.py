"""The origins of writes: their tokens, and their stamps for dispatchers."""

from typing import Any, Final, NamedTuple

import bson

from mongoz.claims.book import OpenClaim
from mongoz.claims.claims import Claims
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.ids import id_of_time, new_token
from mongoz.persistence.target import WriteTarget
from mongoz.signals.post_signals import Firing
from mongoz.signals.receivers import Receiver
from mongoz.stamps import FIELD, Call, Form, claiming_form, form_of, key_hash, packed_context

__all__ = ["NO_ORIGIN", "Origin", "Originator", "make_originator", "must_stamp", "unstamped_origin"]


class Origin(NamedTuple):
    """The origin of one write.

    Attributes:
        token: the id of the write; receivers in this process get it as `delivery.id`.
        stamp: the stamp for dispatchers, or None.
        claim: the claim in the stamp, or None. It ends when the receivers have run.
    """

    token: str = ""
    stamp: bson.Binary | None = None
    claim: OpenClaim | None = None

    def stamped(self, values: dict[str, Any]) -> dict[str, Any]:
        """These values, with the stamp if there is one."""
        return values if self.stamp is None else {**values, FIELD: self.stamp}

    def undone(self) -> None:
        """Record that the write certainly did not take effect."""
        if self.claim is not None:
            self.claim.done()

    def leave(self) -> None:
        """Leave the claimed receivers to dispatchers, unless they have run."""
        if self.claim is not None:
            self.claim.release()


NO_ORIGIN: Final = Origin()
"""The origin of a write without receivers in this process, and without a stamp."""


class _ClaimPlan(NamedTuple):
    """The claimed receivers of a firing, and the form of the stamps. The signal caches it.

    Attributes:
        receivers: the receivers of the firing.
        named: the ids that a beat has named.
        group: the group of dispatchers.
        call: the called method.
        covered: the claimed receivers.
        form: the form of the stamps.
        is_whole: all receivers that dispatchers can take over are claimed.
    """

    receivers: tuple[Receiver, ...]
    named: frozenset[bytes]
    group: str
    call: Call
    covered: frozenset[Receiver]
    form: Form
    is_whole: bool


class Originator:
    """Makes the origins of several writes. Only the documents of these writes differ.

    Args:
        firing: the receivers of this process.
        target: the target of the writes.
        call: the called method.
        stamps: whether the writes are stamped.
    """

    __slots__ = ("_claims", "_context", "_firing", "_form", "_plan", "_target")

    def __init__(self, firing: Firing, target: WriteTarget, call: Call, *, stamps: bool) -> None:
        self._firing = firing
        self._target = target
        self._form: Form | None = None
        self._claims: Claims | None = None
        if stamps:
            ids = firing.signal.ids_of(firing.receivers)
            hops, self._context = firing.hops, b""
            if firing.context is not None:
                hops, self._context = 0, packed_context(firing.context.text, hops)
            self._form = form_of(target.group or "", call, ids, firing.muted, hops)
            claims = target.deployment.claims
            if claims is not None and firing.receivers:
                self._prepare_claims(claims, call, ids)

    def _prepare_claims(self, claims: Claims, call: Call, ids: frozenset[bytes]) -> None:
        """Plan to claim the receivers that dispatchers can take over and that a beat has named."""
        (_, receivers, *_), group, named = self._firing, self._target.group or "", claims.book.named
        signal = self._firing.signal
        plan: _ClaimPlan | None = signal.cached_claims
        if (
            plan is None
            or plan.receivers is not receivers
            or plan.named is not named
            or plan[2:4] != (group, call)
        ):
            claimable = signal.claimable_ids_of(receivers)
            covered = [receiver for receiver in receivers if receiver.runs_in_dispatcher]
            if not claimable <= named:
                covered = [one for one in covered if signal.claimable_ids_of((one,)) <= named]
            claimed = signal.claimable_ids_of(tuple(covered))
            form = claiming_form(group, call, ids, claimed)
            plan = _ClaimPlan(receivers, named, group, call, frozenset(covered), form, claimed == claimable)
            signal.cached_claims = plan
        if plan.covered or not plan.is_whole:
            self._claims, self._plan = claims, plan

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
        if self._claims is not None:
            plan = self._plan
            claim = self._claims.claim(plan.covered, is_whole=plan.is_whole)
            if claim is not None:
                if target.transaction is not None:
                    target.transaction.add_claim(claim)
                return Origin(token.hex(), plan.form.filled(token, key, self._context + claim.packed), claim)
        return Origin(token.hex(), self._form.filled(token, key, self._context))


def must_stamp(firing: Firing, target: WriteTarget, *, natural: bool) -> bool:
    """Whether a write needs a stamp.

    Args:
        firing: the receivers of this process.
        target: the target of the write.
        natural: even without a stamp, a dispatcher would fire the same signal for the server's event.
    """
    return target.group is not None and (firing.concerns_dispatchers or not natural)


async def make_originator(firing: Firing, target: WriteTarget, call: Call, *, natural: bool) -> Originator:
    """Make the originator of writes that are sent now.

    If the writes need stamps and the last measurement of the server's time is old, the time is measured first. If
    receivers can be claimed and the book is not valid, a beat is awaited for a short time. Between this call and
    `origin_for` nothing may be awaited: the process may be stopped meanwhile, and then the book is not valid any
    more.

    Args:
        firing: the receivers of this process.
        target: the target of the writes.
        call: the called method.
        natural: even without a stamp, a dispatcher would fire the same signal for the server's event.
    """
    stamps = must_stamp(firing, target, natural=natural)
    if stamps:
        if not target.clock.is_fresh:
            await target.clock.compare(target.client)
        claims = target.deployment.claims
        if claims is not None and not claims.is_ready and firing.signal.claimable_ids_of(firing.receivers):
            await claims.prepare()
    return Originator(firing, target, call, stamps=stamps)


def unstamped_origin(firing: Firing) -> Origin:
    """The origin of a write without a stamp."""
    return Origin(new_token()) if firing.receivers else NO_ORIGIN
