"""The names of the built-in signals, and the keywords of their receivers."""

from typing import Final

__all__ = ["BATCH_KEYWORDS", "BUILT_IN", "KEYWORDS", "POST", "PRE"]

KEYWORDS: Final[dict[str, frozenset[str]]] = {
    "pre_save": frozenset({"sender", "instance", "created"}),
    "post_save": frozenset({"sender", "instance", "created", "previous", "delivery"}),
    "pre_update": frozenset({"sender", "instance", "update_fields"}),
    "post_update": frozenset({"sender", "instance", "update_fields", "previous", "delivery"}),
    "pre_delete": frozenset({"sender", "instance"}),
    "post_delete": frozenset({"sender", "instance", "delivery"}),
}

BATCH_KEYWORDS: Final = frozenset({"sender", "batch"})
"""The keywords of receivers with the option `batch`."""

PRE: Final = ("pre_save", "pre_update", "pre_delete")
POST: Final = ("post_save", "post_update", "post_delete")
BUILT_IN: Final = frozenset(KEYWORDS)
