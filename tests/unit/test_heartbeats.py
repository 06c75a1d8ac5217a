"""Ages of heartbeats are measured with the local clock only."""

from dispatcher.group.heartbeats import Heartbeats


def test_the_age_of_a_value_begins_with_the_first_answer_that_has_it():
    heartbeats = Heartbeats()
    assert heartbeats.note({"a": 1}, asked=10.0, answered=11.0) == {"a": 0.0}
    assert heartbeats.note({"a": 1}, asked=15.0, answered=16.0) == {"a": 4.0}
    assert heartbeats.note({"a": 2}, asked=20.0, answered=21.0) == {"a": 0.0}
    assert heartbeats.note({"a": 2}, asked=23.5, answered=24.0) == {"a": 2.5}


def test_a_slow_answer_does_not_increase_the_age():
    heartbeats = Heartbeats()
    heartbeats.note({"a": 1}, asked=0.0, answered=30.0)
    assert heartbeats.note({"a": 1}, asked=31.0, answered=90.0) == {"a": 1.0}


def test_the_age_of_a_reappearing_value_begins_at_zero():
    heartbeats = Heartbeats()
    heartbeats.note({"a": 1, "b": 1}, asked=0.0, answered=0.0)
    assert heartbeats.note({"b": 1}, asked=5.0, answered=5.0) == {"b": 5.0}
    assert heartbeats.note({"a": 1, "b": 1}, asked=9.0, answered=9.0) == {"a": 0.0, "b": 9.0}
