"""Computes the positions of a group that gets another number of partitions, or another source. No I/O."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from dispatcher.position.documents import NEVER, Position, SavedPositions, recorded
from dispatcher.position.inherited import Fact, beginning_of


def divided(saved: SavedPositions, group: str) -> list[dict[str, Any]]:
    """The documents of the new positions.

    Args:
        saved: all positions. The layout also has a requested number of partitions, different from the present one.
    """
    layout, positions = saved.layout, saved.positions.values()
    assert layout is not None  # it has a requested number
    assert layout.wanted is not None
    facts = [_fact_of(layout.partitions, one) for one in positions]
    earlier = [fact for one in positions for fact in one.inherited]
    documents = []
    for partition in range(layout.wanted):
        begins = beginning_of(partition, layout.wanted, facts, earlier)
        values = {
            **recorded(begins.token),  # without a fingerprint: the token may be of another partition's stream
            "inherited": [fact._asdict() for fact in begins.inherited],
        }
        documents.append(_document(group, partition, layout.wanted, positions, values))
    return documents


def switched(saved: SavedPositions, group: str, partitions: int) -> list[dict[str, Any]]:
    """The new documents of all positions, for a group that gets another source. Finished changes stay finished.

    Args:
        saved: all positions, each with a token, and with an empty `inherited`.
        partitions: a multiple of the present number. So all documents of a new partition are in one partition now.
    """
    positions = saved.positions.values()
    documents = []
    for partition in range(partitions):
        before = saved.positions[partition % len(positions)]
        assert before.token is not None  # the caller checks it
        # The source finds its own place for the token.
        values = recorded(before.token, ahead=before.ahead, until=before.until)
        documents.append(_document(group, partition, partitions, positions, values))
    return documents


def _document(
    group: str, partition: int, partitions: int, before: Collection[Position], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The document of a new position.

    Args:
        before: all positions that the new positions replace.
        values: the fields that tell which changes are finished.
    """
    newest = max(before, key=lambda one: one.version_since or datetime.min)
    return {
        "_id": f"{group}:{partition}",
        "group": group,
        "partition": partition,
        "partitions": partitions,
        # The term of a document's deliveries must grow, even if the document is in another partition now.
        # Besides, a member that has read only an old position can't get the lease: the terms differ.
        "term": max(one.term for one in before) + 1,
        "beat": 0,
        **values,
        "version": newest.version,
        "version_since": newest.version_since,
        "version_started": NEVER,
    }


def _fact_of(partitions: int, position: Position) -> Fact:
    """A `Fact`, see `position/inherited.py`: the finished changes of the documents in the position's partition."""
    token = position.token or ""
    return Fact(partitions, position.partition, token, max(token, position.until), position.ahead)
