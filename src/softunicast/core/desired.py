"""What the kernel should hold, computed from the ledger: the one place where leases become tables.

A pure function of a snapshot, this server's name, its configuration, and what the agent knows about its own
leases (until when they last, and which have settled). The result is compared with what the kernel holds
(`plan.py`) and the difference applied; nothing here knows how. Another site's addresses are left out, since
a server sends packets on only to those of its own site.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from softunicast.core.errors import UnknownNameError
from softunicast.core.leases import Lease, LeaseState
from softunicast.core.pools import (
    BEHAVIOUR_DEFAULT,
    ICMP_ERRORS_PER_S,
    NO_LIMITS,
    WHEN_FULL,
    Behaviour,
    ClientLimits,
    Pool,
    Timers,
)
from softunicast.core.records import Address, Snapshot
from softunicast.core.slices import IPAddress, Slice


@dataclass(frozen=True, slots=True)
class SlotOwner:
    """Who has a slice. `deadline_ns`: CLOCK_MONOTONIC in ns at which this server must stop using it.

    It is 0 for slices of other servers, whose own kernels keep their deadlines, and for a lease of this
    server that it has not confirmed itself: such a slice is steered here but already past its deadline.
    """

    server: str
    epoch: int
    deadline_ns: int


@dataclass(frozen=True, slots=True)
class AddressTable:
    """One address: ports per slice (a power of two), and the owner by port // slice_ports; none: no entry."""

    slice_ports: int
    owners: Mapping[int, SlotOwner]


@dataclass(frozen=True, slots=True)
class PoolSlices:
    """A pool on this server: its timers, the slices, in order, that may open new flows, how it maps, what one
    client may take, how many ICMP errors it is sent per second, and of which families (4, 6) it has addresses:
    clients of another are refused by name. `several`: a client may get a second address, so that clients'
    addresses have to be remembered. `dns`: who is asked in place of resolvers on loopback, IPv4 first."""

    timers: Timers
    slices: tuple[Slice, ...]
    behaviour: Behaviour = BEHAVIOUR_DEFAULT
    client_limits: ClientLimits = NO_LIMITS
    icmp_errors_per_s: int = ICMP_ERRORS_PER_S
    when_full: str = WHEN_FULL[0]
    several: bool = False
    families: frozenset[int] = frozenset({4})
    dns: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelState:
    """Everything the data path knows.

    `servers`: name -> MAC of the uplink, this server's included. `onramps`: interface name -> pool name.
    `tunnels`: those of the servers that are reached through a tunnel -> where it ends; and this server's own end,
    when there are any.
    """

    blocks: frozenset[Slice]
    addresses: Mapping[IPAddress, AddressTable]
    servers: Mapping[str, str]
    pools: Mapping[str, PoolSlices]
    onramps: Mapping[str, str]
    tunnels: Mapping[str, IPv4Address] = field(default_factory=dict)


def desired(
    snapshot: Snapshot,
    me: str,
    pools: Iterable[Pool],
    onramps: Mapping[str, str],
    deadlines: Mapping[Slice, int],
    usable: Collection[Slice],
    segment: Collection[IPv4Network] | None = None,
) -> KernelState:
    """The kernel state that the ledger's snapshot asks of the server named `me`.

    `deadlines`: by slice of this server's own leases, CLOCK_MONOTONIC ns, counted from sending the last
    successful renewal. `usable`: its slices that have settled, that is, that every neighbour had time to
    learn of. A new flow may leave only from a slice that is held (not draining), has a deadline and is
    usable; a slice serves every pool that matches its address. A pool without any is there, empty, so that
    its clients are refused by name. `segment`: the prefixes that are on the uplink's own link; servers with an
    address outside of them are reached through tunnels (none is, when not given). Raises UnknownNameError when
    the ledger has no server `me`.
    """
    site = _site_of(snapshot, me)
    servers = {server.name: server.mac for server in snapshot.servers if server.site == site}
    addresses = {address.address: address for address in snapshot.addresses if address.site == site}
    owners: dict[IPAddress, dict[int, SlotOwner]] = {address: {} for address in addresses}
    opening: list[tuple[Slice, Address]] = []
    for lease in snapshot.leases:
        where = lease.slice.address
        if where not in addresses:
            continue
        address = addresses[where]
        if not _is_steered(lease, address, servers):
            continue
        deadline_ns = deadlines.get(lease.slice, 0) if lease.server == me else 0
        slot = lease.slice.port_first // address.slice_ports
        owners[where][slot] = SlotOwner(lease.server, lease.epoch, deadline_ns)
        if deadline_ns and lease.state is LeaseState.HELD and lease.slice in usable:
            opening.append((lease.slice, address))
    opening.sort(key=lambda item: item[0])
    return KernelState(
        blocks=frozenset(block.prefix for block in snapshot.blocks),
        addresses={
            address: AddressTable(addresses[address].slice_ports, slots) for address, slots in owners.items()
        },
        servers=servers,
        pools={
            pool.name: PoolSlices(
                pool.timers,
                tuple(slice_ for slice_, address in opening if pool.matches(address)),
                pool.behaviour,
                pool.client_limits,
                pool.icmp_errors_per_s,
                pool.when_full,
                pool.slices_max > 1,
                _families(pool, addresses.values()),
                tuple(sorted(pool.dns, key=lambda resolver: resolver.version)),
            )
            for pool in pools
        },
        onramps=dict(onramps),
        tunnels=_tunnels(snapshot, me, site, segment),
    )


def _tunnels(
    snapshot: Snapshot, me: str, site: str, segment: Collection[IPv4Network] | None
) -> dict[str, IPv4Address]:
    if segment is None:
        return {}
    addresses = {server.name: server.address for server in snapshot.servers if server.site == site}
    remote = {
        name: address
        for name, address in addresses.items()
        if name != me and not any(address in prefix for prefix in segment)
    }
    return {**remote, me: addresses[me]} if remote else {}


def _families(pool: Pool, addresses: Iterable[Address]) -> frozenset[int]:
    """Those that the pool has addresses of; IPv4 while it has none, because that is what its clients expect."""
    return frozenset(item.address.version for item in addresses if pool.matches(item)) or frozenset({4})


def _site_of(snapshot: Snapshot, me: str) -> str:
    for server in snapshot.servers:
        if server.name == me:
            return server.site
    raise UnknownNameError(
        f"the ledger has no server {me!r}", "register the server before using the snapshot"
    )


def _is_steered(lease: Lease, address: Address, servers: Mapping[str, str]) -> bool:
    """Whether the lease is an entry of its address's table.

    The ledger lets a lease be one slice of its address and belong to a server of the site, no other. Should
    one not, no table entry can stand for it without giving its holder ports that are not in the lease.
    """
    return lease.live and lease.server in servers and lease.slice.ports == address.slice_ports
