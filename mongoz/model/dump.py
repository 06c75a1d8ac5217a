"""Dumps of instances: dicts and JSON."""

from typing import Any

import bson
from pydantic import BaseModel

__all__ = ["DumpableModel"]


def _as_json(value: Any) -> Any:
    """The form of BSON's own types in JSON, for fields and undeclared keys of any type."""
    if isinstance(value, bson.ObjectId | bson.Decimal128):
        return str(value)
    raise TypeError(f"{value!r} of type {type(value).__name__} can't become JSON.")


class DumpableModel(BaseModel):
    """Pydantic's dumps, for models with values of BSON's own types."""

    def model_dump(self, *, show_id: bool = False, **options: Any) -> dict[str, Any]:
        """The fields as a dict.

        Args:
            show_id: include the id, regardless of `include` and `exclude`.
            **options: arguments of `pydantic.BaseModel.model_dump`.
        """
        if options.get("mode") == "json":
            options.setdefault("fallback", _as_json)
        dumped = super().model_dump(**options)
        if not show_id or "id" in dumped or "_id" in dumped or "id" not in self.__dict__:
            return dumped
        chosen = {name: options[name] for name in ("mode", "by_alias", "fallback") if name in options}
        return super().model_dump(include={"id"}, **chosen) | dumped

    def __iter__(self) -> Any:
        """`dict(instance)` is `instance.model_dump()`, with embedded documents as dicts."""
        yield from self.model_dump().items()

    def model_dump_json(self, **options: Any) -> str:
        """The fields as JSON; see `pydantic.BaseModel.model_dump_json` for the options."""
        options.setdefault("fallback", _as_json)
        return super().model_dump_json(**options)
