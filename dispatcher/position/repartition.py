"""Computes the positions of a group whose work is divided into another number of partitions. No I/O."""

from datetime import datetime
from typing import Any

from dispatcher.position.documents import NEVER, Position, SavedPositions, recorded
from dispatcher.position.inherited import Fact, beginning_of


def divided(saved: SavedPositions, group: str) -> list[dict[str, Any]]:
    """The documents of the new positions.

    Args:
        saved: all positions, and a layout with another requested number of partitions.
    """
    layout, positions = saved.layout, saved.positions.values()
    assert layout is not None  # it has a requested number
    assert layout.wanted is not None
    facts = [_fact_of(layout.partitions, one) for one in positions]
    earlier = [fact for one in positions for fact in one.inherited]
    newest = max(positions, key=lambda one: one.version_since or datetime.min)
    documents = []
    for partition in range(layout.wanted):
        begins = beginning_of(partition, layout.wanted, facts, earlier)
        documents.append(
            {
                "_id": f"{group}:{partition}",
                "group": group,
                "partition": partition,
                "partitions": layout.wanted,
                # The term of a document's deliveries must grow, even if the document is in another partition now.
                # Besides, a member that has read an old position can't claim a new one, since the terms differ.
                "term": max(one.term for one in positions) + 1,
                "beat": 0,
                **recorded(begins.token),  # without a fingerprint: the token may be of another partition's stream
                "inherited": [fact._asdict() for fact in begins.inherited],
                "version": newest.version,
                "version_since": newest.version_since,
                "version_started": NEVER,
            }
        )
    return documents


def _fact_of(partitions: int, position: Position) -> Fact:
    """The finished changes of a position, as a fact about the documents in its partition."""
    token = position.token or ""
    return Fact(partitions, position.partition, token, max(token, position.until), position.ahead)
