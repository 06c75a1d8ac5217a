"""`mongoz.ObjectId`: a value, an annotation and a field declaration in one."""

from typing import TYPE_CHECKING, Any, Final, overload

import bson
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from mongoz.exceptions import InvalidObjectIdError
from mongoz.fields.json_forms import bson_schema
from mongoz.fields.nullable import StandsFor

__all__ = ["ObjectId", "parse_object_id"]

_NO_OPTIONS: Final[dict[str, Any]] = {}


class ObjectId(bson.ObjectId):
    """An ObjectId that pydantic understands.

    As a value it is a `bson.ObjectId`. If it is assigned in the body of a document, it declares a field, and takes
    the arguments of all fields. The assigned value is not the default of the field. Without `null` and `default`,
    the field is required.

    Args:
        oid: 24 hexadecimal digits, 12 bytes or another ObjectId; a new id by default.
        **field_options: `null`, `default`, `alias`, ... as for any field.

    Raises:
        InvalidId: from bson, if `oid` is no ObjectId.

    Examples:
        >>> class Order(mongoz.Document):
        ...     customer: ObjectId = ObjectId()
        ...     invoice: ObjectId = ObjectId(null=True)
    """

    # bson.ObjectId has slots: without our own slots every id would have a dict.
    __slots__ = ("field_options",)

    def __init__(self, oid: Any = None, **field_options: Any) -> None:
        super().__init__(oid)
        self.field_options = field_options or _NO_OPTIONS

    if TYPE_CHECKING:
        # For type checkers, a field of this type is a descriptor. So they accept a document as the value of a
        # foreign key, and `Order.customer` in expressions.
        @overload
        def __get__(self, instance: None, owner: Any) -> Any: ...
        @overload
        def __get__(self, instance: object, owner: Any) -> "ObjectId": ...
        def __get__(self, instance: object, owner: Any) -> Any: ...
        def __set__(self, instance: object, value: "ObjectId | StandsFor[ObjectId]") -> None: ...

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return bson_schema(bson.ObjectId)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "examples": ["65f0c0ffee0123456789abcd"]}


def parse_object_id(value: Any) -> bson.ObjectId:
    """The ObjectId with these 24 hexadecimal digits; an ObjectId stays unchanged.

    Raises:
        InvalidObjectIdError: the value is neither.
    """
    if isinstance(value, bson.ObjectId):
        return value
    if isinstance(value, str) and bson.ObjectId.is_valid(value):
        return bson.ObjectId(value)
    raise InvalidObjectIdError(f"{value!r} is not an ObjectId; it must have 24 hexadecimal digits.")
