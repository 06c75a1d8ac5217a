"""`@pre_save(User)` and its five siblings."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, Unpack

from mongoz.exceptions import SignalError
from mongoz.signals.broadcaster import Broadcaster
from mongoz.signals.options import ReceiverOptions
from mongoz.signals.receivers import ReceiverFunction
from mongoz.signals.signal import Signal

__all__ = ["post_delete", "post_save", "post_update", "pre_delete", "pre_save", "pre_update"]

_F = TypeVar("_F", bound=ReceiverFunction)
_Senders = type | Iterable[type]


def _signals_of(senders: Any, name: str) -> list[Signal]:
    many = list(senders) if isinstance(senders, list | tuple | set | frozenset) else [senders]
    if not many:
        raise SignalError(f"@{name}(...) needs at least one document.")
    signals = []
    for sender in many:
        broadcaster = getattr(getattr(sender, "meta", None), "signals", None)
        if not (isinstance(sender, type) and isinstance(broadcaster, Broadcaster)):
            raise SignalError(f"@{name}(...) takes a document or a list of documents, not {sender!r}.")
        signals.append(getattr(broadcaster, name))
    return signals


def _connect(senders: _Senders, signal: str, options: ReceiverOptions) -> Callable[[_F], _F]:
    signals = _signals_of(senders, signal)

    def decorate(receiver: _F) -> _F:
        connected: list[Signal] = []
        try:
            for one in signals:
                if receiver not in one:
                    one.connect(receiver, **options)
                    connected.append(one)
        except SignalError:  # all of the list, or none
            for one in connected:
                one.disconnect(receiver)
            raise
        return receiver

    return decorate


def pre_save(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]:
    """Run before an instance is created or saved; what it changes is written, what it raises aborts.

    Keywords: `sender`, `instance`, `created`.

    Args:
        senders: a document class, or a list or tuple of them.
        **options: those of `post_*` signals; refused with words rather than with a TypeError.

    Raises:
        SignalError: not a document, an option, or (when decorating) not an async callable of the right shape.

    Examples:
        >>> @pre_save(User)
        ... async def normalize(sender, instance, **kwargs):
        ...     instance.name = instance.name.strip()
    """
    return _connect(senders, "pre_save", options)


def post_save(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]:
    """Run after a document was inserted, saved or replaced, by whomever.

    Keywords: `sender`, `instance`, `created`, `previous`, `delivery`.

    Args:
        senders: a document class, or a list or tuple of them.
        **options: where it runs, for which changes, and what if it fails: see `ReceiverOptions`.

    Raises:
        SignalError: not a document, an option that does not fit, or (when decorating) not an async
            callable of the right shape.

    Examples:
        >>> @post_save(User)
        ... async def welcome(sender, instance, created, **kwargs):
        ...     if created:
        ...         await send_mail(instance.email)
    """
    return _connect(senders, "post_save", options)


def pre_update(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]:
    """Run before `update()`; the instance has the new values, what else changes on it is written too.

    Keywords: `sender`, `instance`, `update_fields`. For arguments, errors and an example see `pre_save`.
    """
    return _connect(senders, "pre_update", options)


def post_update(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]:
    """Run after single fields of a document were changed, by whomever.

    Keywords: `sender`, `instance`, `update_fields`, `previous`, `delivery`. For arguments, errors and an
    example see `post_save`.
    """
    return _connect(senders, "post_update", options)


def pre_delete(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]:
    """Run before a document is deleted; what it raises keeps the document.

    Keywords: `sender`, `instance`. For arguments, errors and an example see `pre_save`.
    """
    return _connect(senders, "pre_delete", options)


def post_delete(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]:
    """Run after a document was deleted, by whomever.

    Keywords: `sender`, `instance`, `delivery`. For arguments, errors and an example see `post_save`.
    """
    return _connect(senders, "post_delete", options)
