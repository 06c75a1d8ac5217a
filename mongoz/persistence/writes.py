"""The four writes of an instance, each with its signals and its origin stamp."""

import copy
from typing import TYPE_CHECKING, Any, TypeVar

import bson
from pydantic import ValidationError

from mongoz.connection import Collection
from mongoz.exceptions import DocumentNotFound, InvalidKeyError, nearest
from mongoz.fields.storage import stored_names
from mongoz.persistence.rows import Changes, as_loaded, changes, loaded, previous, remember, validated_row
from mongoz.signals.firing import Firing, plan
from mongoz.stamps import FIELD, Call, Stamp, key_hash

if TYPE_CHECKING:
    from mongoz.documents.base import Document

__all__ = ["create", "delete", "save", "update"]

D = TypeVar("D", bound="Document")


class _Origin:
    """The origin of one write: its token, and the stamp if the write needs one."""

    __slots__ = ("stamp", "token")

    def __init__(self, firing: Firing, target: Collection, id_: Any, call: Call, *, natural: bool) -> None:
        """Decide whether to stamp.

        Args:
            firing: who runs in this process.
            target: the collection that is written to.
            id_: the document's `_id`.
            call: what was called.
            natural: the server's event alone leads to the same signal.
        """
        self.token = bson.ObjectId()
        self.stamp: bson.Binary | None = None
        group = target.database._registry.dispatched
        if group is not None and (firing.receivers or firing.muted or not natural):
            ids = frozenset(receiver.id for receiver in firing.receivers)
            key = key_hash(target.namespace, id_)
            self.stamp = Stamp(group, call, self.token, key, ids, firing.muted).pack()

    def onto(self, values: dict[str, Any]) -> dict[str, Any]:
        """These values, with the stamp where there is one."""
        return values if self.stamp is None else {**values, FIELD: self.stamp}


def _target(instance: "Document", collection: Collection | None) -> Collection:
    return collection or loaded(instance).collection or type(instance).meta.require_collection()


def _elsewhere(instance: "Document", target: Collection) -> Collection | None:
    return None if target == type(instance).meta.collection else target


def _touch(instance: "Document") -> list[str]:
    """Set the auto_now fields to now; returns their names."""
    names = [name for name, field in type(instance).meta.fields.items() if getattr(field, "auto_now", False)]
    for name in names:
        instance.__dict__[name] = type(instance).model_fields[name].get_default(call_default_factory=True)
        instance.__pydantic_fields_set__.add(name)
    return names


def _require_id(instance: "Document") -> None:
    if instance.id is None:  # and not "the document whose _id is null", which somebody may have
        raise DocumentNotFound(f"This {type(instance).__name__} was never saved: it has no id.")


def _gone(instance: "Document", target: Collection) -> DocumentNotFound:
    return DocumentNotFound(f"{target.namespace} has no document with _id {instance.id!r} any more.")


async def create(instance: D, collection: Collection | None = None) -> D:
    """Insert an instance; see `Document.create`."""
    document, signals = type(instance), type(instance).meta.signals
    target = collection or document.meta.require_collection()
    await signals.pre_save.send(document, instance=instance, created=True)
    row = validated_row(instance)
    if row.get("_id") is None:
        row["_id"] = bson.ObjectId()
    firing = plan(signals.post_save)
    origin = _Origin(firing, target, row["_id"], Call.CREATED, natural=True)
    await target._collection.insert_one(origin.onto(row))
    instance.__dict__["id"] = row["_id"]
    remember(instance, row, _elsewhere(instance, target))
    if firing.receivers:
        await firing.run(document, str(origin.token), instance=instance, created=True, previous=None)
    return instance


async def save(instance: D, collection: Collection | None = None) -> D:
    """Write what changed since the load; see `Document.save`."""
    document, signals = type(instance), type(instance).meta.signals
    if instance.id is None:
        _touch(instance)
        return await create(instance, collection)
    target = _target(instance, collection)
    await signals.pre_save.send(document, instance=instance, created=False)
    _touch(instance)
    row = validated_row(instance)
    same_place = target == _target(instance, None)
    changed, removed = changes(as_loaded(instance) if same_place else None, row)
    if document.model_config.get("extra") != "allow":
        removed = ()  # what the model does not know is not on the instance, and not gone
    firing = plan(signals.post_save)
    was = previous(instance) if firing.receivers else None
    origin = _Origin(firing, target, instance.id, Call.SAVED, natural=False)
    await _apply(instance, target, origin.onto(changed), removed)
    known = loaded(instance).row() if same_place else None
    remember(instance, row if known is None else _after(known, changed, removed), _elsewhere(instance, target))
    if firing.receivers:
        await firing.run(document, str(origin.token), instance=instance, created=False, previous=was)
    return instance


async def _apply(
    instance: "Document", target: Collection, changed: dict[str, Any], removed: tuple[str, ...]
) -> None:
    key = {"_id": instance.id}
    operators: dict[str, dict[str, Any]] = {}
    if changed:
        operators["$set"] = changed
    if removed:
        operators["$unset"] = dict.fromkeys(removed, "")
    if operators:
        found = (await target._collection.update_one(key, operators)).matched_count
    else:  # nothing to write, but a document that is gone must still be found out
        found = await target._collection.count_documents(key, limit=1)
    if not found:
        raise _gone(instance, target)


def _after(known: dict[str, Any], changed: dict[str, Any], removed: tuple[str, ...]) -> dict[str, Any]:
    """What the database has after a write, as far as we know."""
    return {name: value for name, value in {**known, **changed}.items() if name not in removed}


async def update(instance: D, values: dict[str, Any]) -> D:
    """Write a patch; see `Document.update`."""
    if not values:
        return instance
    document, signals = type(instance), type(instance).meta.signals
    target = _target(instance, None)
    _require_id(instance)
    names = _field_names(document, values)
    candidate = _with_values(instance, {names[name]: value for name, value in values.items()})
    fields = frozenset([*names.values(), *_touch(candidate)])
    undo, ours = _state(instance), None
    try:
        instance.__dict__.update({name: candidate.__dict__[name] for name in fields})
        instance.__pydantic_fields_set__.update(fields)
        changed, removed = await _patch(instance, fields)
        ours = dict(instance.__dict__)
        firing = plan(signals.post_update)
        was = previous(instance) if firing.receivers else None
        origin = _Origin(firing, target, instance.id, Call.UPDATED, natural=True)
        await _apply(instance, target, origin.onto(changed), removed)
    except BaseException:
        _put_back(instance, undo, ours)
        raise
    known = loaded(instance).row()
    if known is not None:  # else nothing is known about the other fields, and nothing is assumed
        remember(instance, _after(known, changed, removed), _elsewhere(instance, target))
    if firing.receivers:
        written = _attribute_names(document, {*changed, *removed})
        await firing.run(document, str(origin.token), instance=instance, update_fields=written, previous=was)
    return instance


def _state(instance: "Document") -> dict[str, Any]:
    """What `update` puts back if it fails; a receiver may change the inside of values too, so those are copied."""
    names = ("__dict__", "__pydantic_extra__", "__pydantic_fields_set__")
    state = {name: copy.copy(getattr(instance, name)) for name in names}
    return copy.deepcopy(state) if type(instance).meta.signals.pre_update.receivers else state


def _put_back(instance: "Document", undo: dict[str, Any], ours: dict[str, Any] | None) -> None:
    """Undo an update that failed: after the receivers, only what is still as this call left it.

    Another update of the same instance may have changed, and written, other fields in the meantime.
    """
    if ours is not None:
        before, now = undo.pop("__dict__"), instance.__dict__
        for name, value in ours.items():
            if name in before and now.get(name) is value:
                now[name] = before[name]
        undo.pop("__pydantic_fields_set__")
    for name, value in undo.items():
        object.__setattr__(instance, name, value)


async def _patch(instance: "Document", fields: frozenset[str]) -> Changes:
    """Run the `pre_update` receivers; returns what must be written.

    Without receivers that is the patch; what a receiver changed on the instance is written with it.
    """
    document, signal = type(instance), type(instance).meta.signals.pre_update
    names = stored_names(document)
    more = Changes({}, ())
    if signal.receivers:
        before = validated_row(instance)
        await signal.send(document, instance=instance, update_fields=fields)
        row = validated_row(instance)
        more = changes(before, row)
    else:
        row = validated_row(instance)
    return Changes({names[name]: row[names[name]] for name in fields} | more.changed, more.removed)


def _field_names(document: type["Document"], values: dict[str, Any]) -> dict[str, str]:
    """What was given -> the field's name; aliases included."""
    aliases = {alias: name for name, alias in stored_names(document).items()}
    names = {}
    for given in values:
        name = given if given in document.meta.fields else aliases.get(given, given)
        if name in ("id", "_id", "pk"):
            raise InvalidKeyError(f"The id of a {document.__name__} can't be updated.")
        if name not in document.meta.fields:
            raise InvalidKeyError(
                f"{document.__name__} has no field {given!r}.{nearest(given, document.meta.fields)}"
            )
        names[given] = name
    return names


def _with_values(instance: D, values: dict[str, Any]) -> D:
    """A copy with these values, validated; the instance stays as it is."""
    candidate = copy.copy(instance)
    errors: list[ValidationError] = []
    for name, value in values.items():
        try:
            setattr(candidate, name, value)
        except ValidationError as error:
            errors.append(error)
    if errors:
        raise _merged(type(instance), errors)
    return candidate


def _merged(document: type["Document"], errors: list[ValidationError]) -> ValidationError:
    if len(errors) == 1:
        return errors[0]
    lines: list[Any] = [line for error in errors for line in error.errors(include_url=False)]
    return ValidationError.from_exception_data(document.__name__, lines)


def _attribute_names(document: type["Document"], stored_under: set[str]) -> frozenset[str]:
    attributes = {alias: name for name, alias in stored_names(document).items()}
    return frozenset(attributes.get(name, name) for name in stored_under)


async def delete(instance: "Document") -> int:
    """Delete an instance; see `Document.delete`."""
    document, signals = type(instance), type(instance).meta.signals
    target = _target(instance, None)
    _require_id(instance)
    await signals.pre_delete.send(document, instance=instance)
    firing = plan(signals.post_delete)
    count = int((await target._collection.delete_one({"_id": instance.id})).deleted_count)
    if not count:
        raise _gone(instance, target)
    if firing.receivers:
        await firing.run(document, str(bson.ObjectId()), instance=instance)
    return count
