"""Dividing the work of a group anew: what the new positions are. Pure."""

from datetime import datetime
from typing import Any

from dispatcher.core.events import token_time
from dispatcher.position.documents import Position, Saved
from dispatcher.position.inherited import Fact, beginning_of

__all__ = ["divided"]


def divided(saved: Saved, group: str) -> list[dict[str, Any]]:
    """The positions of a group whose work is divided anew. Pure.

    Args:
        saved: with all positions, and a layout in which another number of partitions is wanted.
        group: of dispatchers.
    """
    layout, positions = saved.layout, saved.positions.values()
    assert layout is not None  # somebody wants another one
    assert layout.wanted is not None
    facts = [_fact_of(layout.partitions, one) for one in positions]
    earlier = [fact for one in positions for fact in one.inherited]
    newest = max(positions, key=lambda one: one.version_started or datetime.min)
    documents = []
    for partition in range(layout.wanted):
        begins = beginning_of(partition, layout.wanted, facts, earlier)
        documents.append(
            {
                "_id": f"{group}:{partition}",
                "group": group,
                "partition": partition,
                "partitions": layout.wanted,
                # The term of a document only grows, whichever partition it is in. And who has seen an old position
                # can't claim a new one.
                "term": max(one.term for one in positions) + 1,
                "beat": 0,
                "token": begins.token,
                "cluster_time": token_time(begins.token),
                # The token may be one of another partition, which does not turn up in this one's stream.
                "fingerprint": "",
                "ahead": b"",
                "until": None,
                "inherited": [fact._asdict() for fact in begins.inherited],
                "version": newest.version,
                "version_started": newest.version_started,
            }
        )
    return documents


def _fact_of(partitions: int, position: Position) -> Fact:
    """What a position says of the documents in its partition."""
    token = position.token or ""
    return Fact(partitions, position.partition, token, max(token, position.until), position.ahead)
