"""The signatures of receivers, for type checkers: `instance` must accept the document of the decorator."""

# ruff: noqa: D102 - the classes have only the method `__call__`

from collections.abc import Awaitable, Coroutine
from typing import Any, Protocol, TypeVar

from mongoz.signals.receivers import BatchEvent, Delivery

__all__ = [
    "ConnectedReceiver",
    "DeletedReceiver",
    "DeletingReceiver",
    "SavedReceiver",
    "SavingReceiver",
    "UpdatedReceiver",
    "UpdatingReceiver",
]

D_contra = TypeVar("D_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)


class ConnectedReceiver(Protocol[R_co]):
    """A receiver as its decorator returns it: the same function. Type checkers don't check its parameters."""

    __name__: str
    __qualname__: str

    def __call__(self, sender: Any = ..., *args: Any, **kwargs: Any) -> Coroutine[Any, Any, R_co]: ...


class SavingReceiver(Protocol[D_contra, R_co]):
    """A receiver of `pre_save`."""

    def __call__(
        self, sender: type[D_contra], *, instance: D_contra, created: bool, **kwargs: Any
    ) -> Awaitable[R_co]: ...


class SavedReceiver(Protocol[D_contra, R_co]):
    """A receiver of `post_save`."""

    def __call__(
        self,
        sender: type[D_contra],
        *,
        instance: D_contra,
        created: bool,
        previous: D_contra | None,
        delivery: Delivery,
        batch: list[BatchEvent],
        **kwargs: Any,
    ) -> Awaitable[R_co]: ...


class UpdatingReceiver(Protocol[D_contra, R_co]):
    """A receiver of `pre_update`."""

    def __call__(
        self, sender: type[D_contra], *, instance: D_contra, update_fields: frozenset[str], **kwargs: Any
    ) -> Awaitable[R_co]: ...


class UpdatedReceiver(Protocol[D_contra, R_co]):
    """A receiver of `post_update`."""

    def __call__(
        self,
        sender: type[D_contra],
        *,
        instance: D_contra,
        update_fields: frozenset[str],
        previous: D_contra | None,
        delivery: Delivery,
        batch: list[BatchEvent],
        **kwargs: Any,
    ) -> Awaitable[R_co]: ...


class DeletingReceiver(Protocol[D_contra, R_co]):
    """A receiver of `pre_delete`."""

    def __call__(self, sender: type[D_contra], *, instance: D_contra, **kwargs: Any) -> Awaitable[R_co]: ...


class DeletedReceiver(Protocol[D_contra, R_co]):
    """A receiver of `post_delete`."""

    def __call__(
        self,
        sender: type[D_contra],
        *,
        instance: D_contra,
        delivery: Delivery,
        batch: list[BatchEvent],
        **kwargs: Any,
    ) -> Awaitable[R_co]: ...
