"""Who should hold which partitions: fair shares, with as few moves as possible. Pure.

Every member computes this for itself, of what it reads. Members that read the same agree; until they do, the
claims, which are atomic, decide.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

__all__ = ["Moves", "moves", "quotas"]


class Moves(NamedTuple):
    """What one member should do.

    Attributes:
        claim: partitions to take.
        release: partitions to hand over.
    """

    claim: tuple[int, ...]
    release: tuple[int, ...]


def quotas(
    held: Mapping[str, int], members: Sequence[str], partitions: int, capped: Collection[str] = ()
) -> dict[str, int]:
    """How many partitions each member should hold.

    The numbers differ by one at most. Where they do, who holds more already keeps more.

    Args:
        held: how many each holds.
        members: all that take part, the longest-serving first.
        partitions: how many there are.
        capped: members that keep what they hold within their share, but get nothing more.
    """
    shares = _even(held, members, partitions)
    result = {member: min(shares[member], held.get(member, 0)) for member in members if member in capped}
    others = [member for member in members if member not in capped]
    return result | _even(held, others, partitions - sum(result.values()))


def _even(held: Mapping[str, int], members: Sequence[str], partitions: int) -> dict[str, int]:
    if not members:
        return {}
    least, rest = divmod(partitions, len(members))
    ordered = sorted(members, key=lambda member: -held.get(member, 0))  # stable: of equals the first
    return {member: least + (place < rest) for place, member in enumerate(ordered)}


def moves(
    me: str, owners: Mapping[int, str | None], members: Sequence[str], capped: Collection[str] = ()
) -> Moves:
    """What one member should do now.

    Args:
        me: the member.
        owners: who holds each partition; None for those that are free. Who is no member here is about to leave.
        members: all that take part, the longest-serving first.
        capped: members that get nothing more than they hold.
    """
    held = Counter(owner for owner in owners.values() if owner is not None)
    wanted = quotas(held, members, len(owners), capped)
    mine = sorted(partition for partition, owner in owners.items() if owner == me)
    claims = []
    for partition in sorted(partition for partition, owner in owners.items() if owner is None):
        # To whom most is missing; all agree on that, so that no two claim the same one.
        lacking = [member for member in members if wanted[member] > held[member]]
        if not lacking:
            break
        taker = max(lacking, key=lambda member: wanted[member] - held[member])
        held[taker] += 1
        if taker == me:
            claims.append(partition)
    return Moves(tuple(claims), tuple(mine[wanted.get(me, 0) :]))
