"""`Gathering`: when a batch begins, which deliveries it takes, and the order of each document."""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.batches.gathering import GatheredDelivery, Gathering
from mongoz import Batch

MANY = 1_000_000
"""More bytes than the deliveries of a test have."""


def delivery(key: str, since: float = 0.0, size: int = 1, number: int = 0) -> GatheredDelivery:
    change: Any = SimpleNamespace(size=size, number=number)
    calls: Any = None
    return GatheredDelivery(change, calls, key, since)


def gathering(*keys: str, size: int = 3, wait: float = 5.0) -> Gathering:
    made = Gathering(Batch(size=size, wait=wait))
    for number, key in enumerate(keys):
        made.add(delivery(key, number=number))
    return made


def taken(one: Gathering, most_bytes: int = MANY) -> str:
    """The documents of the next batch."""
    return "".join(str(each.key) for each in one.take(most_bytes))


def test_without_deliveries_no_batch_is_due():
    one = gathering()
    assert not one.is_due(1e9, MANY)
    assert one.due_at is None
    one.close()
    assert not one.is_due(1e9, MANY)


def test_a_batch_is_due_when_it_is_full():
    assert not gathering("a", "b").is_due(0.0, MANY)
    assert gathering("a", "b", "c").is_due(0.0, MANY)
    assert taken(gathering("a", "b", "c", "d")) == "abc"


def test_a_batch_is_due_a_time_after_its_first_delivery():
    one = Gathering(Batch(size=3, wait=5.0))
    one.add(delivery("a", since=10.0))
    one.add(delivery("b", since=14.0))
    assert one.due_at == 15.0
    assert not one.is_due(14.9, MANY)
    assert one.is_due(15.0, MANY)


def test_a_batch_is_due_when_its_events_have_the_maximum_number_of_bytes():
    one = Gathering(Batch(size=100, wait=5.0))
    for key in "abc":
        one.add(delivery(key, size=40))
    assert not one.is_due(0.0, 121)
    assert one.is_due(0.0, 120)
    assert taken(one, 100) == "ab"
    assert not one.is_due(0.0, 100), "the bytes of a batch that has begun do not count"


def test_an_event_that_is_larger_than_a_batch_forms_its_own_batch():
    one = Gathering(Batch(size=100, wait=5.0))
    for key, size in (("a", 10), ("b", 500), ("c", 10)):
        one.add(delivery(key, size=size))
    assert [taken(one, 100) for _ in range(3)] == ["a", "b", "c"]


def test_close_makes_only_the_present_deliveries_due():
    one = gathering("a")
    one.close()
    assert one.is_due(0.0, MANY)
    assert taken(one) == "a"
    one.add(delivery("b"))
    assert not one.is_due(0.0, MANY)


def test_a_closed_batch_is_due_until_all_present_deliveries_are_taken():
    one = gathering("a", "b", size=1)
    one.close()
    assert taken(one) == "a"
    assert one.is_due(0.0, MANY)
    assert taken(one) == "b"


def test_later_deliveries_of_a_document_wait_behind_its_batch():
    one = gathering("a", "b", "a", "a", "c", size=2)
    assert taken(one) == "ab"
    assert taken(one) == "c", "two deliveries of a came before c, but they wait"
    one.add(delivery("a"))
    assert one.due_at is None
    one.release(["a"])
    assert taken(one) == "aa"
    one.release(["b", "c"])
    assert one.due_at is None


def test_one_batch_may_have_many_deliveries_of_a_document():
    one = gathering("a", "a", "b")
    assert taken(one) == "aab"
    one.add(delivery("a"))
    one.add(delivery("b"))
    one.release(["a"])
    assert taken(one) == "a"


def test_released_deliveries_come_first_in_their_order():
    one = gathering("a", "b", "a", "b", "a", "c", "d", "e", size=2)
    assert taken(one) == "ab"
    one.release(["a", "b"])
    assert [taken(one), taken(one)] == ["aa", "bc"]


def test_released_deliveries_have_waited_since_they_were_gathered():
    one = Gathering(Batch(size=1, wait=5.0))
    one.add(delivery("a", since=1.0))
    assert taken(one) == "a"
    one.add(delivery("a", since=2.0))
    one.release(["a"])
    assert one.due_at == 7.0


def test_a_delivery_that_has_waited_longer_than_the_first_one_makes_the_batch_due():
    """Parked deliveries have waited before they are gathered."""
    one = Gathering(Batch(size=3, wait=5.0))
    one.add(delivery("a", since=10.0))
    one.add(delivery("b", since=7.0))
    assert one.due_at == 12.0
    assert not one.is_due(11.9, MANY)
    assert taken(one) == "ab"
    one.add(delivery("c", since=11.0))
    assert one.due_at == 16.0, "deliveries that were taken do not count any more"


def test_withdrawn_deliveries_are_gone_and_the_document_stays_busy():
    one = gathering("a", "a", "a", "b", size=1)
    assert taken(one) == "a"
    assert [each.change.number for each in one.withdraw("a")] == [1, 2]
    assert one.withdraw("b") == []
    one.add(delivery("a", number=7))
    assert taken(one) == "b"
    one.release(["a"])
    assert [each.change.number for each in one.take(MANY)] == [7]


STEPS = st.sampled_from(["add", "add", "add", "take", "end"])


@given(
    st.integers(1, 5),
    st.integers(1, 60),
    st.lists(
        st.tuples(STEPS, st.sampled_from("abcd"), st.integers(1, 30)),
        max_size=60,
    ),
)
def test_each_delivery_is_in_one_batch_in_order_and_a_document_in_one_batch_at_a_time(size, most_bytes, steps):
    one = Gathering(Batch(size=size, wait=5.0))
    added: dict[Any, list[int]] = defaultdict(list)
    got: dict[Any, list[int]] = defaultdict(list)
    running: list[set[Any]] = []

    def take() -> None:
        batch = one.take(most_bytes)
        assert len(batch) <= size
        assert len(batch) == 1 or sum(each.change.size for each in batch) <= most_bytes
        keys = {each.key for each in batch}
        assert all(keys.isdisjoint(other) for other in running)
        running.append(keys)
        for each in batch:
            got[each.key].append(each.change.number)

    for number, (step, key, bytes_) in enumerate(steps):
        if step == "add":
            one.add(delivery(key, size=bytes_, number=number))
            added[key].append(number)
        elif step == "take" and one.due_at is not None:
            take()
        elif step == "end" and running:
            one.release(running.pop(0))
    while running or one.due_at is not None:
        one.close()
        if one.is_due(0.0, most_bytes):
            take()
        else:
            one.release(running.pop())
    assert got == added
