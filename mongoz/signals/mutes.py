"""Mutes: blocks in which signals do not fire. A block applies to the task that enters it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from mongoz.exceptions import SignalError
from mongoz.signals.names import BUILT_IN
from mongoz.synonyms import nearest

__all__ = ["Muting", "is_muted", "muted", "muting"]


class _Mute(NamedTuple):
    documents: tuple[type, ...]
    names: frozenset[str]

    def covers(self, sender: object, name: str | None) -> bool:
        if self.names and name not in self.names:
            return False
        return not self.documents or any(_includes(document, sender) for document in self.documents)


def _includes(document: Any, sender: object) -> bool:
    """Whether a mute of `document` includes `sender`: an abstract document includes its subclasses."""
    return document is sender or (
        document.meta.abstract and isinstance(sender, type) and issubclass(sender, document)
    )


_mutes: ContextVar[tuple[_Mute, ...]] = ContextVar("mongoz_mutes", default=())


class Muting:
    """Whether this process has used mutes so far.

    Attributes:
        is_used: something was muted in this process. While the flag is False, the context variable is not read,
            because reading it takes a tenth of the time of sending a signal.
    """

    __slots__ = ("is_used",)

    def __init__(self) -> None:
        self.is_used = False


muting: Final = Muting()


@contextmanager
def muted(*targets: Any) -> Iterator[None]:
    """A block in which signals do not fire: in this task, and in tasks that this task starts inside of the block.

    Dispatchers don't deliver the writes of the block either: on a dispatched registry the stamp of a write says
    that the write is muted. So a migration, for example, sends no e-mails.

    Args:
        *targets: documents and names of signals. Without targets, every signal is muted. With documents only, all
            signals of these documents are muted; an abstract document includes its subclasses. With names only,
            the signals of these names are muted for every document. With both, the signals of these names are
            muted for these documents.

    Raises:
        SignalError: a target is neither a document nor a name.

    Examples:
        >>> with muted(User, "post_save"):
        ...     await user.save()
    """
    for target in targets:
        if isinstance(target, str) and target.startswith(("pre_", "post_")) and target not in BUILT_IN:
            raise SignalError(f"There is no signal {target!r} to mute.{nearest(target, BUILT_IN)}")
    documents = tuple(target for target in targets if isinstance(target, type) and hasattr(target, "meta"))
    names = frozenset(target for target in targets if isinstance(target, str))
    if len(documents) + len([t for t in targets if isinstance(t, str)]) != len(targets):
        wrong = next(t for t in targets if not isinstance(t, str) and t not in documents)
        raise SignalError(f"muted() takes documents and names of signals, not {wrong!r}.")
    muting.is_used = True
    token = _mutes.set((*_mutes.get(), _Mute(documents, names)))
    try:
        yield
    finally:
        _mutes.reset(token)


def is_muted(sender: object, name: str | None) -> bool:
    """Whether the signal of this name and sender is muted in the current task."""
    return muting.is_used and any(mute.covers(sender, name) for mute in _mutes.get())
