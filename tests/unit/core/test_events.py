"""Events: at most one for each kind and pool in a while, none of them uncounted, and memory that is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softunicast.core.events import EVENTS_MAX, KINDS, QUIET_S, EventBook, crosses

FLOODS = sorted(name for name, kind in KINDS.items() if not kind.at_once)
OTHERS = sorted(name for name, kind in KINDS.items() if kind.at_once)


def test_a_flood_is_one_event_and_a_count() -> None:
    book = EventBook(1)
    first = book.note(100.0, "pool full", {"pool": "gb", "destination": "a"}, 3)
    assert first is not None
    assert (first.number, first.count, first.nat_event) == (1, 3, 12)
    for number in range(50):
        assert book.note(100.0 + number / 10, "pool full", {"pool": "gb", "destination": number}, 2) is None
    assert list(book.due(100.0 + QUIET_S - 0.1)) == []
    (later,) = book.due(100.0 + QUIET_S)
    assert (later.number, later.count, later.details["destination"]) == (2, 100, 49)
    assert list(book.due(200.0)) == []
    assert book.since(0, 10) == [first, later]
    assert book.since(1, 10) == [later]


def test_what_was_only_counted_is_in_the_next_event() -> None:
    book = EventBook(1)
    book.note(100.0, "client limited", {"client": "10.0.0.2"})
    book.note(101.0, "client limited", {"client": "10.0.0.3"})
    event = book.note(100.0 + QUIET_S, "client limited", {"client": "10.0.0.4"})
    assert event is not None
    assert (event.count, event.details["client"]) == (2, "10.0.0.4")
    assert list(book.due(1000.0)) == []


def test_pools_and_kinds_do_not_hide_each_other() -> None:
    book = EventBook(1)
    for kind in ("pool full", "pool without slices"):
        for pool in ("gb", "fr"):
            assert book.note(100.0, kind, {"pool": pool}) is not None


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_rare_is_never_merged(kind: str) -> None:
    book = EventBook(1)
    assert all(book.note(100.0, kind, {"slice": number}) for number in range(5))


def test_a_clock_that_was_set_back_silences_nobody() -> None:
    book = EventBook(1)
    assert book.note(1000.0, "pool full", {"pool": "gb"})
    assert book.note(10.0, "pool full", {"pool": "gb"})


def test_only_the_last_ones_are_kept() -> None:
    book = EventBook(7)
    assert book.last == 6
    for number in range(EVENTS_MAX + 5):
        book.note(float(number), "slice acquired", {"slice": number})
    assert book.last == 7 + EVENTS_MAX + 4
    kept = book.since(0, EVENTS_MAX + 100)
    assert len(kept) == EVENTS_MAX
    assert kept[-1].number == book.last
    assert [event.number for event in book.since(0, 2)] == [book.last - 1, book.last]
    assert book.since(book.last, 10) == []


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.sampled_from(FLOODS), st.sampled_from(["gb", "fr"]), st.integers(1, 9)),
        max_size=60,
    )
)
def test_nothing_is_lost_and_nothing_repeated(steps: list[tuple[float, str, str, int]]) -> None:
    """Counts add up for each kind and pool; two events of one kind and pool are never close together."""
    book, now = EventBook(1), 0.0
    wanted = dict[tuple[str, str], int]()
    for wait, kind, pool, count in steps:
        now += wait
        book.note(now, kind, {"pool": pool}, count)
        wanted[kind, pool] = wanted.get((kind, pool), 0) + count
        list(book.due(now))
    list(book.due(now + QUIET_S + 1))  # more than rounding takes away
    found, times = dict[tuple[str, str], int](), dict[tuple[str, str], float]()
    for event in book.since(0, EVENTS_MAX):
        key = (event.kind, str(event.details["pool"]))
        found[key] = found.get(key, 0) + event.count
        assert event.at - times.get(key, -QUIET_S) >= QUIET_S
        times[key] = event.at
    assert found == wanted


def test_a_threshold_has_two_sides() -> None:
    """A share that stays between them changes nothing, whichever side it came from."""
    high, seen = False, []
    for share in (0.1, 0.79, 0.8, 0.75, 0.71, 0.85, 0.7, 0.75, 0.79, 0.8):
        high = crosses(high, share, 0.8, 0.7)
        seen.append(high)
    assert seen == [False, False, True, True, True, True, False, False, False, True]


@given(st.floats(0, 2), st.booleans())
def test_one_threshold_for_both_is_no_flutter(share: float, high: bool) -> None:
    once = crosses(high, share, 0.8, 0.8)
    if share != 0.8:
        assert crosses(once, share, 0.8, 0.8) == once
