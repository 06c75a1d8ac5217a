"""The differences between the observed deliveries and the model."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of

from tests.model.model import Told

__all__ = ["Verdict", "compare"]


@dataclass
class Verdict:
    """The result of one sequence, or of many.

    Attributes:
        sequences: the number of sequences.
        writes: committed changes of documents, and markers of deletes.
        expected: the deliveries of the model, by the dispatcher and in process.
        seen: the observed deliveries.
        taken: the observed takeovers.
        lost: missing deliveries.
        doubled: repeated deliveries, and deliveries to a wrong receiver.
        disordered: deliveries in another order.
        wrong: deliveries with other keywords.
        unforeseen: documents whose changes differ between the server and the model. Then the test is wrong, or an
            unknown client wrote.
        words: a description of the differences.
    """

    sequences: int = 0
    writes: int = 0
    expected: int = 0
    seen: int = 0
    taken: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    wrong: int = 0
    unforeseen: int = 0
    words: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether the deliveries equal the model."""
        return not self.words

    def add(self, other: "Verdict") -> None:
        """Adds another result."""
        for one in fields_of(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


def compare(expected: Sequence[Told], seen: Sequence[Told], where: str, waiting: Collection[str] = ()) -> Verdict:
    """Compares the deliveries of one document.

    Args:
        expected: the deliveries of the model, in order.
        seen: the observed deliveries, in order.
        where: the document and the process, for messages.
        waiting: receivers whose deliveries may wait for a claim. The order of each is compared on its own.
    """
    verdict = Verdict(expected=len(expected), seen=len(seen))
    missing, surplus = Counter(expected) - Counter(seen), Counter(seen) - Counter(expected)
    for told in list(surplus.elements()):
        # A surplus delivery and a missing one of the same receiver count as one delivery with wrong keywords.
        twin = next((one for one in missing.elements() if one.receiver == told.receiver), None)
        if told not in expected and twin is not None:
            missing[twin] -= 1
            surplus[told] -= 1
            verdict.wrong += 1
            verdict.words.append(f"{where}: instead of\n    {twin}\n  it was\n    {told}")
    verdict.lost, verdict.doubled = missing.total(), surplus.total()
    verdict.words += [f"{where}: lost\n    {told}" for told in missing.elements()]
    verdict.words += [f"{where}: too often\n    {told}" for told in surplus.elements()]
    if not verdict.words:
        orders, seen_orders = _orders_of(expected, waiting), _orders_of(seen, waiting)
        for name, order in orders.items():
            verdict.disordered += sum(one != other for one, other in zip(order, seen_orders[name], strict=True))
    if verdict.disordered:
        both = ("\n    ".join(map(str, order)) for order in (expected, seen))
        verdict.words.append("{}: out of order; not\n    {}\n  but\n    {}".format(where, *both))
    return verdict


def _orders_of(told: Sequence[Told], waiting: Collection[str]) -> dict[str, list[Told]]:
    """The deliveries in several orders: one order for each waiting receiver, and one for all other receivers."""
    orders = defaultdict(list)
    for one in told:
        orders[one.receiver if one.receiver in waiting else ""].append(one)
    return orders
