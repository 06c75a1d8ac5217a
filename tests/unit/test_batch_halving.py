"""A batch that failed is divided until the events that fail alone are found."""

from hypothesis import given
from hypothesis import strategies as st

from dispatcher.batches.halving import divided

KEYS = st.lists(st.integers(0, 6), max_size=40)


@given(KEYS)
def test_the_parts_have_each_event_once_and_in_order(keys):
    parts = divided(keys)
    assert all(part == sorted(part) for part in parts)
    assert sorted(index for part in parts for index in part) == (list(range(len(keys))) if len(keys) > 1 else [])


@given(KEYS)
def test_all_events_of_a_document_stay_in_one_half_until_no_other_document_is_left(keys):
    parts = divided(keys)
    if len(set(keys)) > 1:
        assert len(parts) == 2
        first, second = ({keys[index] for index in part} for part in parts)
        assert first
        assert second
        assert not first & second
    else:
        assert parts == ([[index] for index in range(len(keys))] if len(keys) > 1 else [])


@given(KEYS, st.data())
def test_each_bad_event_is_found_alone_and_the_others_succeed_in_order(keys, data):
    bad = data.draw(st.sets(st.sampled_from(range(len(keys))))) if keys else set()
    parts, succeeded, alone = [list(range(len(keys)))] if keys else [], [], set()
    attempts = 0
    while parts:
        part = parts.pop(0)
        attempts += 1
        if not bad & set(part):
            succeeded += part
        elif len(part) == 1:
            alone.add(part[0])
        else:
            parts = [[part[index] for index in each] for each in divided([keys[index] for index in part])] + parts
    assert alone == bad
    assert sorted(succeeded) == [index for index in range(len(keys)) if index not in bad]
    for key in set(keys):
        assert [one for one in succeeded if keys[one] == key] == sorted(
            one for one in succeeded if keys[one] == key
        )
    assert attempts <= 2 * len(keys) + 1


def test_halves_have_about_the_same_size():
    assert [len(part) for part in divided(range(500))] == [250, 250]
    assert divided(["a", "b", "b", "b"]) == [[0], [1, 2, 3]]
    assert divided(["b", "b", "b", "a"]) == [[0, 1, 2], [3]]
