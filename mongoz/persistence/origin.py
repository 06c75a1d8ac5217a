"""The origins of writes: their tokens, and their stamps for dispatchers."""

from typing import Any, Final, NamedTuple

import bson

from mongoz.claims.book import OpenClaim
from mongoz.connection.codec import CODEC_OPTIONS
from mongoz.ids import id_of_time, new_token
from mongoz.persistence.target import WriteTarget
from mongoz.signals import Signal
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


class _StampPlan(NamedTuple):
    """The parts that the stamps of many writes have in common. The signal caches the plan.

    Attributes:
        receivers: the receivers of the firing.
        named: the ids of receivers in the last acknowledged beat (see `mongoz/claims/book.py`);
            None if the process makes no claims.
        key: the group of dispatchers, the called method, whether the writes are muted, and the hops of the
            writes.
        form: the form of stamps without claims.
        covered: the claimed receivers.
        claiming: the form of stamps with claims; None if no receiver needs a claim.
        is_whole: all receivers that dispatchers can take over are claimed.
    """

    receivers: tuple[Receiver, ...]
    named: frozenset[bytes] | None
    key: tuple[str, Call, bool, int]
    form: Form
    covered: frozenset[Receiver] = frozenset()
    claiming: Form | None = None
    is_whole: bool = True


def _stamp_plan(firing: Firing, group: str, call: Call, named: frozenset[bytes] | None) -> _StampPlan:
    signal, receivers = firing.signal, firing.receivers
    key = (group, call, firing.muted, 0 if firing.context is not None else firing.hops)
    plan: _StampPlan | None = signal.cached_stamps
    if plan is None or plan.receivers is not receivers or plan.named is not named or plan.key != key:
        form = form_of(group, call, signal.ids_of(receivers), *key[2:])
        plan = _StampPlan(receivers, named, key, form)
        if named is not None and receivers:
            plan = _with_claims(plan, signal, named)
        signal.cached_stamps = plan
    return plan


def _with_claims(plan: _StampPlan, signal: Signal, named: frozenset[bytes]) -> _StampPlan:
    """The plan with claims: to receivers that dispatchers can take over, if their ids are in the last beat."""
    receivers, (group, call, *_) = plan.receivers, plan.key
    claimable = signal.claimable_ids_of(receivers)
    covered = [receiver for receiver in receivers if receiver.runs_in_dispatcher]
    if not claimable <= named:
        covered = [one for one in covered if signal.claimable_ids_of((one,)) <= named]
    claimed = signal.claimable_ids_of(tuple(covered))
    is_whole = claimed == claimable
    if not covered and is_whole:
        return plan
    form = claiming_form(group, call, signal.ids_of(receivers), claimed)
    return plan._replace(covered=frozenset(covered), claiming=form, is_whole=is_whole)


class Originator:
    """Makes the origins of several writes. Only the documents of these writes differ.

    Args:
        firing: the receivers of this process.
        target: the target of the writes.
        call: the called method.
        stamps: whether the writes are stamped.
    """

    __slots__ = ("_context", "_deployment", "_firing", "_plan", "_target")

    def __init__(self, firing: Firing, target: WriteTarget, call: Call, *, stamps: bool) -> None:
        self._firing = firing
        self._target = target
        self._plan: _StampPlan | None = None
        if stamps:
            self._deployment = deployment = target.collection.database.deployment
            named = None if deployment.claims is None else deployment.claims.book.named
            self._plan = _stamp_plan(firing, deployment.dispatched or "", call, named)
            self._context = b""
            if firing.context is not None:
                self._context = packed_context(firing.context.text, firing.hops)

    def origin_for(self, id_: Any) -> Origin:
        """The origin of a write that is sent now.

        Args:
            id_: the document's `_id`.
        """
        plan = self._plan
        if plan is None:
            return unstamped_origin(self._firing)
        target, deployment = self._target, self._deployment
        # Use the server's clock: a stamp is valid for a short time only.
        token = id_of_time(deployment.clock.now())
        key = key_hash(target.collection.namespace, id_, CODEC_OPTIONS)
        if plan.claiming is not None and deployment.claims is not None:
            claim = deployment.claims.claim(plan.covered, is_whole=plan.is_whole)
            if claim is not None:
                if target.transaction is not None:
                    target.transaction.add_claim(claim)
                stamp = plan.claiming.filled(token, key, self._context + claim.packed)
                return tuple.__new__(Origin, (token.hex(), stamp, claim))  # `Origin(...)` takes twice as long
        return tuple.__new__(Origin, (token.hex(), plan.form.filled(token, key, self._context), None))


def must_stamp(firing: Firing, target: WriteTarget, *, natural: bool) -> bool:
    """Whether a write needs a stamp.

    Args:
        firing: the receivers of this process.
        target: the target of the write.
        natural: whether a dispatcher would fire the same signal if the write had no stamp.
    """
    return target.group is not None and (firing.concerns_dispatchers or not natural)


async def make_originator(firing: Firing, target: WriteTarget, call: Call, *, natural: bool) -> Originator:
    """Make the originator of writes that are sent now.

    If the writes need stamps and the last measurement of the server's time is old, the time is measured first. If
    receivers can be claimed and the book is not valid, a beat is awaited for a short time. Between this call and
    `origin_for` nothing may be awaited, because the book may become invalid during a wait.

    Args:
        firing: the receivers of this process.
        target: the target of the writes.
        call: the called method.
        natural: whether a dispatcher would fire the same signal if the writes had no stamp.
    """
    stamps = must_stamp(firing, target, natural=natural)
    if stamps:
        deployment = target.collection.database.deployment
        if not deployment.clock.is_fresh:
            await deployment.clock.compare(target.client)
        claims = deployment.claims
        if claims is not None and not claims.is_ready and firing.signal.claimable_ids_of(firing.receivers):
            await claims.prepare()
    return Originator(firing, target, call, stamps=stamps)


def unstamped_origin(firing: Firing) -> Origin:
    """The origin of a write without a stamp."""
    return Origin(new_token()) if firing.receivers else NO_ORIGIN
