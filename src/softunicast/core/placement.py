"""Placement: which free slices a server asks the ledger for.

It only proposes: another server may ask for the same slice at the same time, and the ledger decides. So it
may be simple, but it must never propose what cannot be had. No slice with system ports is ever proposed
(but for a whole IPv6 address, of which the data path leaves them out), nor one that overlaps a lease which is live
or still quarantined.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from softunicast.core.leases import Lease, LeaseState
from softunicast.core.pools import Pool, select
from softunicast.core.records import Address, Snapshot
from softunicast.core.slices import PORTS, IPAddress, Slice, first_slice


def choose(
    snapshot: Snapshot, pool: Pool, server: str, site: str, wanted: int, now: float, version: int = 4
) -> tuple[Slice, ...]:
    """Up to `wanted` further slices of a family for `server` to ask for, in the order to ask; fewer when fewer are
    free. `version`: 4 or 6.

    Each is the lowest free slice of an address. Addresses take turns: first those of which this server has
    the fewest slices, then those with the fewest taken at all, then the lowest. `now` is in seconds on the
    clock of the leases' times. Raises UnknownNameError when the pool names a tag that no address carries.
    """
    addresses = [item for item in select(pool, snapshot.addresses, site) if item.address.version == version]
    taken = _taken(snapshot.leases, now)
    turns = []
    for order, address in enumerate(addresses):
        leases = taken.get(address.address, [])
        own = sum(lease.live and lease.server == server for lease in leases)
        turns.append((own, len(leases), order, _free(address, leases)))
    heapq.heapify(turns)
    chosen: list[Slice] = []
    while turns and len(chosen) < wanted:
        own, held, order, free = heapq.heappop(turns)
        if (proposal := next(free, None)) is not None:
            chosen.append(proposal)
            heapq.heappush(turns, (own + 1, held + 1, order, free))
    return tuple(chosen)


def _taken(leases: Iterable[Lease], now: float) -> dict[IPAddress, list[Lease]]:
    """The leases that keep their slice from being asked for, by address."""
    taken: dict[IPAddress, list[Lease]] = {}
    for lease in leases:
        if not _is_over(lease, now):
            taken.setdefault(lease.slice.address, []).append(lease)
    return taken


def _is_over(lease: Lease, now: float) -> bool:
    """Whether the slice is free again. A live lease past its expiry is not: quarantine follows."""
    if lease.state is LeaseState.QUARANTINED:
        return lease.quarantined_until is not None and lease.quarantined_until <= now
    return lease.state is LeaseState.FREE


def _free(address: Address, leases: Iterable[Lease]) -> Iterator[Slice]:
    """Free slices, lowest first, above the system ports. A lease of another size covers what it touches."""
    ports = address.slice_ports
    busy = {
        slot
        for lease in leases
        for slot in range(lease.slice.port_first // ports, lease.slice.port_last // ports + 1)
    }
    for slot in range(first_slice(address.address, ports).port_first // ports, PORTS // ports):
        if slot not in busy:
            yield Slice.of(address.address, slot * ports, ports)
