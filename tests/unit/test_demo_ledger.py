"""The ledger of the demo shows each loss, even where a surplus delivery balances the counters."""

import pytest

from dispatcher.demo.ledger import Ledger, Lost

OWED = {
    ("shop.users", "post_save"): frozenset({"welcome", "audit"}),
    ("shop.users", "post_update"): frozenset({"audit"}),
    ("shop.users", "post_delete"): frozenset({"audit"}),
}


def write(operation: str, key: str = "a", namespace: str = "shop.users") -> dict:
    return {"namespace": namespace, "id": key, "operation": operation}


def delivery(id_: str, signal: str, receiver: str = "audit", key: str = "a", milliseconds: int = 5) -> dict:
    return {
        "namespace": "shop.users",
        "key": key,
        "delivery_id": id_,
        "operation": signal.removeprefix("post_"),
        "signal": signal,
        "receiver": receiver,
        "wall_time": "2026-01-01T00:00:00",
        "began": f"2026-01-01T00:00:00.{milliseconds:03}000Z",
    }


def ledger(writes: list[dict], deliveries: list[dict]) -> Ledger:
    made = Ledger(OWED)
    for line in writes:
        made.add_write(line)
    for line in deliveries:
        made.add_delivery(line)
    return made


HISTORY = [write("insert"), write("update"), write("update"), write("delete"), write("insert")]
DELIVERED = [
    delivery("1", "post_save", "welcome"),
    delivery("1", "post_save"),
    delivery("2", "post_update"),
    delivery("3", "post_update"),
    delivery("4", "post_delete"),
    delivery("5", "post_save", "welcome"),
    delivery("5", "post_save"),
]


def test_a_complete_ledger_has_no_loss() -> None:
    books = ledger(HISTORY, DELIVERED)
    assert (books.written, books.expected, books.delivered, books.in_flight) == (5, 7, 7, 0)
    assert books.verdict() == ([], 0)


@pytest.mark.parametrize("missing", range(len(DELIVERED)))
def test_each_missing_delivery_is_one_loss(missing: int) -> None:
    gone = DELIVERED[missing]
    books = ledger(HISTORY, [one for one in DELIVERED if one is not gone])
    lost, unexpected = books.verdict()
    assert [(one.receiver, one.key) for one in lost] == [(gone["receiver"], "a")]
    assert unexpected == 0


def test_a_surplus_delivery_does_not_balance_a_lost_one() -> None:
    books = ledger(
        [write("update"), write("update", "b")], [delivery("1", "post_update"), delivery("2", "post_update")]
    )
    assert books.in_flight == 0
    assert books.verdict() == ([Lost("update", "shop.users", "b", "audit")], 1)


def test_a_repeated_delivery_counts_once() -> None:
    books = ledger(
        [write("update"), write("update")], [delivery("1", "post_update"), delivery("1", "post_update")]
    )
    assert (books.delivered, books.repeated) == (1, 1)
    assert len(books.verdict().lost) == 1


def test_a_delivery_to_the_wrong_receiver_is_unexpected_and_a_loss() -> None:
    books = ledger([write("update")], [delivery("1", "post_update", "welcome")])
    assert books.verdict() == ([Lost("update", "shop.users", "a", "audit")], 1)


def test_a_delivery_without_a_write_is_unexpected() -> None:
    assert ledger([], [delivery("1", "post_delete")]).verdict() == ([], 1)


def test_a_write_without_receivers_expects_no_delivery() -> None:
    books = ledger([write("insert", namespace="shop.stock")], [])
    assert (books.expected, books.verdict()) == (0, ([], 0))


def test_latencies_have_a_median_and_a_99th_percentile() -> None:
    books = ledger([], [delivery(str(i), "post_update", milliseconds=i) for i in range(1, 101)])
    assert books.median == pytest.approx(0.0505)
    assert books.p99 == pytest.approx(0.099)
