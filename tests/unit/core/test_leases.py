"""The lease state machine, step by step: every legal step, every illegal one, every edge of its times."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from softunicast.core.errors import InputError, LeaseError, SliceTakenError
from softunicast.core.leases import (
    ENDS,
    LIVE,
    NEXT,
    Lease,
    LeaseEvent,
    LeaseState,
    data_path_deadline,
    describe,
    drain,
    lapse,
    lapses,
    release,
    renew,
    take,
)
from softunicast.core.slices import Slice

SLICE = Slice.parse("198.51.100.10:2048-4095")
NOW, TTL_S, QUARANTINE_S = 1000.0, 300.0, 120.0

HELD = Lease(SLICE, "server1", 7, LeaseState.HELD, NOW + TTL_S)
DRAINING = replace(HELD, state=LeaseState.DRAINING)
QUARANTINED = replace(
    HELD, state=LeaseState.QUARANTINED, expires_at=NOW, quarantined_until=NOW + QUARANTINE_S
)
FREE = replace(HELD, state=LeaseState.FREE, expires_at=NOW)
STATES = {lease.state: lease for lease in (FREE, HELD, DRAINING, QUARANTINED)}

MINE = ("server1", 7)
REQUESTS = {
    LeaseEvent.RENEWED: lambda lease, who=MINE, now=NOW: renew(lease, *who, now, TTL_S),
    LeaseEvent.DRAIN_STARTED: lambda lease, who=MINE, now=NOW: drain(lease, *who, now),
    LeaseEvent.HANDED_OVER: lambda lease, who=MINE, now=NOW: release(lease, *who, True, now, QUARANTINE_S),
    LeaseEvent.RELEASED: lambda lease, who=MINE, now=NOW: release(lease, *who, False, now, QUARANTINE_S),
}


def test_the_table_is_the_life_of_a_lease() -> None:
    after = {(before, end) for (before, _event), end in NEXT.items() if before is not end}
    free, held, draining, quarantined = LeaseState
    assert after == {
        (free, held),
        (held, draining),
        (held, quarantined),
        (held, free),
        (draining, quarantined),
        (draining, free),
        (quarantined, free),
    }
    assert {held, draining} == LIVE
    assert {LeaseEvent.EXPIRED, LeaseEvent.RELEASED, LeaseEvent.HANDED_OVER} == ENDS


@pytest.mark.parametrize(("state", "event"), list(product(STATES, REQUESTS)))
def test_every_request_in_every_state(state: LeaseState, event: LeaseEvent) -> None:
    if (state, event) in NEXT:
        assert REQUESTS[event](STATES[state]).state is NEXT[state, event]
    else:
        with pytest.raises(LeaseError, match="fix: take a new lease"):
            REQUESTS[event](STATES[state])


@pytest.mark.parametrize(("state", "event"), list(product(sorted(LIVE), REQUESTS)))
@pytest.mark.parametrize("who", [("server2", 7), ("server1", 6), ("server1", 8)])
def test_only_the_holder_with_its_epoch_may_ask(
    state: LeaseState, event: LeaseEvent, who: tuple[str, int]
) -> None:
    with pytest.raises(LeaseError, match="by server1 \\(epoch 7\\) for another 300 s"):
        REQUESTS[event](STATES[state], who)


@pytest.mark.parametrize(("state", "event"), list(product(sorted(LIVE), REQUESTS)))
def test_at_the_expiry_itself_it_is_too_late(state: LeaseState, event: LeaseEvent) -> None:
    lease = STATES[state]
    assert REQUESTS[event](lease, now=lease.expires_at - 0.001)
    with pytest.raises(LeaseError, match="expired 0 s ago"):
        REQUESTS[event](lease, now=lease.expires_at)


def test_taking() -> None:
    assert take(SLICE, "server1", 7, NOW, TTL_S) == HELD
    assert take(SLICE, "server2", 8, NOW, TTL_S, FREE) == replace(HELD, server="server2", epoch=8)
    for lease in (HELD, DRAINING, QUARANTINED):
        with pytest.raises(SliceTakenError, match=f"{lease.state} (by|after) server1"):
            take(SLICE, "server1", 8, NOW, TTL_S, lease)
    for epoch in (7, 6):
        with pytest.raises(LeaseError, match=f"epoch {epoch} is not above 7"):
            take(SLICE, "server2", epoch, NOW, TTL_S, FREE)


def test_renewing_adds_time_and_never_takes_it() -> None:
    assert renew(HELD, *MINE, NOW + 100, TTL_S).expires_at == NOW + 100 + TTL_S
    assert renew(HELD, *MINE, NOW + 100, 1) == HELD
    assert renew(DRAINING, *MINE, NOW + 100, TTL_S).state is LeaseState.DRAINING


def test_releasing_ends_now() -> None:
    for lease in (HELD, DRAINING):
        assert release(lease, *MINE, True, NOW, QUARANTINE_S) == FREE
        assert release(lease, *MINE, False, NOW, QUARANTINE_S) == QUARANTINED


def test_time_alone() -> None:
    end = HELD.expires_at
    expired = replace(HELD, state=LeaseState.QUARANTINED, quarantined_until=end + QUARANTINE_S)
    freed = replace(HELD, state=LeaseState.FREE)
    for lease in (HELD, DRAINING):
        assert lapse(lease, end - 0.001, QUARANTINE_S) == lease
        assert lapse(lease, end, QUARANTINE_S) == expired
        assert lapse(lease, end + QUARANTINE_S - 0.001, QUARANTINE_S) == expired
        assert lapse(lease, end + QUARANTINE_S, QUARANTINE_S) == freed
        assert list(lapses(lease, end + 999, QUARANTINE_S)) == [
            (LeaseEvent.EXPIRED, end, expired),
            (LeaseEvent.FREED, end + QUARANTINE_S, freed),
        ]
    assert lapse(QUARANTINED, NOW + QUARANTINE_S, 0) == FREE  # as was decided when it began
    assert lapse(FREE, NOW + 999, QUARANTINE_S) == FREE
    assert lapse(HELD, end, 0) == freed


def test_live_has_an_end() -> None:
    assert HELD.is_live_at(HELD.expires_at - 0.001)
    assert not HELD.is_live_at(HELD.expires_at)
    assert DRAINING.is_live_at(NOW)
    assert not QUARANTINED.is_live_at(NOW - 1)
    assert not FREE.is_live_at(NOW - 1)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_durations_are_positive_numbers(ttl_s: float) -> None:
    with pytest.raises(InputError, match=r"ttl_s=.* is not a duration"):
        take(SLICE, "server1", 7, NOW, ttl_s)
    with pytest.raises(InputError, match=r"ttl_s=.* is not a duration"):
        renew(HELD, *MINE, NOW, ttl_s)
    with pytest.raises(InputError, match=r"ttl_s=.* is not a duration"):
        data_path_deadline(NOW, ttl_s)


def test_the_holder_stops_before_the_ledger_does() -> None:
    assert data_path_deadline(NOW, 300) == NOW + 297  # 1 %
    assert data_path_deadline(NOW, 30) == NOW + 29  # at least a second
    assert data_path_deadline(NOW, 30, margin_s=0) == NOW + 30
    assert data_path_deadline(NOW, 30, margin_s=10) == NOW + 20
    for ttl_s, margin_s in ((1, None), (0.5, None), (10, 10), (10, 11), (10, -1), (10, float("nan"))):
        with pytest.raises(InputError, match="can never be used"):
            data_path_deadline(NOW, ttl_s, margin_s)


def test_a_lease_is_described_for_people() -> None:
    held, draining, quarantined, free = (
        describe(lease, NOW + 20) for lease in (HELD, DRAINING, QUARANTINED, FREE)
    )
    assert held == "198.51.100.10:2048-4095 is held by server1 (epoch 7) for another 280 s"
    assert draining == "198.51.100.10:2048-4095 is draining by server1 (epoch 7) for another 280 s"
    assert quarantined == "198.51.100.10:2048-4095 is quarantined after server1 for another 100 s"
    assert free == "198.51.100.10:2048-4095 is free, last held by server1 (epoch 7)"
