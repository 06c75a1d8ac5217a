"""The base of documents: a pydantic model with an id, a `Meta`, and the last known row of the instance. No I/O."""

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from mongoz.fields import ObjectId
from mongoz.fields.base import declare
from mongoz.model.dump import DumpableModel, shown
from mongoz.model.meta import MetaInfo
from mongoz.model.metaclass import ModelMetaclass
from mongoz.model.partial import not_loaded
from mongoz.model.pickles import pickled_state, reduce_instance, restore_pickled_state
from mongoz.model.reserved import refuse_attribute
from mongoz.model.state import Loaded, attach, attached, loaded, restore
from mongoz.signals import Broadcaster
from mongoz.synonyms import OF_INSTANCES

__all__ = ["Model"]


class _SignalsDescriptor:
    """Makes `signals` the same object as `meta.signals`, on the class and on instances."""

    def __get__(self, instance: Any, owner: type[Any]) -> Broadcaster:
        return owner.meta.signals  # type: ignore[no-any-return]


class _FieldsDescriptor:
    """Makes `model_fields` readable through instances as well, where pydantic's own attribute warns."""

    def __get__(self, instance: Any, owner: type[Any]) -> dict[str, Any]:
        return owner.__pydantic_fields__  # type: ignore[no-any-return]


class _ProxyDescriptor:
    """The attribute `proxy_document`: the class of partial rows, which contain only some of the fields."""

    def __get__(self, instance: object, owner: Any) -> Any:
        return owner.meta.partial_class()


class Model(DumpableModel, metaclass=ModelMetaclass):
    """The part of `Document` that the code for reads and writes needs. Applications inherit from `Document`."""

    # Slots without annotations: pydantic would make private attributes from annotated names, and a third of the
    # loading time would be spent on them.
    __slots__ = ("_attached", "_loaded")

    model_config = ConfigDict(
        extra="allow",
        arbitrary_types_allowed=True,
        validate_assignment=True,
        populate_by_name=True,
        loc_by_alias=False,  # errors contain the names of fields, not their aliases
    )

    id: ObjectId | None = declare(ObjectId, null=True)  # the metaclass sets its stored name

    meta: ClassVar[MetaInfo]
    Meta: ClassVar[Any]
    proxy_document: ClassVar[Any] = _ProxyDescriptor()
    signals: ClassVar[_SignalsDescriptor] = _SignalsDescriptor()
    model_fields: ClassVar[_FieldsDescriptor] = _FieldsDescriptor()
    _mongoz = property(None, refuse_attribute)

    if TYPE_CHECKING:
        _loaded: ClassVar[Loaded]  # ClassVar: else type checkers take it for a parameter of __init__

        # For type checkers only: at run time pydantic would call it for every loaded row.
        def __init__(self, **values: Any) -> None: ...

        def __stands_for__(self) -> ObjectId: ...  # see mongoz.fields.nullable

    if not TYPE_CHECKING:  # else type checkers would accept any attribute

        def __getattr__(self, name: str) -> Any:
            # Python calls it only where the usual lookup fails, so it does not slow down fields.
            found = attached(self)
            if name in found:
                return found[name]
            if name in type(self).__pydantic_fields__:
                raise not_loaded(self, name)
            try:
                return super().__getattr__(name)
            except AttributeError as error:
                if name not in OF_INSTANCES:
                    raise
                hint = f"Did you mean {OF_INSTANCES[name]!r}?"
                raise AttributeError(f"{error}. {hint}", name=name, obj=self) from None

    def __copy__(self) -> Self:
        copied = super().__copy__()
        restore(copied, loaded(self))
        attach(copied, attached(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        copied = super().__deepcopy__(memo)
        restore(copied, loaded(self))  # the snapshot of the loaded row never changes, so the copy shares it
        attach(copied, copy.deepcopy(attached(self), memo))
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_instance(self)

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), **pickled_state(self)}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        restore_pickled_state(self, state)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made = handler(schema)
        whole = handler.resolve_ref_schema(made)
        properties, required = whole.get("properties", {}), whole.get("required", [])
        if "id" not in properties:  # JSON input and output use the name `id`; input may use `_id` too
            whole["properties"] = {"id" if name == "_id" else name: value for name, value in properties.items()}
            required[:] = ["id" if name == "_id" else name for name in required]
        return made

    @classmethod
    def get_instance_name(cls) -> str:
        """The lowercased name of the class."""
        return cls.__name__.lower()

    def __repr__(self) -> str:
        return shown(self)

    def __str__(self) -> str:  # messages and logs contain it, so it shows no values
        return f"{type(self).__name__}(id={self.__dict__.get('id')})"
