"""Remembers what earlier layouts have finished, so that a new layout loses and repeats no change. No I/O.

A layout divides the work into a number of partitions. A partition of a new layout begins at the lowest position of
the old partitions that share documents with it. A `Fact` describes the changes that one old partition has finished
after this position. It covers all documents of the old partition. The new partition keeps the fact until its own
position has passed the last change of the fact.
"""

from collections.abc import Iterable
from math import gcd
from typing import NamedTuple

from dispatcher.core.partitions import partition_of
from dispatcher.core.resume_tokens import digest_of, holds, split


class Fact(NamedTuple):
    """Finished changes of the documents in one partition of a layout.

    Attributes:
        token: all changes up to it are finished.
        until: the fact is only about changes whose tokens are not greater than this text.
        ahead: hashes of the tokens of finished changes after `token`, see `core/resume_tokens.py`.
    """

    partitions: int
    partition: int
    token: str
    until: str
    ahead: bytes

    def concerns(self, partition: int, partitions: int) -> bool:
        """Returns whether documents of this fact can be in a partition of another layout."""
        return (partition - self.partition) % gcd(partitions, self.partitions) == 0

    def merged(self, other: "Fact") -> "Fact":
        """Merge two facts, which must be about the same documents."""
        ahead = {*split(self.ahead), *split(other.ahead)}
        token, until = max(self.token, other.token), max(self.until, other.until)
        return self._replace(token=token, until=until, ahead=b"".join(sorted(ahead)))


class Inherited:
    """The facts that a partition has got from earlier layouts."""

    def __init__(self, facts: Iterable[Fact]) -> None:
        self.facts = tuple(facts)

    def __bool__(self) -> bool:
        return bool(self.facts)

    def has_finished(self, token: str, hashed: int) -> bool:
        """Returns whether a change was finished under an earlier layout.

        Args:
            hashed: the hash of the document's `_id`; 0 for a change without a document. Such a change
                belongs to the first partition of every layout.
        """
        for fact in self.facts:
            if partition_of(hashed, fact.partitions) == fact.partition and (
                token <= fact.token or (token <= fact.until and holds(fact.ahead, digest_of(token)))
            ):
                return True
        return False

    def pass_(self, token: str) -> bool:
        """Remove the facts that are only about changes up to a token. Returns whether a fact was removed."""
        left = tuple(fact for fact in self.facts if fact.until > token)
        passed = len(left) < len(self.facts)
        self.facts = left
        return passed


class Beginning(NamedTuple):
    """The first position of a partition in a new layout.

    Attributes:
        token: everything up to it is finished.
        inherited: facts about finished changes after `token`.
    """

    token: str
    inherited: tuple[Fact, ...]


def beginning_of(partition: int, partitions: int, now: Iterable[Fact], earlier: Iterable[Fact]) -> Beginning:
    """The first position of a partition in a new layout.

    Args:
        partition: the number of the partition in the new layout.
        partitions: the number of partitions in the new layout.
        now: the finished changes of each partition of the present layout.
        earlier: the facts that the present partitions have got from earlier layouts.
    """
    followed = [fact for fact in now if fact.concerns(partition, partitions)]
    token = min(fact.token for fact in followed)
    facts: dict[tuple[int, int], Fact] = {}
    for fact in [*followed, *(one for one in earlier if one.concerns(partition, partitions))]:
        if fact.until > token:
            about = (fact.partitions, fact.partition)
            facts[about] = facts[about].merged(fact) if about in facts else fact
    return Beginning(token, tuple(facts.values()))
