"""Names of partitions in messages."""

import pytest

from dispatcher.core.partitions import in_ranges, name_partitions


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([7], "7"),
        ([1, 0], "0, 1"),
        ([2, 0, 1], "0 to 2"),
        ([0, 2, 3, 4, 5, 9, 11, 12], "0, 2 to 5, 9, 11, 12"),
        (range(256), "0 to 255"),
    ],
)
def test_numbers_that_follow_each_other_are_a_range(numbers, text):
    assert in_ranges(numbers) == text


def test_one_partition_and_several_are_named():
    assert name_partitions([3]) == "partition 3"
    assert name_partitions(iter([3, 4, 5])) == "partitions 3 to 5"
