"""Dumps of instances: dicts and JSON; and their short form for people."""

import reprlib
from typing import Any, Final

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from mongoz.fields.json_forms import add_json_forms, as_json

__all__ = ["DumpableModel", "as_json", "shown"]


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


class _ShortRepr(reprlib.Repr):
    """The short form of a value: the start and the end of what is long."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxother = 60, 90
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 4

    def repr_bytes(self, value: bytes, _level: int) -> str:
        return repr(value) if len(value) <= 20 else f"{value[:20]!r}... ({len(value)} bytes)"


_SHORT: Final = _ShortRepr()


def shown(instance: BaseModel) -> str:
    """The class and the loaded fields of an instance, each shortened, without fields of `repr=False`."""
    fields = type(instance).__pydantic_fields__
    values = {
        name: instance.__dict__[name] for name, field in fields.items() if name in instance.__dict__ and field.repr
    }
    values |= instance.__pydantic_extra__ or {}
    texts = [f"{name}={value if name == 'id' else _SHORT.repr(value)}" for name, value in values.items()]
    return f"{type(instance).__name__}({', '.join(texts)})"
