"""The columns of `values` and `values_list`: plain Python values of chosen fields."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import BaseModel

from mongoz.exceptions import FieldDefinitionError, InvalidKeyError
from mongoz.fields.storage import stored_names
from mongoz.model.joins import Join
from mongoz.model.paths import split_keyword
from mongoz.model.state import attached
from mongoz.queries.plan import Plan
from mongoz.queries.projection import field_names, loaded_names

__all__ = ["Columns", "select_columns"]


class Columns(NamedTuple):
    """The chosen fields of a query.

    Attributes:
        plan: the query, which loads only the needed fields.
        names: fields of the document, in the order of the model.
        parts: fields of joined documents, by the name under which the joined documents are attached.
        undeclared: undeclared keys are included.
    """

    plan: Plan
    names: tuple[str, ...]
    parts: Mapping[str, frozenset[str]]
    undeclared: bool

    @property
    def width(self) -> int:
        """The number of columns."""
        return len(self.names) + len(self.parts)

    def values_of(self, instance: Any, *, exclude_none: bool) -> dict[str, Any]:
        """The values of one instance."""
        values: dict[str, Any] = {name: _plain(instance.__dict__[name]) for name in self.names}
        if self.undeclared:
            values.update(_plain(instance.__pydantic_extra__ or {}))
        for name in self.parts:
            values[name] = [_plain(each) for each in attached(instance)[name]]
        if exclude_none:
            return {name: value for name, value in values.items() if value is not None}
        return values


def select_columns(document: Any, plan: Plan, fields: Any, exclude: Any, *, undeclared: bool) -> Columns:
    """The columns of `values(fields, exclude)`.

    Args:
        document: the queried class.
        plan: the query.
        fields: a list of names, which may be `reference__name`; None or an empty list for all.
        exclude: a list, tuple or set of names to leave out; or None.
        undeclared: include undeclared keys, unless `fields` or `only()` chooses the fields.

    Raises:
        FieldDefinitionError: `fields` or `exclude` has a wrong type.
        InvalidKeyError: there is no such field.
    """
    if not isinstance(fields, list | None):
        raise FieldDefinitionError(f"fields={fields!r} must be a list of names.")
    if not isinstance(exclude, list | tuple | set | frozenset | None):
        raise FieldDefinitionError(f"exclude={exclude!r} must be a list, a tuple or a set of names.")
    own: frozenset[str] | None = None
    parts: dict[str, frozenset[str]] = {}
    if fields:
        plan, references, parts = _with_references(document, plan, [str(name) for name in fields])
        own = field_names(document, "values", [name for name in fields if str(name) not in references])
        plan = replace(plan, only=own | {"id"}, parts=frozenset(), defer=frozenset())
    left_out = field_names(document, "values", exclude or ())
    if plan.only is None:
        plan = replace(plan, defer=plan.defer | left_out - {"id"})
    else:
        plan = replace(plan, only=plan.only - left_out | {"id"})
    given = (own if own is not None else loaded_names(document, plan) or document.model_fields.keys()) - left_out
    names = tuple(name for name in document.model_fields if name in given)
    return Columns(plan, names, parts, undeclared and plan.only is None)


def _with_references(
    document: Any, plan: Plan, names: Iterable[str]
) -> tuple[Plan, set[str], dict[str, frozenset[str]]]:
    """Add the joins for names like `reference__name` to the plan.

    Returns:
        The plan, the names like `reference__name`, and the fields of each joined document, by the name of the
        join.
    """
    references = set()
    parts: dict[str, frozenset[str]] = {}
    for name in names:
        path, rest = split_keyword(document, name)
        if rest is not None or not path.joins:
            continue
        references.add(name)
        plan = plan.matching((), path.joins)
        last = path.joins[-1]
        parts[last.name] = parts.get(last.name, frozenset()) | {_attribute(last, path.path, name)}
    return plan, references, parts


def _attribute(join: Join, path: str, name: str) -> str:
    for attribute, alias in stored_names(join.document).items():
        if alias == path:
            return attribute
    raise InvalidKeyError(f"values() takes whole fields of a referenced document, not {name!r}.")


def _plain(value: Any) -> Any:
    """Convert the models in a value to dicts with attribute names."""
    if isinstance(value, BaseModel):
        return _plain({**value.__dict__, **(value.__pydantic_extra__ or {})})
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value
