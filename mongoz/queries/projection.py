"""Which fields a query loads, and what makes instances of its rows."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

from mongoz.connection import Collection
from mongoz.exceptions import InvalidKeyError
from mongoz.fields.storage import stored_names
from mongoz.model.attachments import attach
from mongoz.model.partial import hydrate_partial
from mongoz.queries.plan import Plan
from mongoz.settings import settings
from mongoz.synonyms import nearest

__all__ = ["field_names", "loaded_names", "projection", "row_maker"]

Parts = Mapping[str, frozenset[str]]
_WHOLE: Final[Parts] = {}


def field_names(document: Any, caller: str, names: Iterable[Any]) -> frozenset[str]:
    """The attributes that names stand for: aliases, the spellings of the id, and `Document.field`.

    Args:
        document: the class that is queried.
        caller: which method was given them, for the message.
        names: what it was given.

    Raises:
        InvalidKeyError: no such field, or only a part of one.
    """
    return frozenset(_field_name(document, caller, name) for name in names)


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
    """The attributes that a query loads; None for all there are, undeclared ones included."""
    if plan.only is not None:
        return plan.only
    return frozenset(document.model_fields) - plan.defer if plan.defer else None


def projection(document: Any, plan: Plan, parts: Parts = _WHOLE) -> dict[str, int] | None:
    """What the server is to send; None for everything.

    Args:
        document: the class that is queried.
        plan: what it is asked.
        parts: what to load of joined documents, if not everything.
    """
    names = stored_names(document)
    if plan.only is None:
        return dict.fromkeys(sorted(names[name] for name in plan.defer), 0) or None
    wanted = [names[name] for name in plan.only]
    for join in plan.joins:
        if join.name in parts:
            of_joined = stored_names(join.document)
            wanted += [f"{join.name}.{of_joined[name]}" for name in parts[join.name]]
        else:
            wanted.append(join.name)
    return dict.fromkeys(sorted(wanted), 1)


def row_maker(
    document: Any, plan: Plan, elsewhere: Collection | None, parts: Parts = _WHOLE
) -> Callable[[dict[str, Any]], Any]:
    """What makes an instance of a row; chosen once for a query, since it is called for every row.

    Args:
        document: the class that is queried.
        plan: what it is asked.
        elsewhere: where the rows come from, if that is not the document's own collection.
        parts: what is loaded of joined documents, if not everything.
    """
    make = _maker(document, loaded_names(document, plan), elsewhere)
    if not plan.joins:
        return make
    attachers = {}
    for join in plan.joins:
        place = elsewhere and elsewhere.database.get_collection(join.name)
        attachers[join.name] = _maker(join.document, parts.get(join.name), place)
    return partial(_with_attached, make, attachers)


def _maker(document: Any, names: frozenset[str] | None, elsewhere: Collection | None) -> Callable[..., Any]:
    if names is not None:
        return partial(hydrate_partial, document.proxy_document, names=names, collection=elsewhere)
    if elsewhere is not None:
        return partial(document.from_row, collection=elsewhere)
    from_row: Callable[..., Any] = document.from_row
    return from_row


def _with_attached(
    make: Callable[..., Any], attachers: Mapping[str, Callable[..., Any]], row: dict[str, Any]
) -> Any:
    joined = {name: row.pop(name, []) for name in attachers}
    instance = make(row)
    attach(instance, {name: [attachers[name](each) for each in rows] for name, rows in joined.items()})
    return instance
