"""Plans are values, and compile to arguments of the driver."""

import dataclasses

import pytest

from mongoz.model.joins import Join
from mongoz.queries.pipelines import command_options, find_arguments, is_for_find_only, last_row_stages, pipeline
from mongoz.queries.plan import Plan


def test_a_plan_is_a_value() -> None:
    assert Plan() == Plan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        Plan().limit = 3  # type: ignore[misc]


def test_conditions_are_merged_into_one_filter() -> None:
    a, b = {"a": {"$eq": 1}}, {"a": {"$eq": 2}}
    assert Plan().filter == {}
    assert Plan((a,)).filter == a
    assert Plan((a, b)).filter == {"$and": [a, b]}


def test_matching_adds_conditions_joins_and_order_and_keeps_each_join_once() -> None:
    join = Join("producer", None, "producers")
    plan = Plan(conditions=({"a": 1},), joins=(join,), order=(("a", 1),))
    more = plan.matching([{"b": 2}], [join, Join("writer", None, "writers")], [("b", -1)])
    assert more.conditions == ({"a": 1}, {"b": 2})
    assert [each.name for each in more.joins] == ["producers", "writers"]
    assert more.order == (("a", 1), ("b", -1))
    assert plan.joins == (join,)


@pytest.mark.parametrize(("limit", "at_most", "found"), [(0, 1, 1), (5, 2, 2), (1, 2, 1), (2, 2, 2)])
def test_at_most_does_not_raise_a_limit_of_the_plan(limit: int, at_most: int, found: int) -> None:
    assert Plan(limit=limit).at_most(at_most).limit == found


def test_reversal_reverses_the_order() -> None:
    assert Plan(order=(("a", 1), ("b", -1))).reversed_order == (("a", -1), ("b", 1))
    assert Plan().reversed_order == (("_id", -1),)


def test_a_plan_becomes_the_arguments_of_find() -> None:
    plan = Plan(({"a": 1},), order=(("a", -1),), limit=2, skip=3, options={"hint": "a_1", "batch_size": 5})
    assert find_arguments(plan, {"a": 1}) == {
        "filter": {"a": 1}, "projection": {"a": 1}, "sort": [("a", -1)], "skip": 3, "limit": 2,
        "hint": "a_1", "batch_size": 5,
    }  # fmt: skip


def test_commands_have_other_names_for_options() -> None:
    plan = Plan(options={"hint": [("a", 1)], "max_time_ms": 10, "batch_size": 5})
    assert command_options(plan, "hint", "max_time_ms") == {"hint": {"a": 1}, "maxTimeMS": 10}
    assert command_options(plan) == {}


def test_conditions_without_joins_are_matched_before_the_join() -> None:
    join = Join("producer", None, "producers")
    early = [{"name": {"$eq": "x"}}, {"$or": [{"a": 1}, {"b": "_joined"}]}]
    late = [{f"{join.slot}.city": {"$eq": "y"}}, {"$nor": [{"a": 1}, {f"{join.slot}.city": {"$eq": "z"}}]}]
    expression = {"$expr": {"$gt": [f"${join.slot}", 1]}}
    plan = Plan((late[0], early[0], expression, early[1], late[1]), (join,), (("producers.city", 1),), 5, 2)
    stages = pipeline(plan, {"name": 1})
    assert [next(iter(stage)) for stage in stages] == [
        "$match", "$lookup", "$match", "$set", "$unset", "$sort", "$skip", "$limit", "$project",
    ]  # fmt: skip
    assert stages[0] == {"$match": {"$and": early}}
    assert stages[2] == {"$match": {"$and": [late[0], expression, late[1]]}}
    assert stages[5:] == [
        {"$sort": {"producers.city": 1}}, {"$skip": 2}, {"$limit": 5}, {"$project": {"name": 1}},
    ]  # fmt: skip


def test_stages_find_the_last_row_after_a_skip() -> None:
    assert last_row_stages(Plan(skip=1))[0] == {"$sort": {"_id": -1}}
    assert last_row_stages(Plan(order=(("a", 1),), skip=1))[-1] == {"$replaceRoot": {"newRoot": "$row"}}


def test_conditions_that_only_find_accepts_are_recognized() -> None:
    assert is_for_find_only(({"a": 1}, {"$and": [{"$where": "true"}]}))
    assert is_for_find_only({"place": {"$near": [1, 2]}})
    assert not is_for_find_only(({"a": {"$gt": 1}}, {"b": "$where"}))
