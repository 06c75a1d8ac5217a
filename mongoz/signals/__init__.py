"""Signals: events of documents, and their receivers. No I/O."""

from mongoz.signals.broadcaster import Broadcaster
from mongoz.signals.contexts import context
from mongoz.signals.decorators import (
    post_delete,
    post_save,
    post_update,
    pre_delete,
    pre_save,
    pre_update,
)
from mongoz.signals.mutes import muted
from mongoz.signals.options import Batch, DeliveryMode, OnFailure, ReceiverOptions, Retry
from mongoz.signals.receivers import BatchEvent, Delivery
from mongoz.signals.signal import Signal

__all__ = [
    "Batch",
    "BatchEvent",
    "Broadcaster",
    "Delivery",
    "DeliveryMode",
    "OnFailure",
    "ReceiverOptions",
    "Retry",
    "Signal",
    "context",
    "muted",
    "post_delete",
    "post_save",
    "post_update",
    "pre_delete",
    "pre_save",
    "pre_update",
]
