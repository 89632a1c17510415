"""Placement against a naive model: every slice of every address, each compared with every lease."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from softunicast.core.leases import Lease, LeaseState
from softunicast.core.placement import choose
from softunicast.core.pools import Pool
from softunicast.core.records import Address, Snapshot
from softunicast.core.slices import Slice, slices_of

NOW = 100.0
ME = "server1"
SITE = "lab"
POOL = Pool("demo", {"product": "demo"})
HOSTS = tuple(IPv4Address("198.51.100.8") + n for n in range(4))

addresses = st.lists(
    st.builds(
        Address,
        st.sampled_from(HOSTS),
        st.sampled_from((SITE, SITE, "far")),
        st.sampled_from(({"product": "demo"}, {"product": "demo", "country": "gb"}, {"product": "other"})),
        st.sampled_from((32768, 16384, 8192, 4096)),
    ),
    max_size=4,
    unique_by=lambda item: item.address,
)
times = st.sampled_from((NOW - 1, NOW, NOW + 1))
# Leases of any size and state, overlapping or not: more than a ledger would ever let happen.
leases = st.builds(
    lambda host, ports, slot, server, state, expires_at, until: Lease(
        Slice.of(host, slot % (65536 // ports) * ports, ports),
        server,
        1,
        state,
        expires_at,
        until if state is LeaseState.QUARANTINED else None,
    ),
    st.sampled_from(HOSTS),
    st.sampled_from((65536, 16384, 8192, 4096, 2048)),
    st.integers(0, 31),
    st.sampled_from((ME, "server2")),
    st.sampled_from(LeaseState),
    times,
    times,
)


def snapshot_of(those: list[Address], held: list[Lease]) -> Snapshot:
    # One address more that always carries the tag, elsewhere: the tag is never unknown.
    far = Address(IPv4Address("203.0.113.1"), "far", {"product": "demo"})
    return Snapshot(1, (), (*those, far), (), tuple(held))


def blocks(lease: Lease) -> bool:
    if lease.state is LeaseState.QUARANTINED:
        assert lease.quarantined_until is not None
        return lease.quarantined_until > NOW
    return lease.state in (LeaseState.HELD, LeaseState.DRAINING)


def free_of(address: Address, held: list[Lease]) -> list[Slice]:
    units = slices_of(address.address, address.slice_ports)[1:]
    return [unit for unit in units if not any(blocks(one) and one.slice.overlaps(unit) for one in held)]


@given(addresses, st.lists(leases, max_size=25), st.integers(0, 70))
def test_only_free_slices_of_the_pool_and_as_many_as_there_are(
    those: list[Address], held: list[Lease], wanted: int
) -> None:
    chosen = choose(snapshot_of(those, held), POOL, ME, SITE, wanted, NOW)
    free = [
        unit
        for address in those
        if address.site == SITE and address.tags["product"] == "demo"
        for unit in free_of(address, held)
    ]
    assert set(chosen) <= set(free)
    assert len(set(chosen)) == len(chosen) == min(wanted, len(free))
    assert all(unit.port_first > 0 for unit in chosen)
    for one in held:
        assert not blocks(one) or not any(one.slice.overlaps(unit) for unit in chosen)


@given(addresses, st.lists(leases, max_size=25), st.integers(0, 20))
def test_each_address_gives_its_lowest_and_they_take_turns(
    those: list[Address], held: list[Lease], wanted: int
) -> None:
    chosen = choose(snapshot_of(those, held), POOL, ME, SITE, wanted, NOW)
    usable = [address for address in those if address.site == SITE and POOL.matches(address)]
    given_out = Counter(unit.address for unit in chosen)
    own = Counter(one.slice.address for one in held if one.server == ME and one.live)
    for address in usable:
        mine = [unit for unit in chosen if unit.address == address.address]
        free = free_of(address, held)
        assert mine == free[: len(mine)]
        if len(mine) < len(free):  # it could have given more, so nobody may be more than one turn ahead
            most = own[address.address] + given_out[address.address] + 1
            for other in usable:
                if given_out[other.address]:
                    assert own[other.address] + given_out[other.address] <= most


@given(addresses, st.lists(leases, max_size=25), st.integers(0, 20))
def test_asking_for_fewer_gives_the_same_ones_first(
    those: list[Address], held: list[Lease], wanted: int
) -> None:
    snapshot = snapshot_of(those, held)
    everything = choose(snapshot, POOL, ME, SITE, 1000, NOW)
    assert choose(snapshot, POOL, ME, SITE, wanted, NOW) == everything[:wanted]
