"""Type checkers must report exactly the lines that are marked as errors."""

from typing import Any

import mongoz
from mongoz import fields
from mongoz.core.signals import post_save, post_update, pre_delete

registry = mongoz.Registry("mongodb://localhost:27017")


class Part(mongoz.EmbeddedDocument):
    name: str = mongoz.String()


class Thing(mongoz.Document):
    name: str = mongoz.String(max_length=5)
    number: int = mongoz.Integer()
    part: Part = mongoz.Embed(Part)
    size: mongoz.Nullable[int] = mongoz.Integer(null=True)
    other: mongoz.ObjectId = fields.ForeignKey("Thing")
    maybe: mongoz.Nullable[mongoz.ObjectId] = fields.ForeignKey("Thing", null=True)
    box: mongoz.Nullable[Part] = mongoz.Embed(Part, null=True)
    wrong_type: int = mongoz.String()  # error
    wrong_part: Part = mongoz.Embed(mongoz.Registry)  # error
    unknown_argument: str = mongoz.String(max_lenght=5)  # error
    others_argument: int = mongoz.Integer(max_length=5)  # error
    wrong_argument: str = mongoz.String(max_length="5")  # error
    without_digits: Any = fields.Decimal()  # error
    without_length: Any = fields.Binary()  # error
    without_document: Any = fields.ForeignKey()  # error


async def using(thing: Thing) -> None:
    thing.number = "five"  # error
    thing.part.name = 5  # error
    print(thing.unknown_name)  # error
    print(Thing.unknown_name)  # error
    Thing.objects.unknown_name()  # error
    print((await Thing.objects.first()).name)  # error
    found: Part = await Thing.objects.get()  # error
    number: int = Thing.objects.count()  # error
    Thing.query("name")  # error
    Thing.query(Thing.number > "five")  # error
    Thing.query(Thing.number == "five")  # error
    Thing.query(Thing.size > "five")  # error
    Thing.query(Thing.box.unknown_name == "a")  # error
    Thing.objects.filter(Thing.name == "a")  # error
    Thing.objects.limit("5")  # error
    await Thing.create_many([Part(name="a")])  # error
    names: list[str] = await Thing.objects.values(["name"])  # error
    await Thing.objects.get_or_create("name", name="a")  # error
    await Thing.objects.update(mongoz.U)  # error
    await thing.update("name")  # error
    async for part in Thing.objects.filter(number=1):
        print(part.nmae)  # error
    text: str = mongoz.run_sync(Thing.objects.count())  # error
    Thing.signals.post_save = 5  # error
    thing.size = "five"  # error
    Thing(size="five")  # error
    Thing(part=thing)  # error
    Thing(other=5)  # error
    Thing(maybe=5)  # error
    Thing(maybe=Part(name="a"))  # error
    Thing(size=thing)  # error
    thing.maybe = 5  # error
    registry.transaction(max_commit_time="5")  # error
    with mongoz.context(amount=1.5):  # error
        await thing.save()
    print(found, number, names, text)


@post_save(Thing, delivery="nowhere")  # error
async def receiver(sender: Any, **kwargs: Any) -> None: ...


@post_save(Thing)  # error
def not_async(sender: Any, **kwargs: Any) -> None: ...


class Another(mongoz.Document):
    name: str = mongoz.String()


@post_save(Thing)  # error
async def of_another(sender: type[Thing], instance: Another, **kwargs: Any) -> None: ...


@pre_delete(Thing)  # error
async def of_another_sender(sender: type[Another], **kwargs: Any) -> None: ...


@post_update(Thing)  # error
async def without_kwargs(sender: type[Thing], instance: Thing) -> None: ...


@post_save(Thing)  # error
async def of_wrong_created(sender: type[Thing], instance: Thing, created: str, **kwargs: Any) -> None: ...


@post_save(Thing)  # error
async def of_wrong_delivery(sender: type[Thing], delivery: str, **kwargs: Any) -> None: ...


@post_update(Thing)  # error
async def of_wrong_fields(sender: type[Thing], update_fields: list[str], **kwargs: Any) -> None: ...


@post_save(Thing, batch=mongoz.Batch(size=10))  # error
async def of_wrong_batch(sender: type[Thing], batch: list[Thing], **kwargs: Any) -> None: ...
