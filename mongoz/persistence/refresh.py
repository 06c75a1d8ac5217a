"""Loading an instance again."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from mongoz.connection.transactions import join
from mongoz.exceptions import DocumentNotFound
from mongoz.persistence.rows.hydration import hydrate, id_of, loaded
from mongoz.persistence.turns import in_turn
from mongoz.persistence.writes import require_id

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["refresh"]

D = TypeVar("D", bound="Document")

_STATE = ("__class__", "__dict__", "__pydantic_extra__", "__pydantic_fields_set__", "_loaded")


def refresh(instance: D, session: Any = None) -> Coroutine[Any, Any, D]:
    """Load an instance again; see `Document.refresh`."""
    return in_turn(instance, session, _refresh(instance, session))


async def _refresh(instance: D, session: Any) -> D:
    document: type[D] = type(instance).meta.document
    require_id(instance)
    where = loaded(instance).collection
    place = where or document.meta.require_collection()
    joined = join(place.database._registry, session)
    row = await place._collection.find_one({"_id": id_of(instance)}, session=joined.session)
    if row is None:
        raise DocumentNotFound(f"{place.namespace} has no document with _id {instance.id!r} to refresh from.")
    fresh = hydrate(document, row, where)
    for name in _STATE:
        object.__setattr__(instance, name, getattr(fresh, name))
    return instance
