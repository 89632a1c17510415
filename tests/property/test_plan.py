"""Plans against the simplest of models: a dictionary that the steps are applied to one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from softunicast.core.plan import Action, Step, diff

States = dict[int, int | None]

states: st.SearchStrategy[States] = st.dictionaries(
    st.integers(0, 12), st.one_of(st.none(), st.integers(0, 3)), max_size=12
)


def apply(step: Step[int, int | None], state: States) -> None:
    if step.action is Action.REMOVE:
        assert state.pop(step.key) == step.value
    else:
        assert (step.key in state) == (step.action is Action.CHANGE)
        state[step.key] = step.value


@given(states, states)
def test_all_steps_make_actual_the_wanted(wanted: States, actual: States) -> None:
    plan = diff(wanted, actual)
    state = dict(actual)
    for step in plan.steps():
        before = dict(state)
        apply(step, state)
        assert state != before, "a step that changes nothing"
    assert state == wanted
    assert len(plan) == len(list(plan.steps()))
    assert not diff(wanted, state)


@given(states, states)
def test_nothing_is_missing_at_any_moment(wanted: States, actual: States) -> None:
    state = dict(actual)
    for step in diff(wanted, actual).steps():
        apply(step, state)
        assert wanted.keys() & actual.keys() <= state.keys()
        if step.action is Action.REMOVE:
            assert wanted.items() <= state.items(), "removed before everything wanted was there"
        else:
            assert actual.keys() <= state.keys(), "removed before everything wanted was there"


@given(states, states, st.integers(0, 30))
def test_a_plan_may_be_cut_short_and_made_anew(wanted: States, actual: States, done: int) -> None:
    state = dict(actual)
    for step in list(diff(wanted, actual).steps())[:done]:
        apply(step, state)
    for step in diff(wanted, state).steps():
        apply(step, state)
    assert state == wanted
