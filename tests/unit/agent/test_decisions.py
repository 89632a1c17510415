"""Decisions about leases: tables of cases, and for `wants` a comparison with what it promises."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.agent.fakes import EMPTY, INVENTORY, ME, NEIGHBOUR, OTHER, POOL, SHARED, part

from softunicast.agent.decisions import (
    addresses_here,
    adoption,
    backoff_s,
    check_identity,
    grown,
    renewal_due_ns,
    wants,
    without_new_flows,
)
from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.errors import HostError, UnknownNameError
from softunicast.core.leases import Lease, LeaseState
from softunicast.core.pools import Behaviour, Pool, Timers
from softunicast.core.records import Address, Snapshot
from softunicast.core.slices import Slice
from softunicast.kernel.abi import Reason
from softunicast.kernel.flows import Drop

HELD, DRAINING, QUARANTINED = LeaseState.HELD, LeaseState.DRAINING, LeaseState.QUARANTINED


def lease(number: int, server: str = "server1", state: LeaseState = HELD, epoch: int = 7) -> Lease:
    return Lease(part(number), server, epoch, state, 1300.0, 1400.0 if state is QUARANTINED else None)


def snapshot(*leases: Lease, servers: tuple[object, ...] = (ME, NEIGHBOUR)) -> Snapshot:
    return Snapshot(1, INVENTORY.blocks, INVENTORY.addresses, servers, leases)  # type: ignore[arg-type]


def kernel(owners: dict[int, SlotOwner], ports: int = 2048) -> KernelState:
    return replace(EMPTY, addresses={SHARED: AddressTable(ports, owners)})


# -- adoption ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "actual", "held", "orphans"),
    [
        (lease(1), kernel({1: SlotOwner("server1", 7, 55)}), {part(1): 55}, 0),
        (lease(1, state=DRAINING), kernel({1: SlotOwner("server1", 7, 55)}), {part(1): 55}, 0),
        (lease(1), kernel({1: SlotOwner("server1", 6, 55)}), {}, 1),  # an older lease of ours
        (lease(1), kernel({1: SlotOwner("server2", 7, 0)}), {}, 1),
        (lease(1), kernel({2: SlotOwner("server1", 7, 55)}), {}, 1),
        (lease(1), kernel({1: SlotOwner("server1", 7, 0)}), {}, 1),  # never confirmed, never used
        (lease(1), kernel({1: SlotOwner("server1", 7, 55)}, ports=1024), {}, 1),
        (lease(1), EMPTY, {}, 1),
        (lease(1, state=QUARANTINED), kernel({1: SlotOwner("server1", 7, 55)}), {}, 0),
        (lease(1, server="server2"), kernel({1: SlotOwner("server2", 7, 0)}), {}, 0),
    ],
)
def test_adoption(found: Lease, actual: KernelState, held: dict[object, int], orphans: int) -> None:
    result = adoption(snapshot(found), "server1", actual)
    assert {slice_: deadline_ns for slice_, (_, deadline_ns) in result.held.items()} == held
    assert len(result.orphans) == orphans


# -- identity ------------------------------------------------------------------------------------------------


def test_same_server_again() -> None:
    check_identity(snapshot(lease(1)), ME, (), 1000.0)


def test_second_server_of_the_same_name_is_refused_while_the_first_has_leases() -> None:
    second = replace(ME, address=NEIGHBOUR.address, mac="02:00:00:00:00:99")
    with pytest.raises(HostError, match=r"server1 is already .* 1 live leases; fix: .*wait 300 s"):
        check_identity(snapshot(lease(1), servers=(ME,)), second, (), 1000.0)
    check_identity(
        snapshot(lease(1), servers=(ME,)), second, (part(1),), 1000.0
    )  # its own, interface replaced
    check_identity(snapshot(lease(1), servers=(ME,)), second, (), 1300.0)  # over
    check_identity(snapshot(lease(1, state=QUARANTINED), servers=(ME,)), second, (), 1000.0)


def test_second_name_at_the_same_address_is_refused_while_the_first_has_leases() -> None:
    renamed = replace(ME, name="server9")
    with pytest.raises(HostError, match=r"192.0.2.1 is already .* as server server1"):
        check_identity(snapshot(lease(1)), renamed, (), 1000.0)
    check_identity(snapshot(lease(1, server="server2")), renamed, (), 1000.0)


# -- what pools want -----------------------------------------------------------------------------------------

FR = Pool("fr", {"country": "fr"})
ANY = Pool("any", {}, slices_max=3)


def on_other(number: int) -> Lease:
    return replace(lease(number), slice=part(number, OTHER))


def test_missing_and_surplus() -> None:
    found = wants(snapshot(), (replace(POOL, slices_max=2), FR), "lab", [lease(5), lease(2), lease(9)])
    assert found.by_pool == {"gb": 0, "fr": 1}
    assert [item.slice for item in found.surplus] == [part(9)]  # the lowest stay


def test_each_family_has_its_slices() -> None:
    both = Address(ip_address("2001:db8::1"), "lab", {"country": "gb"}, 65536)
    known = snapshot()
    known = replace(known, addresses=(*known.addresses, both))
    assert wants(known, (POOL,), "lab", []).missing == {("gb", 4): 1, ("gb", 6): 1}
    whole = Lease(Slice.of(both.address), "server1", 1, LeaseState.HELD, 300.0)
    found = wants(known, (POOL,), "lab", [whole])
    assert (found.missing, found.surplus) == ({("gb", 4): 1, ("gb", 6): 0}, ())
    assert found.by_pool == {"gb": 1}


def test_draining_counts_for_nothing() -> None:
    found = wants(snapshot(), (POOL,), "lab", [lease(2, state=DRAINING)])
    assert (found.missing, found.surplus) == ({("gb", 4): 1}, ())


def test_pools_share_slices() -> None:
    found = wants(snapshot(), (POOL, ANY), "lab", [lease(9), lease(1), on_other(1), on_other(2)])
    assert found.by_pool == {"gb": 0, "any": 0}
    # gb keeps 10:1; any keeps that one and the next two lowest.
    assert [item.slice for item in found.surplus] == [part(2, OTHER)]


def test_address_that_left_the_pool() -> None:
    found = wants(snapshot(), (POOL,), "lab", [on_other(1)])
    assert found.by_pool == {"gb": 1}
    assert found.surplus == (on_other(1),)


def test_other_site_has_nothing() -> None:
    assert wants(snapshot(), (POOL,), "elsewhere", []).by_pool == {"gb": 1}


def test_unknown_tag_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="country=us"):
        wants(snapshot(), (Pool("us", {"country": "us"}),), "lab", [])


pools = st.lists(
    st.builds(
        Pool, st.just("p"), st.sampled_from([{"country": "gb"}, {"country": "fr"}, {}]), st.integers(1, 4)
    ),
    max_size=3,
).map(lambda found: [replace(pool, name=f"p{number}") for number, pool in enumerate(found)])
leases = st.sets(st.tuples(st.integers(1, 6), st.booleans(), st.booleans())).map(
    lambda keys: {
        (number, other): replace(
            on_other(number) if other else lease(number), state=DRAINING if draining else HELD
        )
        for number, other, draining in keys
    }.values()
)


@given(pools, leases)
def test_wants_keeps_every_promise(configured: list[Pool], held: list[Lease]) -> None:
    found = wants(snapshot(), configured, "lab", held)
    alive = {item for item in held if item.state is HELD}
    kept = alive - set(found.surplus)
    for pool in configured:
        matching = [
            item
            for item in kept
            if any(pool.matches(a) and a.address == item.slice.address for a in INVENTORY.addresses)
        ]
        # No pool loses what it may have, and what is missing is what it may have and has not.
        every = [
            item
            for item in alive
            if any(pool.matches(a) and a.address == item.slice.address for a in INVENTORY.addresses)
        ]
        assert len(matching) >= min(len(every), pool.slices_max)
        assert found.by_pool[pool.name] == max(0, pool.slices_max - len(every))
    assert set(found.surplus) <= alive
    # Giving up the surplus leads to no new wish, and to no more surplus.
    again = wants(snapshot(), configured, "lab", kept)
    assert again.surplus == ()
    assert all(again.missing[name] == number for name, number in found.missing.items())


# -- times ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**18), st.floats(3, 86400), st.floats(0, 1))
def test_two_renewals_may_fail_before_the_lease_does(sent_ns: int, ttl_s: float, jitter: float) -> None:
    wait_s = (renewal_due_ns(sent_ns, ttl_s, jitter) - sent_ns) / 1e9
    assert ttl_s * 0.29 < wait_s < ttl_s * 0.38


@given(st.integers(1, 10**6), st.floats(0.3, 100), st.floats(0, 1))
def test_backoff_is_bounded(failures: int, ceiling_s: float, jitter: float) -> None:
    assert 0.1 < backoff_s(failures, ceiling_s, jitter) <= ceiling_s
    assert backoff_s(failures, ceiling_s, jitter) <= backoff_s(failures + 1, ceiling_s, jitter)


# -- kernel state --------------------------------------------------------------------------------------------


STRICT = Behaviour(frozenset(), frozenset())


def test_addresses_and_pools() -> None:
    state = KernelState(
        blocks=frozenset(),
        addresses={
            SHARED: AddressTable(2048, {1: SlotOwner("server1", 1, 9), 2: SlotOwner("server2", 2, 0)}),
            OTHER: AddressTable(2048, {1: SlotOwner("server2", 3, 0)}),
        },
        servers={},
        pools={"gb": PoolSlices(Timers(udp_s=5), (part(1),), STRICT)},
        onramps={"clients": "gb"},
    )
    assert addresses_here(state, "server1") == {SHARED}
    quiet = without_new_flows(state)
    assert quiet.pools == {"gb": PoolSlices(Timers(udp_s=5), (), STRICT)}
    assert replace(quiet, pools=state.pools) == state


def test_drops_that_grew() -> None:
    full, foreign, fresh = (
        Drop(reason, packets, None)
        for reason, packets in ((Reason.SLICE_FULL, 9), (Reason.GUARD_FOREIGN, 4), (Reason.NO_FLOW, 3))
    )
    before = {Reason.SLICE_FULL: 2, Reason.GUARD_FOREIGN: 4, Reason.NO_FLOW: 100}
    assert grown(before, [full, foreign, fresh]) == [(full, 7), (fresh, 3)]
