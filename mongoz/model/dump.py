"""Dumps of instances: dicts and JSON."""

from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from mongoz.fields.json_forms import add_json_forms, as_json

__all__ = ["DumpableModel"]


class DumpableModel(BaseModel):
    """Pydantic's dumps, for models with values of BSON's own types."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        add_json_forms(handler.resolve_ref_schema(schema))
        return schema

    def model_dump(self, *, show_id: bool = False, **options: Any) -> dict[str, Any]:
        """The fields as a dict.

        Args:
            show_id: include the id, regardless of `include` and `exclude`.
            **options: arguments of `pydantic.BaseModel.model_dump`.
        """
        if options.get("mode") == "json":
            options.setdefault("fallback", as_json)
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
        options.setdefault("fallback", as_json)
        return super().model_dump_json(**options)
