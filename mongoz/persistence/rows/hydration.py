"""Between rows and instances: hydration, the state a row was loaded in, and what changed since."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_origin

import bson
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from mongoz.connection import Collection
from mongoz.connection.codec import CODEC_OPTIONS, decoded
from mongoz.exceptions import InvalidKeyError
from mongoz.fields.class_cache import compiled
from mongoz.fields.email import LOADING, loading_schema
from mongoz.fields.storage import SCALARS, stored, stored_names, stored_values
from mongoz.fields.stored_schema import from_stored, validator_of
from mongoz.ids import new_id
from mongoz.model.partial import fill_in, is_partial, loaded_from, require_all
from mongoz.model.reserved import refuse_stamp
from mongoz.persistence.rows.flat import flat_row
from mongoz.persistence.rows.invariants import has_invariants
from mongoz.stamps import FIELD

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = [
    "Changes",
    "Loaded",
    "adopt",
    "as_loaded",
    "as_whole",
    "bare_instance",
    "changes",
    "differing",
    "hydrate",
    "hydrate_anyway",
    "id_of",
    "loaded",
    "new_row",
    "previous",
    "remember",
    "validated_as_stored",
    "validated_row",
]

D = TypeVar("D", bound="Document")

Snapshot = dict[str, Any] | bytes


class Loaded(NamedTuple):
    """What an instance remembers of the database.

    Attributes:
        snapshot: the row as the database has it, as far as we know; None if it was never there. A dict that
            shares nothing with the instance, or BSON where it would.
        collection: where it was loaded from or written to; None means the document's own.
    """

    snapshot: Snapshot | None = None
    collection: Collection | None = None

    def row(self) -> dict[str, Any] | None:
        """The snapshot as a dict."""
        if isinstance(self.snapshot, bytes):
            return decoded(self.snapshot)
        return self.snapshot


_NEVER = Loaded()


def loaded(instance: "Document") -> Loaded:
    """What is remembered of `instance`."""
    try:
        return instance._loaded
    except AttributeError:  # a slot that was never set
        return _NEVER


def remember(instance: "Document", row: dict[str, Any], collection: Collection | None) -> None:
    """Note that the database now has `row`, which must share nothing with the instance."""
    object.__setattr__(instance, "_loaded", Loaded(row, collection))


def id_of(instance: "Document") -> Any:
    """The `_id` of an instance as it is stored, which may be of another type than what the instance has."""
    id_ = instance.id
    return id_ if type(id_) in SCALARS else stored_values(type(instance), {"id": id_})["_id"]


def hydrate(document: type[D], row: dict[str, Any], collection: Collection | None = None) -> D:
    """The instance that a row of the database stands for. The row is taken over, and changed.

    Args:
        document: the class.
        row: as the driver decoded it.
        collection: where it comes from, if that is not the document's own collection.

    Raises:
        pydantic.ValidationError: the row violates the model; names collection, `_id` and field.
    """
    row.pop(FIELD, None)
    try:
        instance = _loader(document)(row, context=LOADING, by_alias=True, by_name=False)
    except ValidationError:
        try:  # the class's own rule for addresses has the right words for it
            instance = validated_as_stored(document, row)
        except ValidationError as error:
            raise _located(error, document, row, collection) from None
    # The instance must not be able to change the snapshot. Nearly always validation has copied every
    # container, and the row itself can serve.
    shares = instance.__pydantic_extra__ or _shares_values(document)
    snapshot = bson.encode(row, codec_options=CODEC_OPTIONS) if shares else row
    object.__setattr__(instance, "_loaded", Loaded(snapshot, collection))
    return instance  # type: ignore[no-any-return]


@compiled
def _loader(document: Any) -> Callable[..., Any]:
    """What validates rows of a class as its own validator does, with e-mail addresses checked without Python."""
    schema = loading_schema(from_stored(document.__pydantic_core_schema__))
    return validator_of(schema).validate_python


@compiled
def _worded_loader(document: Any) -> Callable[..., Any]:
    """The same, with the rules of the class as they are."""
    own = document.__pydantic_core_schema__
    schema = from_stored(own)
    if schema is own:
        return document.__pydantic_validator__.validate_python  # type: ignore[no-any-return]
    return validator_of(schema).validate_python


def validated_as_stored(document: Any, row: dict[str, Any]) -> Any:
    """An instance of what is stored, as the class validates it; the row stays as it is.

    Raises:
        pydantic.ValidationError: the row violates the model.
    """
    return _worded_loader(document)(row, context=LOADING, by_alias=True, by_name=False)


def bare_instance(document: type[D], id_: Any, collection: Collection | None = None) -> D:
    """An instance of which nothing but the id is known; its other fields are AttributeErrors."""
    instance = document.__new__(document)
    object.__setattr__(instance, "__dict__", {"id": id_})
    object.__setattr__(instance, "__pydantic_fields_set__", {"id"})
    object.__setattr__(instance, "__pydantic_extra__", {})
    object.__setattr__(instance, "__pydantic_private__", None)
    object.__setattr__(instance, "_loaded", Loaded(None, collection))
    return instance


def hydrate_anyway(document: type[D], row: dict[str, Any], collection: Collection | None = None) -> D:
    """The same as `hydrate`; a row that violates the model makes an instance that is built without validation.

    Fields that fit are as usual, the others have the value that is stored. A required field that the row lacks is
    an AttributeError.
    """
    try:
        return hydrate(document, row, collection)
    except Exception:  # whatever a validator raises: the document is in the database
        return _unvalidated(document, row, collection)


def _unvalidated(document: type[D], row: dict[str, Any], collection: Collection | None) -> D:
    attributes = {alias: name for name, alias in stored_names(document).items()}
    values: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for alias, value in stored(row).items():
        name = attributes.get(alias)
        if name is None:
            extra[alias] = value
            continue
        try:
            values[name] = validated_as_stored(document.proxy_document, {alias: value}).__dict__[name]
        except Exception:
            values[name] = value
    assigned = set(values)
    for name in attributes.values():
        field = document.model_fields[name]
        if name not in values and not field.is_required():
            with suppress(Exception):  # of the application's factory
                values[name] = field.get_default(call_default_factory=True)
    instance = document.__new__(document)
    private = {}
    for name, attribute in document.__private_attributes__.items():
        with suppress(Exception):
            private[name] = attribute.get_default()
    object.__setattr__(instance, "__dict__", values)
    object.__setattr__(instance, "__pydantic_fields_set__", assigned)
    object.__setattr__(instance, "__pydantic_extra__", extra)
    object.__setattr__(instance, "__pydantic_private__", private or None)
    snapshot = bson.encode(row, codec_options=CODEC_OPTIONS)
    object.__setattr__(instance, "_loaded", Loaded(snapshot, collection))
    return instance


def previous(instance: D) -> D | None:
    """The state that `instance` was loaded in, as an instance of its own; None if there is none."""
    state = loaded(instance)
    row = state.row()
    if row is None:
        return None
    try:
        # A copy: receivers get it, and what they do to it must not reach the snapshot.
        untouched = hydrate(type(instance), stored(row), state.collection)
    except Exception:  # the model, or a validator of it, became stricter since: better nothing than a half
        return None
    if is_partial(type(instance)):
        fill_in(untouched, instance.__dict__.keys() - instance.model_fields_set)
    return untouched


def as_loaded(instance: "Document") -> dict[str, Any] | None:
    """The row that the instance would be stored as, had nothing changed on it since the load.

    Not always the snapshot: other clients store an integer in 64 bits, or none where a field has a default.
    That nobody touched such a field here is what counts: writing it would undo what others do meanwhile.
    """
    row, untouched = loaded(instance).row(), previous(instance)
    if row is None or untouched is None:
        return row
    names = stored_names(type(instance))
    assigned = {names[name] for name in instance.model_fields_set if name in names}
    defaults_and_all = stored(untouched)
    return row | {name: value for name, value in defaults_and_all.items() if name in row or name not in assigned}


def validated_row(instance: "Document") -> dict[str, Any]:
    """The row to store; validated, since changes inside of lists and embedded documents pass pydantic unseen.

    Raises:
        pydantic.ValidationError: what would be written does not fit the model.
    """
    document = type(instance)
    if instance.__pydantic_extra__:
        refuse_stamp(document, instance.__pydantic_extra__)
    else:
        flat = flat_row(document, instance.__dict__)
        if flat is not None:
            return flat
    # As stored, not as it is: pydantic takes the instances of embedded documents on trust.
    given = stored(instance)
    checked = as_whole(document, given)
    row: dict[str, Any] = stored(checked)
    if has_invariants(document):
        adopt(instance, checked, differing(document, given, row))
    return row


def as_whole(document: type[D], row: dict[str, Any]) -> D:
    """A row as the model makes it, all its validators included; as an instance that nothing is remembered of.

    Raises:
        pydantic.ValidationError: the row violates the model.
    """
    instance: D = validated_as_stored(document, row)
    return instance


def adopt(instance: "Document", other: "Document", names: Iterable[str]) -> None:
    """Take over some fields of another instance, without validation."""
    for name in names:
        if name in other.__dict__:
            instance.__dict__[name] = other.__dict__[name]


def differing(model: type[BaseModel], one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    """The names of the fields that two rows have different values of."""
    return {name for name, alias in stored_names(model).items() if _differ(one, other, alias)}


def _differ(one: dict[str, Any], other: dict[str, Any], alias: str) -> bool:
    if alias in one and alias in other:
        return not _same(one[alias], other[alias])
    return alias in one or alias in other


def new_row(instance: "Document") -> dict[str, Any]:
    """The row to insert: validated, with an id.

    Raises:
        AttributeError: the instance was loaded without some of its fields.
        pydantic.ValidationError: what would be written does not fit the model.
    """
    require_all(instance)
    row = validated_row(instance)
    if row.get("_id") is None:
        row["_id"] = new_id()
    return row


class Changes(NamedTuple):
    """What distinguishes a row from its snapshot: top-level names under which things are stored."""

    changed: dict[str, Any]
    removed: tuple[str, ...]

    def as_update(self) -> dict[str, dict[str, Any]]:
        """The update document; an empty one if nothing changed."""
        update: dict[str, dict[str, Any]] = {}
        if self.changed:
            update["$set"] = self.changed
        if self.removed:
            update["$unset"] = dict.fromkeys(self.removed, "")
        return update


def changes(before: dict[str, Any] | None, row: dict[str, Any]) -> Changes:
    """What must be written so that the database has `row`.

    Raises:
        InvalidKeyError: a changed name can't be written by an update operator.
    """
    known = before or {}
    changed = {
        name: value
        for name, value in row.items()
        if name != "_id" and not (name in known and _same(known[name], value))
    }
    removed = tuple(name for name in known if name not in row)
    for name in (*changed, *removed):
        if "." in name or name.startswith("$"):
            raise InvalidKeyError(f"The key {name!r} can't be updated: MongoDB reads it as a path or an operator.")
    return Changes(changed, removed)


def _same(a: Any, b: Any) -> bool:
    """Whether two values are stored as the same bytes; 1, 1.0 and True are equal in Python only."""
    if type(a) is type(b) and isinstance(a, str | int | bson.ObjectId):
        return bool(a == b)
    return _encoded(a) == _encoded(b)


def _encoded(value: Any) -> bytes:
    return bson.encode({"": value}, codec_options=CODEC_OPTIONS)


@compiled
def _shares_values(model: Any) -> bool:
    """Whether validated instances of a model can share a mutable value with the row they came from."""
    return any(_shares(field.annotation) for field in model.model_fields.values())


def _shares(annotation: Any) -> bool:
    if annotation is Any or annotation in (dict, list, set):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True  # undeclared keys of an embedded document are kept as they are
    return bool(get_origin(annotation)) and any(_shares(argument) for argument in get_args(annotation))


def _located(
    error: ValidationError, document: "type[Document]", row: dict[str, Any], collection: Collection | None
) -> ValidationError:
    """The same error, with collection and `_id` in its title."""
    lines = [
        InitErrorDetails(
            type=PydanticCustomError(line["type"], line["msg"]),
            loc=line["loc"],
            input=line["input"],
        )
        for line in error.errors(include_url=False)
    ]
    return ValidationError.from_exception_data(loaded_from(document, collection, row.get("_id")), lines)
