"""Leases against a naive model, and the one thing they exist for: never two servers at once."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from softunicast.core.errors import LeaseError
from softunicast.core.leases import (
    Lease,
    LeaseState,
    data_path_deadline,
    drain,
    lapse,
    release,
    renew,
    take,
)
from softunicast.core.slices import Slice

SLICE = Slice.parse("198.51.100.10:2048-4095")
# Whole and half seconds: sums of them are exact, so that edges are hit and not only approached.
seconds = st.integers(0, 1200).map(lambda halves: halves / 2)
durations = st.integers(1, 600).map(lambda halves: halves / 2)
servers = st.sampled_from(["server1", "server2", "server3"])


@dataclass
class Naive:
    """The slice as a line of times: who may send from when to when, and from when it may be taken again."""

    server: str = ""
    until: float = 0
    free_from: float = 0
    draining: bool = False

    def state(self, now: float) -> LeaseState:
        if now < self.until:
            return LeaseState.DRAINING if self.draining else LeaseState.HELD
        return LeaseState.QUARANTINED if now < self.free_from else LeaseState.FREE


steps = st.tuples(
    seconds, st.sampled_from(["take", "renew", "drain", "clean", "dirty", "lapse"]), servers, durations
)


@given(st.lists(steps, max_size=30), durations)
def test_a_slice_lives_as_the_naive_model_says(
    script: list[tuple[float, str, str, float]], quarantine_s: float
) -> None:
    now, epoch = 0.0, 0
    naive = Naive()
    lease: Lease | None = None
    for wait_s, verb, server, ttl_s in script:
        now += wait_s
        state = naive.state(now)
        mine = naive.server == server and state in (LeaseState.HELD, LeaseState.DRAINING)
        allowed = {"take": state is LeaseState.FREE, "lapse": True}.get(verb, mine)
        before = lease
        try:
            if verb == "take":
                known = None if lease is None else lapse(lease, now, quarantine_s)
                lease = take(SLICE, server, epoch + 1, now, ttl_s, known)
            elif lease is None:
                raise LeaseError("nothing there")
            elif verb == "renew":
                lease = renew(lease, server, lease.epoch, now, ttl_s)
            elif verb == "drain":
                lease = drain(lease, server, lease.epoch, now)
            elif verb == "lapse":
                lease = lapse(lease, now, quarantine_s)
            else:
                lease = release(lease, server, lease.epoch, verb == "clean", now, quarantine_s)
        except LeaseError:
            assert not allowed or before is None
            assert lease is before
            continue
        assert allowed, (verb, state)
        assert lease is not None
        if verb == "take":
            epoch += 1
            naive = Naive(server, now + ttl_s, now + ttl_s + quarantine_s)
        elif verb == "renew":
            naive.until = max(naive.until, now + ttl_s)
            naive.free_from = naive.until + quarantine_s
        elif verb == "drain":
            naive.draining = True
        elif verb in ("clean", "dirty"):
            naive.until = now
            naive.free_from = now if verb == "clean" else now + quarantine_s
        assert lapse(lease, now, quarantine_s).state is naive.state(now)
        assert lease.epoch == epoch
        assert lease.is_live_at(now) == (now < naive.until)


leases = st.builds(
    lambda state, expires_at, extra_s: Lease(
        SLICE, "server1", 1, state, expires_at, expires_at + extra_s if state == "quarantined" else None
    ),
    st.sampled_from(LeaseState),
    seconds,
    seconds,
)


@given(leases, seconds, seconds, durations)
def test_when_and_how_often_time_is_looked_at_changes_nothing(
    lease: Lease, first: float, later_s: float, quarantine_s: float
) -> None:
    once = lapse(lease, first + later_s, quarantine_s)
    assert lapse(lapse(lease, first, quarantine_s), first + later_s, quarantine_s) == once
    assert lapse(once, first + later_s, quarantine_s) == once
    assert (once.quarantined_until is not None) == (once.state is LeaseState.QUARANTINED)


parts = st.floats(0.01, 0.99)


@given(
    ttl_s=st.floats(1.5, 10_000),
    drift=st.floats(-0.0099, 0.0099),
    offset=st.floats(-1e6, 1e6),
    request_s=st.floats(0, 1000),
    renewals=st.lists(st.tuples(parts, parts), max_size=5),
)
def test_the_holder_has_stopped_when_its_lease_expires(
    ttl_s: float, drift: float, offset: float, request_s: float, renewals: list[tuple[float, float]]
) -> None:
    """True time is the ledger's. The holder's clock started elsewhere and runs faster or slower by up to a
    percent; its requests take as long as they like to arrive, as long as the lease still lives then."""

    def holders_clock(true: float) -> float:
        return offset + true * (1 + drift)

    lease = take(SLICE, "server1", 1, request_s, ttl_s)
    deadline = data_path_deadline(holders_clock(0), ttl_s)
    for left, travel in renewals:
        arrives = lease.expires_at - ttl_s * left
        sent = arrives - ttl_s * travel
        lease = renew(lease, "server1", 1, arrives, ttl_s)
        deadline = data_path_deadline(holders_clock(sent), ttl_s)
    assert deadline <= holders_clock(lease.expires_at)
