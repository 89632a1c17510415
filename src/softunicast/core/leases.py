"""The life of a lease: who may send from a slice, under which epoch, until when.

States:   free -> held -> draining -> quarantined -> free. `NEXT` below is the whole machine.
Events:   the holder takes, renews, starts to drain, releases (with or without live flows); time expires a
          lease and ends its quarantine.
Timeouts: a live (held or draining) lease ends at `expires_at` and is then quarantined for `quarantine_s`,
          counted from that moment and not from when somebody noticed. So the state at a time is a function
          of the lease alone, however often `lapse` ran.

Times are seconds of the ledger's own clock, which never jumps; `now` is passed in. This file must not know a
clock, a ledger, or what other leases exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from softunicast.core.errors import InputError, LeaseError, SliceTakenError
from softunicast.core.slices import Slice

TTL_DEFAULT_S = 300.0
QUARANTINE_DEFAULT_S = 120.0
RENEWALS_PER_TTL = 3
"""A holder renews every ttl_s / RENEWALS_PER_TTL, so that two renewals may fail before the lease does."""

MARGIN_MIN_S = 1.0
MARGIN_PER_TTL = 0.01


class LeaseState(StrEnum):
    FREE = "free"
    HELD = "held"
    DRAINING = "draining"
    QUARANTINED = "quarantined"


class LeaseEvent(StrEnum):
    TAKEN = "taken"
    RENEWED = "renewed"
    DRAIN_STARTED = "drain_started"
    HANDED_OVER = "handed_over"  # released with no live flow
    RELEASED = "released"  # released, but peers may still talk to its flows
    EXPIRED = "expired"
    FREED = "freed"  # the quarantine is over


NEXT: Mapping[tuple[LeaseState, LeaseEvent], LeaseState] = MappingProxyType(
    {
        (LeaseState.FREE, LeaseEvent.TAKEN): LeaseState.HELD,
        (LeaseState.HELD, LeaseEvent.RENEWED): LeaseState.HELD,
        (LeaseState.HELD, LeaseEvent.DRAIN_STARTED): LeaseState.DRAINING,
        (LeaseState.HELD, LeaseEvent.HANDED_OVER): LeaseState.FREE,
        (LeaseState.HELD, LeaseEvent.RELEASED): LeaseState.QUARANTINED,
        (LeaseState.HELD, LeaseEvent.EXPIRED): LeaseState.QUARANTINED,
        (LeaseState.DRAINING, LeaseEvent.RENEWED): LeaseState.DRAINING,
        # Asking twice is no error: the first answer may have been lost.
        (LeaseState.DRAINING, LeaseEvent.DRAIN_STARTED): LeaseState.DRAINING,
        (LeaseState.DRAINING, LeaseEvent.HANDED_OVER): LeaseState.FREE,
        (LeaseState.DRAINING, LeaseEvent.RELEASED): LeaseState.QUARANTINED,
        (LeaseState.DRAINING, LeaseEvent.EXPIRED): LeaseState.QUARANTINED,
        (LeaseState.QUARANTINED, LeaseEvent.FREED): LeaseState.FREE,
    }
)

LIVE = frozenset({LeaseState.HELD, LeaseState.DRAINING})
ENDS = frozenset(event for (state, event), after in NEXT.items() if state in LIVE and after not in LIVE)
"""The events after which the server may no longer send."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A slice in the hands of a server (`free` and `quarantined`: of the last one).

    `expires_at` and `quarantined_until` are seconds of the ledger's clock; `quarantined_until` is set exactly
    while the lease is quarantined. Within a ledger a later lease has a higher `epoch`, whatever its slice.
    """

    slice: Slice
    server: str
    epoch: int
    state: LeaseState
    expires_at: float
    quarantined_until: float | None = None

    @property
    def live(self) -> bool:
        """Held or draining. Says nothing about time: see `is_live_at`."""
        return self.state in LIVE

    def is_live_at(self, now: float) -> bool:
        """Whether the server may send from the slice at `now`; at `expires_at` itself it no longer may."""
        return self.live and now < self.expires_at


def take(
    slice: Slice, server: str, epoch: int, now: float, ttl_s: float, previous: Lease | None = None
) -> Lease:
    """A new held lease. `previous` is what the ledger has on the slice, or on one that overlaps it.

    Raises SliceTakenError when `previous` is not free, LeaseError when its epoch is not older, InputError for
    a bad `ttl_s`.
    """
    check_duration("ttl_s", ttl_s)
    if previous is not None:
        if previous.state is not LeaseState.FREE:
            raise SliceTakenError(f"taking {slice} for {server}: {describe(previous, now)}")
        if epoch <= previous.epoch:
            raise LeaseError(f"taking {slice} for {server}: epoch {epoch} is not above {previous.epoch}")
    return Lease(slice, server, epoch, NEXT[LeaseState.FREE, LeaseEvent.TAKEN], now + ttl_s)


def renew(lease: Lease, server: str, epoch: int, now: float, ttl_s: float) -> Lease:
    """The same lease until `now + ttl_s`. Never until an earlier time than promised before: the holder's data
    path may already count on that one when the answer to this renewal gets lost."""
    check_duration("ttl_s", ttl_s)
    state = _step(lease, LeaseEvent.RENEWED, server, epoch, now)
    return replace(lease, state=state, expires_at=max(lease.expires_at, now + ttl_s))


def drain(lease: Lease, server: str, epoch: int, now: float) -> Lease:
    """No new flows from now on; those that live keep the slice. A draining lease still wants renewals."""
    return replace(lease, state=_step(lease, LeaseEvent.DRAIN_STARTED, server, epoch, now))


def release(lease: Lease, server: str, epoch: int, clean: bool, now: float, quarantine_s: float) -> Lease:
    """Give the slice back. The holder's data path must have let go of it BEFORE this is asked.

    `clean`: no flow was alive, so the next owner may start at once; otherwise the slice is quarantined.
    """
    state = _step(lease, LeaseEvent.HANDED_OVER if clean else LeaseEvent.RELEASED, server, epoch, now)
    return replace(
        lease, state=state, expires_at=now, quarantined_until=None if clean else now + quarantine_s
    )


def lapses(lease: Lease, now: float, quarantine_s: float) -> Iterator[tuple[LeaseEvent, float, Lease]]:
    """What time alone has done to the lease up to `now`, in order: (event, when, the lease after it)."""
    if lease.live and lease.expires_at <= now:
        at = lease.expires_at
        state = NEXT[lease.state, LeaseEvent.EXPIRED]
        lease = replace(lease, state=state, quarantined_until=at + quarantine_s)
        yield LeaseEvent.EXPIRED, at, lease
    if lease.quarantined_until is not None and lease.quarantined_until <= now:
        at = lease.quarantined_until
        lease = replace(lease, state=NEXT[lease.state, LeaseEvent.FREED], quarantined_until=None)
        yield LeaseEvent.FREED, at, lease


def lapse(lease: Lease, now: float, quarantine_s: float) -> Lease:
    """The lease as it is at `now` when nobody renewed it."""
    for _event, _at, after in lapses(lease, now, quarantine_s):
        lease = after
    return lease


def data_path_deadline(sent_at: float, ttl_s: float, margin_s: float | None = None) -> float:
    """When the holder's kernel must stop using a slice, in seconds of the clock `sent_at` was read from.

    `sent_at` is the moment BEFORE the successful acquire or renew was sent: the ledger counted `ttl_s` from a
    later one, so whatever the request took, the holder stops first. The margin (at least a second, 1 % of
    the TTL) is for two clocks that do not run equally fast. Raises InputError when it leaves nothing.
    """
    check_duration("ttl_s", ttl_s)
    margin = max(MARGIN_MIN_S, ttl_s * MARGIN_PER_TTL) if margin_s is None else margin_s
    if not 0 <= margin < ttl_s:
        raise InputError(
            f"a lease of ttl_s={ttl_s:g} with a margin of {margin:g} s can never be used",
            fix=f"use a ttl_s above {MARGIN_MIN_S:g} and a margin below it",
        )
    return sent_at + ttl_s - margin


def check_duration(name: str, seconds: float) -> None:
    """Raises InputError unless `seconds` is a positive, finite number."""
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InputError(f"{name}={seconds:g} is not a duration", fix="give a number of seconds above 0")


def describe(lease: Lease, now: float) -> str:
    """For error messages: what stands on a slice and how long it still will."""
    who = f"{lease.slice} is {lease.state}"
    if lease.live:
        return f"{who} by {lease.server} (epoch {lease.epoch}) for another {lease.expires_at - now:.0f} s"
    if lease.quarantined_until is not None:
        return f"{who} after {lease.server} for another {lease.quarantined_until - now:.0f} s"
    return f"{who}, last held by {lease.server} (epoch {lease.epoch})"


def _step(lease: Lease, event: LeaseEvent, server: str, epoch: int, now: float) -> LeaseState:
    """The state after a request by `server`, which believes that it holds `epoch`."""
    doing = f"{server}, epoch {epoch}: {lease.slice} cannot be {event.replace('_', ' ')}"
    if (lease.server, lease.epoch) != (server, epoch):
        raise LeaseError(f"{doing}: {describe(lease, now)}", fix="take a new lease")
    if lease.live and now >= lease.expires_at:
        raise LeaseError(
            f"{doing}: the lease expired {now - lease.expires_at:.0f} s ago", fix="take a new lease"
        )
    if (lease.state, event) not in NEXT:
        raise LeaseError(f"{doing}: {describe(lease, now)}", fix="take a new lease")
    return NEXT[lease.state, event]
