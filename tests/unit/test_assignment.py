"""Partitions are assigned evenly, move only if needed, and settle."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.group.assignment import moves, quotas

MEMBERS = ["a", "b", "c", "d", "e"]

groups = st.integers(1, 5).map(lambda count: MEMBERS[:count])
owned = st.lists(st.sampled_from([*MEMBERS, None]), min_size=1, max_size=9).map(lambda one: dict(enumerate(one)))


def settle(owners, members, capped=()):
    """Applies each member's decisions until nothing changes; returns the result and the number of releases."""
    owners = {number: owner if owner in members else None for number, owner in owners.items()}
    changes = 0
    for _ in range(20):
        todo = {member: moves(member, owners, members, capped) for member in members}
        claimed = [number for one in todo.values() for number in one.claim]
        assert len(claimed) == len(set(claimed)), "two members claim one partition"
        before = dict(owners)
        for member, one in todo.items():
            for number in one.claim:
                assert owners[number] is None
                owners[number] = member
            for number in one.release:
                assert before[number] == member
                owners[number] = None
        if owners == before:
            return owners, changes
        changes += sum(owners[number] != before[number] and before[number] is not None for number in owners)
    raise AssertionError(f"the assignment does not settle: {owners}")


@given(owned, groups)
def test_shares_are_even_and_every_partition_is_held(owners, members):
    settled, _ = settle(owners, members)
    counts = Counter(dict.fromkeys(members, 0)) + Counter(settled.values())
    held = [counts[member] for member in members]
    assert sum(held) == len(owners)
    assert max(held) - min(held) <= 1


@given(owned, groups)
def test_partitions_move_only_if_needed(owners, members):
    """A member loses only the partitions above its share."""
    settled, moved = settle(owners, members)
    held = Counter(owner for owner in owners.values() if owner in members)
    wanted = quotas(held, members, len(owners))
    assert moved == sum(max(0, held[member] - wanted[member]) for member in members)
    assert settle(settled, members) == (settled, 0)


@given(owned, groups, st.sets(st.sampled_from(MEMBERS)))
def test_a_member_at_its_maximum_gets_no_further_partition(owners, members, capped):
    capped = capped & set(members)
    before = Counter(owners.values())
    settled, _ = settle(owners, members, capped)
    after = Counter(settled.values())
    assert all(after[member] <= before[member] for member in capped)
    if capped < set(members):
        assert None not in settled.values()


def test_a_second_member_of_one_partition_is_a_standby():
    assert moves("b", {0: "a"}, ["a", "b"]) == ((), ())
    assert moves("a", {0: "b"}, ["a", "b"]) == ((), ())


def test_members_release_the_partitions_above_an_even_share():
    everything = dict.fromkeys(range(4), "a")
    assert moves("a", everything, ["a", "b"]).release == (2, 3)
    assert moves("a", everything, ["a", "b", "c"]).release == (2, 3)
    half = {0: "a", 1: "a", 2: "b", 3: "b"}
    assert [moves(one, half, ["a", "b", "c"]).release for one in "abc"] == [(), (3,), ()]


def test_a_free_partition_is_claimed_immediately_and_a_leaving_member_releases_its_partitions():
    assert moves("b", {0: None, 1: "a"}, ["b"]).claim == (0,)
    assert moves("a", {0: None, 1: "a"}, ["b"]) == ((), (1,))
