"""Divides a batch that failed, to find the events that fail alone. No I/O."""

from collections.abc import Hashable, Sequence


def divided(keys: Sequence[Hashable]) -> list[list[int]]:
    """Divide a batch into the parts that are tried next, one after another.

    A batch of several documents is halved, and all events of a document stay in one half. The events of a single
    document are tried one by one, in their order.

    Args:
        keys: for each event of the batch, the key of its document.

    Returns:
        The indexes of the events of each part, in the order of the batch. Empty if the batch has a single event,
        because this event has failed alone.
    """
    if len(keys) < 2:
        return []
    counts = dict.fromkeys(keys, 0)
    if len(counts) == 1:
        return [[index] for index in range(len(keys))]
    for key in keys:
        counts[key] += 1
    first: set[Hashable] = set()
    taken = 0
    for key, count in counts.items():
        if first and taken + count > len(keys) // 2:
            break
        first.add(key)
        taken += count
    return [
        [index for index, key in enumerate(keys) if key in first],
        [index for index, key in enumerate(keys) if key not in first],
    ]
