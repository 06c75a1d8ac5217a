"""Dumps of instances as dicts and as JSON, and the short text of an instance for people."""

import reprlib
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from mongoz.fields.email import LOADING
from mongoz.fields.json_forms import add_json_forms, as_json
from mongoz.model.assignment import DirectAssignment

__all__ = ["DumpableModel", "as_json", "shown"]


def _names_in_dumps(model: type[BaseModel]) -> frozenset[str]:
    """The names in dumps that belong to computed fields only."""
    computed = model.__pydantic_decorators__.computed_fields
    names = {*computed, *(one.info.alias for one in computed.values() if one.info.alias)}
    fields = model.__pydantic_fields__
    return frozenset(names.difference(fields, (str(field.validation_alias) for field in fields.values())))


def _leave_out_computed(schema: Any, names: frozenset[str]) -> None:
    """Change a model's schema, so that validation ignores the values of computed fields.

    The validated dict may be a dump. Without this change, its computed values would become undeclared keys, and be
    stored. A row of the database may have undeclared keys with these names, and keeps them.
    """

    def leave_out(value: Any, info: core_schema.ValidationInfo[Any]) -> Any:
        if info.context is LOADING or not isinstance(value, Mapping) or names.isdisjoint(value):
            return value  # when a field is assigned, pydantic passes the instance
        return {name: each for name, each in value.items() if name not in names}

    own = dict(schema)
    ref = own.pop("ref", None)
    schema.clear()
    schema.update(core_schema.with_info_before_validator_function(leave_out, own, ref=ref))


class DumpableModel(DirectAssignment):
    """Pydantic's dumps, for models with values of BSON's own types."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        own: Any = handler.resolve_ref_schema(schema)
        add_json_forms(own)
        if names := _names_in_dumps(cls):
            _leave_out_computed(own, names)
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
    """The short form of a value: of a long value, only the start and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring, self.maxother = 60, 90
        self.maxlist = self.maxtuple = self.maxset = self.maxdict = 4

    def repr_bytes(self, value: bytes, _level: int) -> str:
        return repr(value) if len(value) <= 20 else f"{value[:20]!r}... ({len(value)} bytes)"


_SHORT: Final = _ShortRepr()


def shown(instance: BaseModel) -> str:
    """The class and the loaded fields of an instance, with short values. Fields with `repr=False` are left out."""
    fields = type(instance).__pydantic_fields__
    values = {
        name: instance.__dict__[name] for name, field in fields.items() if name in instance.__dict__ and field.repr
    }
    values |= instance.__pydantic_extra__ or {}
    texts = [f"{name}={value if name == 'id' else _SHORT.repr(value)}" for name, value in values.items()]
    return f"{type(instance).__name__}({', '.join(texts)})"
