"""Documents inside of documents."""

from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from pydantic import ConfigDict

from mongoz.model.dump import DumpableModel
from mongoz.model.metaclass import FieldsMetaclass

__all__ = ["EmbeddedDocument"]


@dataclass_transform(kw_only_default=True, field_specifiers=())
class _EmbeddedMetaclass(FieldsMetaclass):
    pass


class EmbeddedDocument(DumpableModel, metaclass=_EmbeddedMetaclass):
    """A part of a document: fields and validation, but no id, no collection and no signals of its own.

    An instance keeps undeclared keys, because a write of the document must not lose the data of other clients.

    Examples:
        >>> class Address(mongoz.EmbeddedDocument):
        ...     city: str = mongoz.String()
        >>> class User(mongoz.Document):
        ...     address: Address = mongoz.Embed(Address)
    """

    model_config = ConfigDict(
        extra="allow",
        arbitrary_types_allowed=True,
        validate_assignment=True,
        populate_by_name=True,
        loc_by_alias=False,  # errors contain the names of fields, not their aliases
    )

    __embedded__: ClassVar[bool] = True

    if TYPE_CHECKING:
        # Without this, type checkers would refuse undeclared keys, because of dataclass_transform.
        def __init__(self, **values: Any) -> None: ...
