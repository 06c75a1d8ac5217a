"""Loads an instance again."""

from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from mongoz.connection.transactions import join_transaction
from mongoz.exceptions import DocumentNotFound
from mongoz.model.base import Model
from mongoz.model.state import loaded
from mongoz.persistence.errors import require_id
from mongoz.persistence.rows.hydration import hydrate
from mongoz.persistence.rows.validation import id_of
from mongoz.persistence.turns import Turn, run_in_turn

__all__ = ["refresh_instance"]

D = TypeVar("D", bound=Model)

_STATE: Final = ("__class__", "__dict__", "__pydantic_extra__", "__pydantic_fields_set__", "_loaded")


def refresh_instance(instance: D, session: Any = None) -> Coroutine[Any, Any, D]:
    """Load an instance again; see `Document.refresh`."""
    return run_in_turn(instance, session, _refresh)


async def _refresh(_turn: Turn, instance: D, session: Any) -> D:
    document: type[D] = type(instance).meta.document
    require_id(instance)
    other_collection = loaded(instance).collection
    place = other_collection or document.meta.require_collection()
    joined = join_transaction(place.database.deployment, session)
    row = await place.driver_collection.find_one({"_id": id_of(instance)}, session=joined.session)
    if row is None:
        raise DocumentNotFound(f"{place.namespace} has no document with _id {instance.id!r} to refresh from.")
    fresh = hydrate(document, row, other_collection)
    for name in _STATE:
        object.__setattr__(instance, name, getattr(fresh, name))
    return instance
