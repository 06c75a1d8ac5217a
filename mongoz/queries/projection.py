"""The fields that a query loads, and the functions that make instances from its rows."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from mongoz.connection import Collection
from mongoz.exceptions import InvalidKeyError
from mongoz.fields.storage import stored_names
from mongoz.model.partial import fill_in_defaults, loaded_from
from mongoz.model.parts import class_of_parts, divisible_path, tags_on_the_way
from mongoz.model.paths import resolve_path
from mongoz.model.state import attach
from mongoz.queries.plan import Plan
from mongoz.settings import settings
from mongoz.synonyms import nearest

__all__ = ["field_names", "field_parts", "instance_maker", "loaded_names", "projection"]

Parts = Mapping[str, frozenset[str]]
_ALL_PARTS: Final[Parts] = {}


def field_names(document: Any, caller: str, names: Iterable[Any]) -> frozenset[str]:
    """The attribute names of fields that are given by name, by alias, by a name of the id, or as `Document.field`.

    Args:
        document: the queried class.
        caller: the name of the query method, for the message.
        names: the given names.

    Raises:
        InvalidKeyError: there is no such field, or the name is a part of a field.
    """
    return frozenset(_field_name(document, caller, name) for name in names)


def field_parts(document: Any, names: Iterable[Any]) -> tuple[frozenset[str], frozenset[str]]:
    """The fields, and the parts of fields such as `address.city`, that `only` loads.

    Returns:
        The attribute names of the fields, and the stored paths of the parts. If no part of a field is listed,
        the whole field is loaded.

    Raises:
        InvalidKeyError: there is no such field, or the name is an item of a list.
    """
    stored_as = stored_names(document)
    known = {*stored_as, *stored_as.values(), *settings.parsed_ids}
    dotted = {str(name) for name in names if str(name) not in known and "." in str(name)}
    whole = field_names(document, "only", [name for name in names if str(name) not in dotted])
    attributes = {alias: name for name, alias in stored_as.items()}
    paths = {divisible_path(document, resolve_path(document, name).path) for name in dotted}
    whole |= {attributes[path] for path in paths if path in attributes}
    paths |= {tag for path in paths for tag in tags_on_the_way(document, path)}
    for path in paths:
        if any(step.isdecimal() for step in path.split(".")):
            raise InvalidKeyError(f"only() of {document.__name__} can't load single items of a list: {path!r}.")
    paths = {path for path in paths if attributes[path.partition(".")[0]] not in whole}
    outer = {path for path in paths if not any(path.startswith(f"{other}.") for other in paths)}
    return whole | {attributes[path.partition(".")[0]] for path in outer}, frozenset(outer)


def _field_name(document: Any, caller: str, given: Any) -> str:
    name = str(given)
    fields = stored_names(document)
    if name in fields:
        return name
    if name in settings.parsed_ids:
        return "id"
    found = next((attribute for attribute, alias in fields.items() if alias == name), None)
    if found is None:
        hint = " It takes whole fields." if "." in name else nearest(name, fields)
        raise InvalidKeyError(f"{caller}() of {document.__name__}: there is no field {name!r}.{hint}")
    return found


def loaded_names(document: Any, plan: Plan) -> frozenset[str] | None:
    """The attributes that a query loads; None for all, undeclared ones included."""
    if plan.only is not None:
        return plan.only
    return frozenset(document.model_fields) - plan.defer if plan.defer else None


def projection(document: Any, plan: Plan, parts: Parts = _ALL_PARTS) -> dict[str, int] | None:
    """The projection of a query; None for everything.

    Args:
        document: the queried class.
        plan: the query.
        parts: the fields of joined documents to load; by default all.
    """
    names = stored_names(document)
    if plan.only is None:
        return dict.fromkeys(sorted(names[name] for name in plan.defer), 0) or None
    in_part = {path.partition(".")[0] for path in plan.parts}
    wanted = [*plan.parts, *(names[name] for name in plan.only if names[name] not in in_part)]
    for join in plan.joins:
        if join.name in parts:
            of_joined = stored_names(join.document)
            wanted += [f"{join.name}.{of_joined[name]}" for name in parts[join.name]]
        else:
            wanted.append(join.name)
    return dict.fromkeys(sorted(wanted), 1)


def instance_maker(
    document: Any, plan: Plan, other_collection: Collection | None, parts: Parts = _ALL_PARTS
) -> Callable[[dict[str, Any]], Any]:
    """The function that makes an instance from a row. It is chosen once per query, and called for every row.

    Args:
        document: the queried class.
        plan: the query.
        other_collection: the collection of the rows; None if it is the document's own.
        parts: the loaded fields of joined documents; by default all.
    """
    make = _maker(document, loaded_names(document, plan), other_collection, plan.parts)
    if not plan.joins:
        return make
    attachers = {}
    for join in plan.joins:
        place = other_collection and other_collection.database.get_collection(join.name)
        attachers[join.name] = _maker(join.document, parts.get(join.name), place)
    return partial(_with_attached, make, attachers)


def _maker(
    document: Any,
    names: frozenset[str] | None,
    other_collection: Collection | None,
    parts: frozenset[str] = frozenset(),
) -> Callable[..., Any]:
    if names is not None:
        partial_class = class_of_parts(document, parts) if parts else document.proxy_document
        return partial(_hydrate_partial, partial_class, names=names, collection=other_collection)
    if other_collection is not None:
        return partial(document.from_row, collection=other_collection)
    from_row: Callable[..., Any] = document.from_row
    return from_row


def _hydrate_partial(
    partial_class: Any, row: dict[str, Any], names: frozenset[str], collection: Collection | None = None
) -> Any:
    """Make an instance with some of the fields of a document.

    Args:
        partial_class: the document's `proxy_document`, or its class of parts.
        row: the loaded fields. The stamp is removed from the row, and the instance keeps the row.
        names: the wanted fields; a field that is not stored gets its default.
        collection: the collection of the row; None if it is the document's own.

    Raises:
        pydantic.ValidationError: the row violates the model. The message contains the collection, `_id` and field.
    """
    id_ = row.get("_id")
    instance = partial_class.from_row(row, collection)
    if missing := names - instance.__dict__.keys():
        fill_in_defaults(instance, missing, loaded_from(partial_class, collection, id_))
    return instance


def _with_attached(
    make: Callable[..., Any], attachers: Mapping[str, Callable[..., Any]], row: dict[str, Any]
) -> Any:
    joined = {name: row.pop(name, []) for name in attachers}
    instance = make(row)
    attach(instance, {name: [attachers[name](each) for each in rows] for name, rows in joined.items()})
    return instance
