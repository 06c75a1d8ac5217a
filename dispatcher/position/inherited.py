"""What the partitions of earlier layouts had finished, so that another layout loses and repeats nothing. Pure.

When the work is divided anew, a partition begins where the slowest of those that it follows had got to. What the
others had finished is a fact about all documents with certain hashes. It goes along with every new position until
that is past it.
"""

from collections.abc import Iterable
from math import gcd
from typing import NamedTuple

from dispatcher.core.partitions import partition_of
from dispatcher.core.resume_tokens import digest_of, holds, split

__all__ = ["Beginning", "Fact", "Inherited", "beginning_of"]


class Fact(NamedTuple):
    """Of the documents in one partition of some layout, all these changes are finished.

    Attributes:
        partitions: of the layout.
        partition: of these.
        token: all changes up to it.
        until: the token of the last change that this is about.
        ahead: and some behind it: hashes of their tokens, see `core/resume_tokens.py`.
    """

    partitions: int
    partition: int
    token: str
    until: str
    ahead: bytes

    def concerns(self, partition: int, partitions: int) -> bool:
        """Whether there may be documents that are in this partition of another layout as well."""
        return (partition - self.partition) % gcd(partitions, self.partitions) == 0

    def together(self, other: "Fact") -> "Fact":
        """Both facts as one. They must be about the same documents."""
        ahead = {*split(self.ahead), *split(other.ahead)}
        token, until = max(self.token, other.token), max(self.until, other.until)
        return self._replace(token=token, until=until, ahead=b"".join(sorted(ahead)))


class Inherited:
    """What a partition knows of earlier layouts.

    Args:
        facts: of any number of layouts.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        self.facts = tuple(facts)

    def __bool__(self) -> bool:
        return bool(self.facts)

    def has_finished(self, token: str, hashed: int) -> bool:
        """Whether a change was finished under an earlier layout.

        Args:
            token: of the change.
            hashed: of the document's `_id`; 0 for a change of no document, which is in the first partition of any.
        """
        for fact in self.facts:
            if partition_of(hashed, fact.partitions) == fact.partition and (
                token <= fact.token or (token <= fact.until and holds(fact.ahead, digest_of(token)))
            ):
                return True
        return False

    def pass_(self, token: str) -> bool:
        """Forget what is only about changes up to a token; whether that was anything."""
        left = tuple(fact for fact in self.facts if fact.until > token)
        passed = len(left) < len(self.facts)
        self.facts = left
        return passed


class Beginning(NamedTuple):
    """Where a partition of a new layout begins.

    Attributes:
        token: everything up to it is finished.
        inherited: and what else is.
    """

    token: str
    inherited: tuple[Fact, ...]


def beginning_of(partition: int, partitions: int, now: Iterable[Fact], earlier: Iterable[Fact]) -> Beginning:
    """Where a partition of a new layout begins.

    Args:
        partition: which.
        partitions: how many there are in the new layout.
        now: what each partition of the present layout has finished.
        earlier: what these have inherited.
    """
    followed = [fact for fact in now if fact.concerns(partition, partitions)]
    token = min(fact.token for fact in followed)
    facts: dict[tuple[int, int], Fact] = {}
    for fact in [*followed, *(one for one in earlier if one.concerns(partition, partitions))]:
        if fact.until > token:
            about = (fact.partitions, fact.partition)
            facts[about] = facts[about].together(fact) if about in facts else fact
    return Beginning(token, tuple(facts.values()))
