"""Plans by example: the three parts and their order."""

from __future__ import annotations

from softunicast.core.plan import Action, Step, diff


def test_the_three_parts() -> None:
    plan = diff({"new": 1, "other": 2, "same": 3}, {"same": 3, "other": 1, "old": 9})
    assert (plan.add, plan.change, plan.remove) == ({"new": 1}, {"other": 2}, {"old": 9})
    assert len(plan) == 3


def test_steps_add_then_change_then_remove() -> None:
    plan = diff({"new": 1, "other": 2}, {"old": 9, "other": 1})
    assert list(plan.steps()) == [
        Step(Action.ADD, "new", 1),
        Step(Action.CHANGE, "other", 2),
        Step(Action.REMOVE, "old", 9),
    ]


def test_an_empty_plan_is_false() -> None:
    assert not diff({"same": 1}, {"same": 1})
    assert diff({"same": 1}, {})


def test_none_is_a_value_like_any_other() -> None:
    assert diff({"a": None}, {}).add == {"a": None}
    assert diff({"a": None}, {"a": 1}).change == {"a": None}
    assert diff({}, {"a": None}).remove == {"a": None}
