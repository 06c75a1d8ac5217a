"""All examples of a guide to signals, as printed, in one application."""

from typing import Any

import pytest

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update, pre_delete, pre_save, pre_update
from mongoz.exceptions import DocumentNotFound, SignalError


async def test_all_examples_of_the_guide_work_in_one_application(registry: mongoz.Registry, database: str) -> None:
    # A class body that assigns a name can't read the local variable with this name.
    our_registry, our_database, said = registry, database, []

    def print(*words: Any) -> None:
        said.append(" ".join(map(str, words)))

    # The documents of the application.

    class User(mongoz.Document):
        name: str = mongoz.String(max_length=100)
        email: str = mongoz.Email(max_length=255)
        is_active: bool = mongoz.Boolean(default=False)

        class Meta:
            registry = our_registry
            database = our_database

    class Profile(mongoz.Document):
        title: str = mongoz.String()

        class Meta:
            registry = our_registry
            database = our_database

    # One receiver.

    @post_save(User)
    async def after_creation(sender, instance, created, **kwargs):
        if created:
            print("welcome", instance.name)

    data = {"name": "Edgy", "email": "edgy@example.com"}
    user = await User.query.create(**data)
    assert said == ["welcome Edgy"]
    assert (await User.get_document_by_id(user.id)).email == "edgy@example.com"
    assert await User.get_document_by_id(str(user.id)) == user

    # One receiver for several documents, as a list and as a tuple.

    @post_save([User, Profile])
    @pre_save((User, Profile))
    async def note(sender, instance, **kwargs):
        print("note", sender.__name__)

    said.clear()
    await Profile.query.create(title="A profile")
    await User.query.create(name="Esmerald", email="esmerald@example.com")
    assert said == ["note Profile", "note Profile", "note User", "welcome Esmerald", "note User"]

    # Several receivers for one document.

    @post_save(User)
    async def push_notification(sender, instance, **kwargs):
        print("push", instance.email)

    @pre_update(User)
    async def before_update(sender, instance, update_fields, **kwargs):
        print("before", *sorted(update_fields))

    @post_update(User)
    async def after_update(sender, instance, update_fields, **kwargs):
        print("after", *sorted(update_fields))

    @pre_delete(User)
    async def before_delete(sender, instance, **kwargs):
        print("deleting", instance.name)

    @post_delete(User)
    async def after_delete(sender, instance, **kwargs):
        print("deleted", instance.name)

    said.clear()
    user = await User.query.create(name="Saffier", email="saffier@example.com")
    await user.update(is_active=True, name="Saffier 2")
    await user.delete()
    assert said == [
        "note User", "welcome Saffier", "note User", "push saffier@example.com",
        "before is_active name", "after is_active name", "deleting Saffier 2", "deleted Saffier 2",
    ]  # fmt: skip
    with pytest.raises(DocumentNotFound):
        await User.get_document_by_id(user.id)

    # Disconnecting: through the class, and through an instance.

    assert User.meta.signals.post_save.disconnect(push_notification)
    assert User.signals.post_save.disconnect(note)
    assert User.signals.pre_save.disconnect(note)
    user = await User.query.create(name="Bob", email="bob@example.com")
    assert user.signals.post_save.disconnect(after_creation)
    said.clear()
    await user.save()
    await User.query.create(name="Eve", email="eve@example.com")
    assert said == []
    assert not User.signals.post_save.disconnect(after_creation)

    # A custom signal: created, connected, sent, disconnected.

    User.meta.signals.on_verify = mongoz.Signal()

    async def trigger_notifications(sender, instance, **kwargs):
        print("verified", instance.name, kwargs["how"])
        return "sent"

    User.meta.signals.on_verify.connect(trigger_notifications)
    user = await User.get_document_by_id(user.id)
    results = await User.meta.signals.on_verify.send(sender=User, instance=user, how="by mail")
    assert results == [(trigger_notifications, "sent")]
    assert said == ["verified Bob by mail"]
    assert User.meta.signals.on_verify.disconnect(trigger_notifications)
    assert await User.meta.signals.on_verify.send(sender=User, instance=user, how="again") == []

    # A custom signal that is not assigned first: the first access to its name creates it.

    User.signals.on_ban.connect(trigger_notifications)
    await user.signals.on_ban.send(sender=User, instance=user, how="too")
    assert said[1:] == ["verified Bob too"]

    # Refusals.

    with pytest.raises(SignalError, match="async def"):

        @post_save(User)
        def not_async(sender, **kwargs):
            pass

    with pytest.raises(SignalError, match="kwargs"):

        @post_save(User)
        async def without_kwargs(sender, instance):
            pass

    with pytest.raises(SignalError, match=r"must be a mongoz\.Signal"):
        User.meta.signals.on_other = trigger_notifications
