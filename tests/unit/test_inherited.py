"""After a repartition exactly the finished changes are skipped."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.core.partitions import partition_of
from dispatcher.core.resume_tokens import digest_of
from dispatcher.position.inherited import Fact, Inherited, beginning_of

HASHES = [-(2**63), -17, -3, -2, -1, 0, 1, 2, 3, 5, 12, 2**63 - 1]


def token(number: int) -> str:
    return f"82{number:08X}000000012B0229296E04"


class Group:
    """A simple model of a group: the finished changes, and its positions."""

    def __init__(self, changes: list[int]) -> None:
        self.hashes = dict(enumerate(changes, 1))  # by the number of the change
        self.finished: set[int] = set()
        self.partitions = 1
        self.begins = {0: (0, Inherited(()))}

    def mine(self, partition: int) -> list[int]:
        return [n for n, hashed in self.hashes.items() if partition_of(hashed, self.partitions) == partition]

    def knows(self, partition: int, number: int) -> bool:
        """Whether a partition would skip a change."""
        begin, inherited = self.begins[partition]
        return number <= begin or inherited.has_finished(token(number), self.hashes[number])

    def work(self, partition: int, numbers: set[int]) -> None:
        self.finished |= numbers & set(self.mine(partition))

    def position(self, partition: int) -> tuple[int, list[int]]:
        """The position of a partition, and the finished changes after it."""
        begin, _ = self.begins[partition]
        mine = [n for n in self.mine(partition) if n > begin]
        for number in mine:
            if number not in self.finished:
                break
            begin = number
        return begin, [n for n in mine if n > begin and n in self.finished]

    def divide(self, partitions: int) -> None:
        facts, earlier = [], []
        for partition, (_, inherited) in self.begins.items():
            at, ahead = self.position(partition)
            inherited.pass_(token(at))
            digests = b"".join(sorted({digest_of(token(n)) for n in ahead}))
            facts.append(Fact(self.partitions, partition, token(at), token(max([at, *ahead])), digests))
            earlier += inherited.facts
        self.partitions, self.begins = partitions, {}
        for partition in range(partitions):
            begins = beginning_of(partition, partitions, facts, earlier)
            self.begins[partition] = (int(begins.token[2:10], 16), Inherited(begins.inherited))


changes = st.lists(st.sampled_from(HASHES), min_size=1, max_size=25)
numbers = st.sets(st.integers(1, 25))
rounds = st.lists(st.tuples(st.integers(1, 6), st.lists(numbers, min_size=6, max_size=6)), min_size=1, max_size=5)


@given(changes, rounds)
def test_after_repartitions_exactly_the_finished_changes_are_skipped(changes, rounds):
    group = Group(changes)
    for partitions, worked in rounds:
        for partition in range(group.partitions):
            group.work(partition, worked[partition])
        group.divide(partitions)
        for partition in range(partitions):
            for number in group.mine(partition):
                assert group.knows(partition, number) is (number in group.finished)


@given(changes, rounds)
def test_nothing_inherited_is_left_when_the_position_has_passed_all_changes(changes, rounds):
    group = Group(changes)
    for partitions, worked in rounds:
        for partition in range(group.partitions):
            group.work(partition, worked[partition])
        group.divide(partitions)
    for _, inherited in group.begins.values():
        assert all(fact.until <= token(len(changes)) for fact in inherited.facts)
        assert len({(fact.partitions, fact.partition) for fact in inherited.facts}) == len(inherited.facts)
        assert inherited.pass_(token(len(changes))) or not inherited.facts
        assert not inherited


def test_a_partition_inherits_only_its_own_changes():
    facts = [Fact(4, n, token(10 + n), token(10 + n), b"") for n in range(4)]
    assert beginning_of(0, 2, facts, []).token == token(10)
    assert [fact.partition for fact in beginning_of(0, 2, facts, []).inherited] == [2]
    assert [fact.partition for fact in beginning_of(1, 2, facts, []).inherited] == [3]
    assert [fact.partition for fact in beginning_of(0, 3, facts, []).inherited] == [1, 2, 3]
    assert beginning_of(5, 8, facts, []) == (token(11), ())


def test_digests_of_tokens_have_a_fixed_length():
    tokens = [token(number) for number in range(20_000)]
    digests = b"".join(sorted({digest_of(one) for one in tokens}))
    assert len(digests) == 10 * 20_000
    fact = Fact(1, 0, token(0), token(30_000), digests)
    assert all(Inherited([fact]).has_finished(one, 7) for one in tokens[::1000])
    assert not any(Inherited([fact]).has_finished(token(n), 7) for n in range(20_000, 30_000))
