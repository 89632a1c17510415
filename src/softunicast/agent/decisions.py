"""What the agent decides about leases and the host, as pure functions: state in, what to do out.

Times are CLOCK_MONOTONIC nanoseconds where the name says `_ns`; the ledger's own clock appears as `now`, in
seconds. Random numbers are passed in as `jitter`, from 0 to 1. Nothing here waits, asks or changes anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from softunicast.core.desired import KernelState
from softunicast.core.errors import HostError
from softunicast.core.leases import RENEWALS_PER_TTL, Lease, LeaseState
from softunicast.core.pools import Pool, select
from softunicast.core.records import Server, Snapshot
from softunicast.core.slices import IPAddress, Slice
from softunicast.kernel.abi import Reason
from softunicast.kernel.flows import Drop

RENEWAL_SPREAD: Final = 0.2  # renewals of a fleet that started together spread over this share of a period
BACKOFF_FIRST_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Adoption:
    """What to do with this server's leases that the ledger has when the agent starts.

    `held`: the kernel works with them: slice -> (lease, the deadline that the kernel has, ns). `orphans`: it does
    not, so whatever flows they had are forgotten and peers may still send: they go back to be quarantined.
    """

    held: Mapping[Slice, tuple[Lease, int]]
    orphans: tuple[Lease, ...]


def adoption(snapshot: Snapshot, me: str, actual: KernelState) -> Adoption:
    """Sorts the live leases of `me` by whether `actual`, the kernel's state, knows them with their epoch."""
    held, orphans = {}, []
    for lease in snapshot.leases:
        if lease.server != me or not lease.live:
            continue
        deadline_ns = _deadline_in(actual, lease)
        if deadline_ns:
            held[lease.slice] = (lease, deadline_ns)
        else:
            orphans.append(lease)
    return Adoption(held, tuple(orphans))


def _deadline_in(actual: KernelState, lease: Lease) -> int:
    """The deadline of the lease in the kernel's table, or 0."""
    table = actual.addresses.get(lease.slice.address)
    if table is None or table.slice_ports != lease.slice.ports:
        return 0
    owner = table.owners.get(lease.slice.port_first // table.slice_ports)
    known = owner is not None and (owner.server, owner.epoch) == (lease.server, lease.epoch)
    return owner.deadline_ns if owner is not None and known else 0


def check_identity(snapshot: Snapshot, me: Server, adopted: Collection[Slice], now: float) -> None:
    """Raises HostError when this would be the second server to use its name, or its uplink address.

    Two servers under one name would renew, and so use, each other's leases. A server whose interface was
    replaced looks the same; it has to wait until the leases of its earlier self are over.
    """
    for server in snapshot.servers:
        same_name = server.name == me.name
        same_place = (server.address, server.mac) == (me.address, me.mac)
        if same_name == same_place or (not same_name and server.address != me.address):
            continue
        live = [
            lease
            for lease in snapshot.leases
            if lease.server == server.name and lease.is_live_at(now) and lease.slice not in adopted
        ]
        if not live:
            continue
        wait_s = max(lease.expires_at for lease in live) - now
        if same_name:
            what = f"server {me.name} is already in the ledger as {server.address} ({server.mac})"
            fix = "give this server its own [server] name"
        else:
            what = f"{me.address} is already in the ledger as server {server.name}"
            fix = f"name this server {server.name}, or give it its own address"
        raise HostError(
            f"{what}, with {len(live)} live leases",
            f"{fix}; or wait {wait_s:.0f} s until the leases are over",
        )


@dataclass(frozen=True, slots=True)
class Wants:
    """`missing`: (pool name, family) -> how many more slices it may have. `surplus`: held leases that no pool needs."""

    missing: Mapping[tuple[str, int], int]
    surplus: tuple[Lease, ...]

    @property
    def by_pool(self) -> dict[str, int]:
        """How many more slices each pool may have, of any family."""
        total: dict[str, int] = {}
        for (name, _), number in self.missing.items():
            total[name] = total.get(name, 0) + number
        return total


def wants(snapshot: Snapshot, pools: Iterable[Pool], site: str, held: Iterable[Lease]) -> Wants:
    """Compares the leases held with what the pools may have: `slices_max` of each family that the pool has
    addresses of (of IPv4, while it has none at all). A slice counts for every pool that matches.

    Each pool keeps its lowest slices, first those that an earlier pool keeps anyway. Draining leases count for
    nothing: they are on their way out. Raises UnknownNameError for a tag that no address carries.
    """
    leases = sorted(
        (lease for lease in held if lease.state is LeaseState.HELD), key=lambda lease: lease.slice
    )
    kept: set[Slice] = set()
    missing: dict[tuple[str, int], int] = {}
    for pool in pools:
        addresses = {address.address for address in select(pool, snapshot.addresses, site)}
        for version in sorted({address.version for address in addresses} or {4}):
            matching = [
                lease.slice
                for lease in leases
                if lease.slice.version == version and lease.slice.address in addresses
            ]
            matching.sort(key=lambda slice_: slice_ not in kept)
            kept.update(matching[: pool.slices_max])
            missing[pool.name, version] = max(0, pool.slices_max - len(matching))
    return Wants(missing, tuple(lease for lease in leases if lease.slice not in kept))


def renewal_due_ns(sent_ns: int, ttl_s: float, jitter: float) -> int:
    """When to renew a lease that was last renewed (or taken) by a request sent at `sent_ns`."""
    period_s = ttl_s / RENEWALS_PER_TTL
    return sent_ns + int(period_s * (1 + RENEWAL_SPREAD * (jitter - 0.5)) * 1e9)


def backoff_s(failures: int, ceiling_s: float, jitter: float) -> float:
    """How long to wait after so many failures in a row: doubling, never above the ceiling, half of it random."""
    wait_s = min(ceiling_s, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))
    return wait_s * (0.5 + jitter / 2)


def grown(before: Mapping[Reason, int], now: Iterable[Drop]) -> list[tuple[Drop, int]]:
    """The drop counters that grew since `before` (packets by reason), and by how much. At most one event for
    each reason comes of it, however many packets there were. One that shrank was made anew: all is growth."""
    found = []
    for drop in now:
        known = before.get(drop.reason, 0)
        more = drop.packets - known if drop.packets >= known else drop.packets
        if more:
            found.append((drop, more))
    return found


def without_new_flows(state: KernelState) -> KernelState:
    """The same state, in which no pool has a slice: flows go on, new ones are refused by name."""
    pools = {name: replace(pool, slices=()) for name, pool in state.pools.items()}
    return replace(state, pools=pools)


def addresses_here(state: KernelState, me: str) -> frozenset[IPAddress]:
    """The addresses of which this server has a slice."""
    return frozenset(
        address
        for address, table in state.addresses.items()
        if any(owner.server == me for owner in table.owners.values())
    )
