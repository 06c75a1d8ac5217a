"""The fields of a person as a document of mongoz. The same fields in another library are in `sides`."""

import datetime

import mongoz

__all__ = ["Human"]


class Human(mongoz.Document):
    name: str = mongoz.String()
    email: str = mongoz.Email()
    number: int = mongoz.Integer()
    tags: list[str] = mongoz.Array(str)
    joined_at: datetime.datetime = mongoz.DateTime()

    class Meta:
        abstract = True
