"""The decorators of receivers: `@pre_save(User)` and five others."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, Unpack, overload

from mongoz.exceptions import SignalError
from mongoz.signals.broadcaster import Broadcaster
from mongoz.signals.options import ReceiverOptions
from mongoz.signals.protocols import (
    ConnectedReceiver,
    DeletedReceiver,
    DeletingReceiver,
    SavedReceiver,
    SavingReceiver,
    UpdatedReceiver,
    UpdatingReceiver,
)
from mongoz.signals.receivers import ReceiverFunction
from mongoz.signals.signal import Signal

__all__ = ["post_delete", "post_save", "post_update", "pre_delete", "pre_save", "pre_update"]

_F = TypeVar("_F", bound=ReceiverFunction)
_D = TypeVar("_D")
_R = TypeVar("_R")
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
        except SignalError:  # connect to all documents of the list, or to none
            for one in connected:
                one.disconnect(receiver)
            raise
        return receiver

    return decorate


@overload
def pre_save(
    senders: type[_D], **options: Unpack[ReceiverOptions]
) -> Callable[[SavingReceiver[_D, _R]], ConnectedReceiver[_R]]: ...
@overload
def pre_save(senders: Iterable[type], **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]: ...
def pre_save(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Any:
    """Run the receiver before an instance is created or saved.

    Changes that the receiver makes to the instance are written. An error of the receiver aborts the write.

    Keywords: `sender`, `instance`, `created`.

    Args:
        senders: a document class, or a list or tuple of them.
        **options: no option is valid. An option of `post_*` signals raises an error that explains this.

    Raises:
        SignalError: a sender is no document, an option was given, or the decorated object is no async callable
            with the right parameters.

    Examples:
        >>> @pre_save(User)
        ... async def normalize(sender, instance, **kwargs):
        ...     instance.name = instance.name.strip()
    """
    return _connect(senders, "pre_save", options)


@overload
def post_save(
    senders: type[_D], **options: Unpack[ReceiverOptions]
) -> Callable[[SavedReceiver[_D, _R]], ConnectedReceiver[_R]]: ...
@overload
def post_save(senders: Iterable[type], **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]: ...
def post_save(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Any:
    """Run the receiver after any client has inserted, saved or replaced a document.

    Keywords: `sender`, `instance`, `created`, `previous`, `delivery`.

    Args:
        senders: a document class, or a list or tuple of them.
        **options: where the receiver runs, for which changes, and how failures are handled: see `ReceiverOptions`.

    Raises:
        SignalError: a sender is no document, an option is wrong, or the decorated object is no async callable with
            the right parameters.

    Examples:
        >>> @post_save(User)
        ... async def welcome(sender, instance, created, **kwargs):
        ...     if created:
        ...         await send_mail(instance.email)
    """
    return _connect(senders, "post_save", options)


@overload
def pre_update(
    senders: type[_D], **options: Unpack[ReceiverOptions]
) -> Callable[[UpdatingReceiver[_D, _R]], ConnectedReceiver[_R]]: ...
@overload
def pre_update(senders: Iterable[type], **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]: ...
def pre_update(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Any:
    """Run the receiver before `update()`. The instance has the new values already.

    Changes that the receiver makes to the instance are written.

    Keywords: `sender`, `instance`, `update_fields`. For arguments, errors and an example see `pre_save`.
    """
    return _connect(senders, "pre_update", options)


@overload
def post_update(
    senders: type[_D], **options: Unpack[ReceiverOptions]
) -> Callable[[UpdatedReceiver[_D, _R]], ConnectedReceiver[_R]]: ...
@overload
def post_update(senders: Iterable[type], **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]: ...
def post_update(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Any:
    """Run the receiver after any client has changed some fields of a document.

    Keywords: `sender`, `instance`, `update_fields`, `previous`, `delivery`. For arguments, errors and an
    example see `post_save`.
    """
    return _connect(senders, "post_update", options)


@overload
def pre_delete(
    senders: type[_D], **options: Unpack[ReceiverOptions]
) -> Callable[[DeletingReceiver[_D, _R]], ConnectedReceiver[_R]]: ...
@overload
def pre_delete(senders: Iterable[type], **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]: ...
def pre_delete(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Any:
    """Run the receiver before a document is deleted. An error of the receiver prevents the deletion.

    Keywords: `sender`, `instance`. For arguments, errors and an example see `pre_save`.
    """
    return _connect(senders, "pre_delete", options)


@overload
def post_delete(
    senders: type[_D], **options: Unpack[ReceiverOptions]
) -> Callable[[DeletedReceiver[_D, _R]], ConnectedReceiver[_R]]: ...
@overload
def post_delete(senders: Iterable[type], **options: Unpack[ReceiverOptions]) -> Callable[[_F], _F]: ...
def post_delete(senders: _Senders, **options: Unpack[ReceiverOptions]) -> Any:
    """Run the receiver after any client has deleted a document.

    Keywords: `sender`, `instance`, `delivery`. For arguments, errors and an example see `post_save`.
    """
    return _connect(senders, "post_delete", options)
