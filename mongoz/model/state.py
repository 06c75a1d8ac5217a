"""The data of an instance besides its fields: its state in the database, and attached instances.

Neither is dumped, compared or written.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from mongoz.connection import Collection
from mongoz.connection.codec import decode_leniently

__all__ = ["Loaded", "attach", "attached", "loaded", "remember", "remember_changes", "restore"]


class Loaded(NamedTuple):
    """The state of an instance in the database.

    Attributes:
        snapshot: the last known row in the database; None if no row is known. It shares nothing with the
            instance: it is a dict, or BSON if a dict would share values.
        collection: the collection of the last load or write of the instance; None means the document's own.
    """

    snapshot: dict[str, Any] | bytes | None = None
    collection: Collection | None = None

    def row(self) -> dict[str, Any] | None:
        """The snapshot as a dict."""
        snapshot = self.snapshot
        if type(snapshot) is dict:  # first, because nearly all snapshots are dicts
            return snapshot
        return decode_leniently(snapshot) if isinstance(snapshot, bytes) else snapshot


_NOT_LOADED: Final = Loaded()

_make, _set = tuple.__new__, object.__setattr__  # each look-up of these takes as long as the call


def loaded(instance: Any) -> Loaded:
    """The state of an instance in the database."""
    try:
        return instance._loaded  # type: ignore[no-any-return]
    except AttributeError:  # the slot was never set
        return _NOT_LOADED


def restore(instance: Any, state: Loaded) -> None:
    """Give an instance this state."""
    object.__setattr__(instance, "_loaded", state)


def remember(instance: Any, row: dict[str, Any] | bytes | None, collection: Collection | None) -> None:
    """Record that the database has this row. The row must share nothing with the instance."""
    _set(instance, "_loaded", _make(Loaded, (row, collection)))  # `Loaded(...)` takes twice as long


def remember_changes(
    instance: Any,
    changed: dict[str, Any],
    removed: Iterable[str],
    collection: Collection | None,
    unknown: dict[str, Any] | None = None,
) -> None:
    """Record that the database has these changes of the last known row.

    The values must not be shared with the instance. This function is optimized, because each save and update calls
    it: it does the work of `loaded`, `row` and `remember` in one call.

    Args:
        instance: the instance.
        changed: stored name -> new value.
        removed: the stored names of the removed fields.
        collection: the collection; None means the document's own.
        unknown: the row to record if there is no last known row. If this is None too, nothing is recorded.
    """
    try:
        before = instance._loaded.snapshot
    except AttributeError:  # the slot was never set
        before = None
    if before is None:
        if unknown is None:
            return  # the other fields stay unknown
        now = unknown
    else:
        now = before.copy() if type(before) is dict else decode_leniently(before)
        now.update(changed)
        for name in removed:
            now.pop(name, None)
    _set(instance, "_loaded", _make(Loaded, (now, collection)))


def attach(instance: Any, found: dict[str, list[Any]]) -> None:
    """Keep the instances that a query with a join has found. They are readable as lists: `instance.<name>`."""
    object.__setattr__(instance, "_attached", found)


def attached(instance: Any) -> dict[str, list[Any]]:
    """The attached instances, by name."""
    try:
        found: dict[str, list[Any]] = object.__getattribute__(instance, "_attached")
    except AttributeError:  # the slot was never set
        return {}
    return found
