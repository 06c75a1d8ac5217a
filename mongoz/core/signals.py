"""The public import path of the signals; the code is in `mongoz.signals`."""

from mongoz.signals import (
    Broadcaster,
    Signal,
    post_delete,
    post_save,
    post_update,
    pre_delete,
    pre_save,
    pre_update,
)

__all__ = [
    "Broadcaster",
    "Signal",
    "post_delete",
    "post_save",
    "post_update",
    "pre_delete",
    "pre_save",
    "pre_update",
]
