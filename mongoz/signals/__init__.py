"""Signals: what happens to documents, and the receivers that are told. No I/O in here."""

from mongoz.signals.broadcaster import Broadcaster
from mongoz.signals.decorators import (
    post_delete,
    post_save,
    post_update,
    pre_delete,
    pre_save,
    pre_update,
)
from mongoz.signals.muting import muted
from mongoz.signals.receivers import Delivery, DeliveryMode
from mongoz.signals.signal import Signal

__all__ = [
    "Broadcaster",
    "Delivery",
    "DeliveryMode",
    "Signal",
    "muted",
    "post_delete",
    "post_save",
    "post_update",
    "pre_delete",
    "pre_save",
    "pre_update",
]
