"""An application whose receivers record their keywords, as one JSON document per call."""

import json
import os
from pathlib import Path

import mongoz
from mongoz.core.signals import post_delete, post_save, post_update

registry = mongoz.Registry(os.environ["RECORDER_URL"], dispatched=os.environ["RECORDER_GROUP"])
record = Path(os.environ["RECORDER_FILE"])


class Base(mongoz.Document):
    name: str = mongoz.String()

    class Meta:
        abstract = True
        registry = registry
        database = os.environ["RECORDER_GROUP"]


class User(Base):
    age: int = mongoz.Integer(default=0)


class Order(Base):
    total: float = mongoz.Double(default=0.0)


def readable(value):
    if isinstance(value, mongoz.Document):
        return value.model_dump(mode="json")
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, mongoz.Delivery):
        return {key: readable(item) for key, item in value.as_dict().items()}
    return value


def write(sender, keywords):
    line = json.dumps({"sender": sender.__name__, **{k: readable(v) for k, v in keywords.items()}}, default=str)
    with record.open("a") as file:
        file.write(line + "\n")


@post_save([User, Order])
async def saved(sender, **kwargs):
    write(sender, kwargs)


@post_update(Base)
async def updated(sender, **kwargs):
    write(sender, kwargs)


@post_delete([User, Order])
async def deleted(sender, **kwargs):
    write(sender, kwargs)
