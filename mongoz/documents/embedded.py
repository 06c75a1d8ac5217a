"""Documents inside documents."""

from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from pydantic import BaseModel, ConfigDict

from mongoz.documents.construction import ModelMetaclass, declare_fields

__all__ = ["EmbeddedDocument"]


@dataclass_transform(kw_only_default=True, field_specifiers=())
class _EmbeddedMetaclass(ModelMetaclass):
    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **kwargs: Any) -> Any:
        declare_fields(namespace)
        return super().__new__(mcs, name, bases, namespace, **kwargs)


class EmbeddedDocument(BaseModel, metaclass=_EmbeddedMetaclass):
    """A part of a document: fields and validation, but no id, no collection and no signals of its own.

    Keys that are not declared are kept: writing the part back must not lose other clients' data.

    Example:
        >>> class Address(mongoz.EmbeddedDocument):
        ...     city: str = mongoz.String()
        >>> class User(mongoz.Document):
        ...     address: Address = mongoz.Embed(Address)
    """

    model_config = ConfigDict(
        extra="allow", arbitrary_types_allowed=True, validate_assignment=True, populate_by_name=True
    )

    __embedded__: ClassVar[bool] = True

    if TYPE_CHECKING:
        # dataclass_transform gives it a constructor of its fields; what is undeclared is allowed too.
        def __init__(self, **values: Any) -> None: ...
