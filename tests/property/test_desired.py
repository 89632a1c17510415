"""The kernel state against a naive model that asks, port by port: which lease is this in, and may it send?

Ports are sampled at every border of a slice, so that an entry in the wrong slot or of the wrong width shows.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from softunicast.core.desired import KernelState, SlotOwner, desired
from softunicast.core.leases import Lease, LeaseState
from softunicast.core.pools import Pool
from softunicast.core.records import Address, Server, Snapshot
from softunicast.core.slices import Slice, slices_of

SITES = {"server1": "lab", "server2": "lab", "server3": "far"}
SERVERS = tuple(
    Server(name, site, IPv4Address("192.0.2.0") + n, f"02:00:00:00:00:{n:02}")
    for n, (name, site) in enumerate(SITES.items(), 1)
)
HOSTS = tuple(IPv4Address("198.51.100.8") + n for n in range(3))
TAGS = ({"product": "demo"}, {"country": "gb"}, {"product": "demo", "country": "gb"})
POOLS = tuple(Pool(f"pool{n}", tags) for n, tags in enumerate(TAGS))
PORTS = sorted({port for edge in range(0, 65537, 4096) for port in (edge - 1, edge) if 0 <= port < 65536})


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """A ledger as it may be: leases are units of their address, and no two of them overlap."""
    addresses, leases = [], []
    for host in HOSTS[: draw(st.integers(0, 3))]:
        site = draw(st.sampled_from(("lab", "lab", "far")))
        slice_ports = draw(st.sampled_from((32768, 16384, 8192)))
        addresses.append(Address(host, site, draw(st.sampled_from(TAGS)), slice_ports))
        here = [name for name, where in SITES.items() if where == site]
        for unit in slices_of(host, slice_ports)[1:]:
            if draw(st.booleans()):
                state = draw(st.sampled_from(LeaseState))
                until = 9.0 if state is LeaseState.QUARANTINED else None
                leases.append(
                    Lease(unit, draw(st.sampled_from(here)), draw(st.integers(1, 9)), state, 5.0, until)
                )
    return Snapshot(1, (), tuple(addresses), SERVERS, tuple(draw(st.permutations(leases))))


units = [unit for host in HOSTS for ports in (32768, 16384, 8192) for unit in slices_of(host, ports)]
deadlines = st.one_of(
    st.just({unit: 1000 + n for n, unit in enumerate(units)}),
    st.dictionaries(st.sampled_from(units), st.integers(1, 1 << 62)),
)
usable = st.one_of(st.just(frozenset(units)), st.frozensets(st.sampled_from(units)))
names = st.sampled_from(("server1", "server2", "server3"))


def live_lease(snapshot: Snapshot, host: IPv4Address, port: int) -> Lease | None:
    found = [one for one in snapshot.leases if one.live and one.slice.contains(Slice.of(host, port, 1))]
    assert len(found) <= 1
    return found[0] if found else None


def looked_up(state: KernelState, host: IPv4Address, port: int) -> SlotOwner | None:
    """What the data path does: address, then port shifted by the slice's size."""
    table = state.addresses[host]
    return table.owners.get(port >> (table.slice_ports.bit_length() - 1))


@given(snapshots(), names, deadlines, usable)
def test_every_port_has_the_owner_that_its_lease_names(
    snapshot: Snapshot, me: str, until: dict[Slice, int], settled: frozenset[Slice]
) -> None:
    state = desired(snapshot, me, POOLS, {}, until, settled)
    assert set(state.addresses) == {one.address for one in snapshot.addresses if one.site == SITES[me]}
    assert set(state.servers) == {name for name, site in SITES.items() if site == SITES[me]}
    for host in state.addresses:
        for port in PORTS:
            lease = live_lease(snapshot, host, port)
            if lease is None:
                assert looked_up(state, host, port) is None
            else:
                deadline_ns = until.get(lease.slice, 0) if lease.server == me else 0
                assert looked_up(state, host, port) == SlotOwner(lease.server, lease.epoch, deadline_ns)
                assert lease.server in state.servers


@given(snapshots(), names, deadlines, usable)
def test_a_pool_opens_from_exactly_the_slices_that_it_may(
    snapshot: Snapshot, me: str, until: dict[Slice, int], settled: frozenset[Slice]
) -> None:
    state = desired(snapshot, me, POOLS, {}, until, settled)
    assert set(state.pools) == {pool.name for pool in POOLS}
    for pool in POOLS:
        matching = {one.address for one in snapshot.addresses if pool.tags.items() <= one.tags.items()}
        assert list(state.pools[pool.name].slices) == sorted(
            lease.slice
            for lease in snapshot.leases
            if (lease.server, lease.state) == (me, LeaseState.HELD)
            and lease.slice.address in matching
            and lease.slice in until
            and lease.slice in settled
        )


@given(snapshots(), deadlines, deadlines, usable)
def test_no_two_servers_open_from_one_slice_whatever_they_believe(
    snapshot: Snapshot, until1: dict[Slice, int], until2: dict[Slice, int], settled: frozenset[Slice]
) -> None:
    one = desired(snapshot, "server1", POOLS, {}, until1, settled)
    other = desired(snapshot, "server2", POOLS, {}, until2, settled)
    for mine in (unit for pool in one.pools.values() for unit in pool.slices):
        assert not any(mine.overlaps(unit) for pool in other.pools.values() for unit in pool.slices)
    for host, table in one.addresses.items():
        for slot, owner in table.owners.items():
            there = other.addresses[host].owners[slot]
            assert (owner.server, owner.epoch) == (there.server, there.epoch)
            assert not (owner.deadline_ns and there.deadline_ns)


@given(snapshots(), names, deadlines, usable)
def test_the_order_of_the_snapshot_does_not_matter(
    snapshot: Snapshot, me: str, until: dict[Slice, int], settled: frozenset[Slice]
) -> None:
    backwards = Snapshot(
        snapshot.version, (), snapshot.addresses[::-1], snapshot.servers[::-1], snapshot.leases[::-1]
    )
    assert desired(snapshot, me, POOLS, {}, until, settled) == desired(
        backwards, me, POOLS, {}, until, settled
    )
