"""Assigns partitions to members: fair shares, with as few moves as possible. No I/O.

Every member computes the assignment from the documents of the group. Members that have read the same documents
compute the same assignment. If two members have read different documents, both may try to claim the same
partition. A claim is one atomic write, so only the first claim succeeds.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Moves(NamedTuple):
    """The partitions that one member should claim and release."""

    claim: tuple[int, ...]
    release: tuple[int, ...]


def quotas(
    held: Mapping[str, int], members: Sequence[str], partitions: int, capped: Collection[str] = ()
) -> dict[str, int]:
    """The number of partitions that each member should hold.

    Members that are not capped get equal numbers of partitions. If partitions remain, some of these members get
    one more: those that hold the most partitions at present.

    Args:
        members: all members that share the partitions, the longest-serving first.
        capped: members that get no further partitions. They keep the partitions that they hold, up to an equal
            share.
    """
    shares = _even(held, members, partitions)
    result = {member: min(shares[member], held.get(member, 0)) for member in members if member in capped}
    others = [member for member in members if member not in capped]
    return result | _even(held, others, partitions - sum(result.values()))


def _even(held: Mapping[str, int], members: Sequence[str], partitions: int) -> dict[str, int]:
    if not members:
        return {}
    least, rest = divmod(partitions, len(members))
    # The sort is stable: among members with equal numbers, the longest-serving stays first.
    ordered = sorted(members, key=lambda member: -held.get(member, 0))
    return {member: least + (place < rest) for place, member in enumerate(ordered)}


def moves(
    me: str, owners: Mapping[int, str | None], members: Sequence[str], capped: Collection[str] = ()
) -> Moves:
    """The partitions that one member should claim and release now.

    Args:
        owners: the owner of each partition; None for free ones. An owner that is not in `members` is leaving, or
            runs an earlier version, which can't read the present format of the state.
    """
    held = Counter(owner for owner in owners.values() if owner is not None)
    wanted = quotas(held, members, len(owners), capped)
    mine = sorted(partition for partition, owner in owners.items() if owner == me)
    claims = []
    for partition in sorted(partition for partition, owner in owners.items() if owner is None):
        # The free partition goes to the member that lacks the largest number of partitions. Members that have read
        # the same documents choose the same member, so only this member claims the partition.
        lacking = [member for member in members if wanted[member] > held[member]]
        if not lacking:
            break
        taker = max(lacking, key=lambda member: wanted[member] - held[member])
        held[taker] += 1
        if taker == me:
            claims.append(partition)
    return Moves(tuple(claims), tuple(mine[wanted.get(me, 0) :]))
