"""The `delivery` of a change computes its attributes when the first of them is read."""

import copy
import pickle
import weakref
from typing import Any

import pytest
from bson import Timestamp

from dispatcher.core.events import Calls, Change, delivery_id_of
from dispatcher.delivery import instances
from dispatcher.delivery.instances import ChangeDelivery
from mongoz.signals import Delivery
from mongoz.signals.receivers import Receiver, make_receiver

TIME = Timestamp(1_700_000_000, 1)
CHANGE = Change("82AB", "insert", ("d", "c"), 1, TIME, None, {"_id": 1}, None, "post", frozenset(), None, 1)


async def receive(sender: Any, **kwargs: Any) -> None:
    """A receiver."""


@pytest.fixture
def receiver() -> Receiver:
    return make_receiver(receive, signal="post_save", sender=None, sequence=0, options={})


def made(receiver: Receiver, change: Change = CHANGE, *, run: str = "", replayed: bool = False) -> ChangeDelivery:
    calls = Calls(None, "post_save", True, (receiver,), run=run)
    return ChangeDelivery((change, calls, receiver.name, "post", 2, 7, replayed))


def test_the_attributes_are_those_of_the_change(receiver):
    delivery = made(receiver, CHANGE._replace(context='{"user":"ada"}'))
    expected = Delivery(
        delivery_id_of(CHANGE),
        "post_save",
        receiver.name,
        "stream",
        2,
        7,
        TIME,
        None,
        "post",
        context={"user": "ada"},
    )
    assert delivery == expected
    assert expected == delivery
    assert repr(delivery).startswith(f"ChangeDelivery(id='{expected.id}', signal='post_save'")


def test_as_dict_has_all_attributes_by_name(receiver):
    found = made(receiver, CHANGE._replace(context='{"user":"ada"}')).as_dict()
    assert list(found) == list(Delivery.__slots__)
    assert (found["id"], found["attempt"], found["session"]) == (delivery_id_of(CHANGE), 2, None)
    assert found["context"] == {"user": "ada"}


def test_a_delivery_says_whether_it_is_a_takeover_or_a_replay(receiver):
    assert made(receiver, CHANGE._replace(takeover=True, superseded=True)).origin == "takeover"
    assert made(receiver, CHANGE._replace(takeover=True, superseded=True)).superseded
    assert made(receiver, replayed=True).replayed
    assert made(receiver, run="again").replayed
    assert made(receiver, run="again").id == delivery_id_of(CHANGE, "again") != made(receiver).id
    assert not made(receiver).replayed


def test_nothing_is_computed_before_an_attribute_is_read(receiver, monkeypatch):
    computed = []
    monkeypatch.setattr(instances, "delivery_id_of", lambda *_: computed.append(1) or "id")
    delivery = made(receiver)
    assert not computed
    assert (delivery.attempt, delivery.id, delivery.term) == (2, "id", 7)
    assert computed == [1]


def test_two_threads_may_compute_the_attributes_at_the_same_time(receiver):
    class Raced(ChangeDelivery):
        """Another thread computes the attributes right after the source is read for the first time."""

        __slots__ = ()

        @property
        def _source(self):
            source = ChangeDelivery._source.__get__(self)
            ChangeDelivery._source.__set__(self, None)
            return source

        @_source.setter
        def _source(self, source):
            ChangeDelivery._source.__set__(self, source)

    calls = Calls(None, "post_save", True, (receiver,), run="")
    assert Raced((CHANGE, calls, receiver.name, "post", 2, 7, False)).id == delivery_id_of(CHANGE)


def test_a_kept_delivery_releases_its_change_when_an_attribute_is_read(receiver):
    class Row(dict[str, Any]):
        pass

    row = Row()
    kept, gone = made(receiver, CHANGE._replace(document=row)), weakref.ref(row)
    del row
    assert gone() is not None
    assert kept.signal == "post_save"
    assert gone() is None


def test_an_unknown_attribute_is_refused(receiver):
    delivery = made(receiver)
    with pytest.raises(AttributeError, match="number"):
        delivery.number  # noqa: B018
    assert not hasattr(delivery, "further")


def test_a_copy_may_have_other_values(receiver):
    delivery = made(receiver)
    again = delivery.replaced(attempt=3)
    assert (again.attempt, again.id, delivery.attempt) == (3, delivery.id, 2)
    assert again != delivery
    assert len({delivery, copy.copy(delivery), again}) == 2
    assert pickle.loads(pickle.dumps(made(receiver))) == delivery
