"""The kernel state by example: two servers, one address, and what each lease turns into."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest

from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner, desired
from softunicast.core.errors import UnknownNameError
from softunicast.core.leases import Lease, LeaseState
from softunicast.core.pools import ICMP_ERRORS_PER_S, Behaviour, Pool, Timers
from softunicast.core.records import Address, Block, Server, Snapshot
from softunicast.core.slices import Slice

BLOCK = Slice.parse("198.51.100.0/24")
SHARED = IPv4Address("198.51.100.10")
MINE = Slice.parse("198.51.100.10:2048-4095")
THEIRS = Slice.parse("198.51.100.10:4096-6143")
TAGS = {"country": "gb", "product": "demo"}
POOL = Pool("demo", {"product": "demo"})

PAIR = Snapshot(
    version=1,
    blocks=(Block(BLOCK),),
    addresses=(Address(SHARED, "lab", TAGS),),
    servers=(
        Server("server1", "lab", IPv4Address("192.0.2.1"), "02:00:00:00:00:01"),
        Server("server2", "lab", IPv4Address("192.0.2.2"), "02:00:00:00:00:02"),
        Server("server9", "far", IPv4Address("192.0.2.9"), "02:00:00:00:00:09"),
    ),
    leases=(
        Lease(MINE, "server1", 7, LeaseState.HELD, 300.0),
        Lease(THEIRS, "server2", 8, LeaseState.HELD, 300.0),
    ),
)


def on_server1(
    snapshot: Snapshot = PAIR,
    deadlines: Mapping[Slice, int] = {MINE: 299_000_000_000},
    usable: Collection[Slice] = (MINE,),
    pools: Collection[Pool] = (POOL,),
) -> KernelState:
    return desired(snapshot, "server1", pools, {"clients": "demo"}, deadlines, usable)


def with_lease(lease: Lease) -> Snapshot:
    return replace(PAIR, leases=(lease,))


def test_the_whole_state_of_the_pair() -> None:
    assert on_server1() == KernelState(
        blocks=frozenset({BLOCK}),
        addresses={
            SHARED: AddressTable(
                2048, {1: SlotOwner("server1", 7, 299_000_000_000), 2: SlotOwner("server2", 8, 0)}
            )
        },
        servers={"server1": "02:00:00:00:00:01", "server2": "02:00:00:00:00:02"},
        pools={"demo": PoolSlices(Timers(), (MINE,))},
        onramps={"clients": "demo"},
    )


def test_the_neighbour_sees_the_same_table_but_its_own_deadline() -> None:
    state = desired(PAIR, "server2", [POOL], {}, {THEIRS: 5}, {THEIRS})
    assert state.addresses[SHARED].owners == {1: SlotOwner("server1", 7, 0), 2: SlotOwner("server2", 8, 5)}
    assert state.pools["demo"].slices == (THEIRS,)


def test_a_draining_slice_is_steered_but_opens_nothing() -> None:
    state = on_server1(with_lease(Lease(MINE, "server1", 7, LeaseState.DRAINING, 300.0)))
    assert state.addresses[SHARED].owners == {1: SlotOwner("server1", 7, 299_000_000_000)}
    assert state.pools["demo"].slices == ()


@pytest.mark.parametrize("state", [LeaseState.QUARANTINED, LeaseState.FREE])
def test_a_slice_without_a_live_lease_has_no_owner(state: LeaseState) -> None:
    result = on_server1(with_lease(Lease(MINE, "server1", 7, state, 300.0)))
    assert result.addresses == {SHARED: AddressTable(2048, {})}
    assert result.pools["demo"].slices == ()


def test_a_lease_that_this_server_has_not_confirmed_is_past_its_deadline() -> None:
    state = on_server1(deadlines={})
    assert state.addresses[SHARED].owners[1] == SlotOwner("server1", 7, 0)
    assert state.pools["demo"].slices == ()


def test_a_deadline_never_lends_life_to_another_servers_slice() -> None:
    state = on_server1(deadlines={THEIRS: 5}, usable={THEIRS})
    assert state.addresses[SHARED].owners[2] == SlotOwner("server2", 8, 0)
    assert state.pools["demo"].slices == ()


def test_a_slice_that_has_not_settled_opens_nothing() -> None:
    state = on_server1(usable=())
    assert state.addresses[SHARED].owners[1].deadline_ns == 299_000_000_000
    assert state.pools["demo"].slices == ()


def test_a_slice_serves_every_pool_that_matches_and_no_other() -> None:
    pools = [POOL, Pool("gb", {"country": "gb"}, timers=Timers(udp_s=30)), Pool("de", {"country": "de"})]
    state = on_server1(pools=pools)
    assert {name: pool.slices for name, pool in state.pools.items()} == {
        "demo": (MINE,),
        "gb": (MINE,),
        "de": (),
    }
    assert state.pools["gb"].timers.udp_s == 30


def test_a_pool_keeps_how_it_maps() -> None:
    every = frozenset({"tcp", "udp", "icmp"})
    pools = [POOL, Pool("open", {"country": "gb"}, behaviour=Behaviour(every, every))]
    found = on_server1(pools=pools).pools
    assert found["demo"].behaviour == Behaviour(frozenset({"udp", "icmp"}), frozenset())
    assert found["open"].behaviour == Behaviour(every, every)


def test_a_pool_keeps_how_many_errors_it_sends() -> None:
    pools = [POOL, Pool("mute", {"country": "gb"}, icmp_errors_per_s=0)]
    found = on_server1(pools=pools).pools
    assert (found["demo"].icmp_errors_per_s, found["mute"].icmp_errors_per_s) == (ICMP_ERRORS_PER_S, 0)


def test_slices_of_a_pool_are_in_order() -> None:
    other = Slice.parse("198.51.100.10:63488-65535")
    leases = [Lease(slice_, "server1", 1, LeaseState.HELD, 300.0) for slice_ in (other, MINE, THEIRS)]
    deadlines = dict.fromkeys((MINE, THEIRS, other), 5)
    state = on_server1(replace(PAIR, leases=tuple(leases)), deadlines, tuple(deadlines))
    assert state.pools["demo"].slices == (MINE, THEIRS, other)


def test_other_sites_are_left_out() -> None:
    far, far6 = ip_address("198.51.100.20"), ip_address("2001:db8::1")
    snapshot = replace(
        PAIR,
        blocks=(Block(BLOCK), Block(Slice.parse("2001:db8::/64"))),
        addresses=(Address(far, "far", TAGS), Address(far6, "far", TAGS)),
        leases=tuple(
            Lease(Slice.of(address, 2048, 2048), "server1", 1, LeaseState.HELD, 300.0)
            for address in (far, far6)
        ),
    )
    everything = {lease.slice: 5 for lease in snapshot.leases}
    state = on_server1(snapshot, everything, tuple(everything))
    assert state.blocks == {BLOCK, Slice.parse("2001:db8::/64")}
    assert state.addresses == {}
    assert state.pools["demo"].slices == ()
    assert state.pools["demo"].families == {4}


def test_both_families_in_one_pool() -> None:
    whole = ip_address("2001:db8::1")
    lease = Lease(Slice.of(whole), "server1", 9, LeaseState.HELD, 300.0)
    snapshot = replace(
        PAIR,
        blocks=(*PAIR.blocks, Block(Slice.parse("2001:db8::/64"))),
        addresses=(*PAIR.addresses, Address(whole, "lab", TAGS, 65536)),
        leases=(*PAIR.leases, lease),
    )
    everything = {known.slice: 5 for known in snapshot.leases}
    state = on_server1(snapshot, everything, tuple(everything))
    assert state.addresses[whole].owners == {0: SlotOwner("server1", 9, 5)}
    assert state.pools["demo"].families == {4, 6}
    assert state.pools["demo"].slices[-1] == lease.slice


def test_a_lease_of_a_server_at_another_site_cannot_be_steered() -> None:
    state = on_server1(with_lease(Lease(THEIRS, "server9", 8, LeaseState.HELD, 300.0)))
    assert state.addresses[SHARED].owners == {}


@pytest.mark.parametrize("text", ["198.51.100.10:2048-3071", "198.51.100.10:0-4095", "198.51.100.10"])
def test_a_lease_that_is_not_one_slice_of_its_address_owns_nothing(text: str) -> None:
    part = Slice.parse(text)
    state = on_server1(with_lease(Lease(part, "server1", 7, LeaseState.HELD, 300.0)), {part: 5}, {part})
    assert state.addresses[SHARED].owners == {}
    assert state.pools["demo"].slices == ()


def test_a_server_that_the_ledger_does_not_know_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="server3"):
        desired(PAIR, "server3", [POOL], {}, {}, ())


def test_a_server_outside_of_the_uplinks_prefixes_is_reached_by_a_tunnel() -> None:
    """With its own end, which the others need to know this server by; other sites' servers are not reached at all."""

    def tunnels(*segment: str) -> Mapping[str, IPv4Address]:
        state = desired(PAIR, "server1", [POOL], {}, {}, (), [IPv4Network(prefix) for prefix in segment])
        assert state.servers.keys() == {"server1", "server2"}
        return state.tunnels

    ends = {"server1": IPv4Address("192.0.2.1"), "server2": IPv4Address("192.0.2.2")}
    assert tunnels("192.0.2.0/24") == {}
    assert tunnels("192.0.2.1/32", "192.0.2.2/31") == {}
    assert tunnels("192.0.2.1/32") == ends
    assert tunnels() == ends
    assert on_server1().tunnels == {}
