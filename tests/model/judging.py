"""Where what was seen differs from what the model says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from dataclasses import fields as fields_of

from tests.model.model import Told

__all__ = ["Verdict", "compare"]


@dataclass
class Verdict:
    """What became of one sequence, or of many.

    Attributes:
        sequences: how many.
        writes: committed changes of documents, and markers of deletes.
        expected: deliveries that the model asks for, by the dispatcher and in process.
        seen: deliveries that there were.
        lost: that were missing.
        doubled: that came too often, or to somebody who was not to be told.
        disordered: that came in another order.
        wrong: that came with other keywords.
        unforeseen: documents whose changes the server reported otherwise than the model has them. Then the test is
            wrong, or somebody wrote who should not.
        words: all of it, in words.
    """

    sequences: int = 0
    writes: int = 0
    expected: int = 0
    seen: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    wrong: int = 0
    unforeseen: int = 0
    words: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Whether it is as the model says."""
        return not self.words

    def add(self, other: "Verdict") -> None:
        """Count another one in."""
        for one in fields_of(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))


def compare(expected: Sequence[Told], seen: Sequence[Told], where: str) -> Verdict:
    """Judge the deliveries of one document.

    Args:
        expected: in order.
        seen: in order.
        where: the document, and who delivered, for people.
    """
    verdict = Verdict(expected=len(expected), seen=len(seen))
    missing, surplus = Counter(expected) - Counter(seen), Counter(seen) - Counter(expected)
    for told in list(surplus.elements()):
        # Never asked for like this: then it is the one of its receiver that is missing, told otherwise.
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
        verdict.disordered = sum(one != other for one, other in zip(expected, seen, strict=True))
    if verdict.disordered:
        orders = ("\n    ".join(map(str, order)) for order in (expected, seen))
        verdict.words.append("{}: out of order; not\n    {}\n  but\n    {}".format(where, *orders))
    return verdict
