"""Placement by example: which free slice comes next."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from softunicast.core.errors import UnknownNameError
from softunicast.core.leases import Lease, LeaseState
from softunicast.core.placement import choose
from softunicast.core.pools import Pool
from softunicast.core.records import Address, Snapshot
from softunicast.core.slices import Slice

POOL = Pool("demo", {"product": "demo"})
NOW = 1000.0


def address(text: str, site: str = "lab", slice_ports: int = 2048) -> Address:
    return Address(ip_address(text), site, {"product": "demo"}, slice_ports)


def lease(
    text: str, server: str = "server2", state: LeaseState = LeaseState.HELD, until: float = 2000.0
) -> Lease:
    quarantined_until = until if state is LeaseState.QUARANTINED else None
    return Lease(Slice.parse(text), server, 1, state, until, quarantined_until)


def chosen(addresses: list[Address], leases: list[Lease], wanted: int = 1) -> list[str]:
    snapshot = Snapshot(1, (), tuple(addresses), (), tuple(leases))
    return [str(item) for item in choose(snapshot, POOL, "server1", "lab", wanted, NOW)]


def test_the_first_slice_given_out_is_the_second_of_the_address() -> None:
    assert chosen([address("198.51.100.10")], []) == ["198.51.100.10:2048-4095"]


def test_whole_addresses_and_slices_of_the_other_family() -> None:
    addresses = (address("198.51.100.10"), address("2001:db8::1", slice_ports=65536), address("2001:db8::2"))
    snapshot = Snapshot(1, (), addresses, (), (lease("198.51.100.10:2048-4095"),))

    def family(version: int, wanted: int = 9) -> list[str]:
        found = choose(snapshot, POOL, "server1", "lab", wanted, NOW, version)
        return [str(item) for item in found]

    assert family(6, 3) == ["2001:db8::1/128", "[2001:db8::2]:2048-4095", "[2001:db8::2]:4096-6143"]
    assert all(text.startswith("198") for text in family(4))
    taken = replace(snapshot, leases=(lease("2001:db8::1"),))
    assert [str(item) for item in choose(taken, POOL, "server1", "lab", 1, NOW, 6)] == [
        "[2001:db8::2]:2048-4095"
    ]


def test_the_next_server_gets_the_next_slice() -> None:
    leases = [lease("198.51.100.10:2048-4095")]
    assert chosen([address("198.51.100.10")], leases) == ["198.51.100.10:4096-6143"]


@pytest.mark.parametrize(
    ("state", "until", "free"),
    [
        (LeaseState.HELD, 2000.0, False),
        (LeaseState.HELD, 999.0, False),  # expired, but its quarantine is still to come
        (LeaseState.DRAINING, 2000.0, False),
        (LeaseState.QUARANTINED, 1000.5, False),
        (LeaseState.QUARANTINED, 1000.0, True),
        (LeaseState.FREE, 2000.0, True),
    ],
)
def test_what_counts_as_free(state: LeaseState, until: float, free: bool) -> None:
    leases = [lease("198.51.100.10:2048-4095", state=state, until=until)]
    expected = "198.51.100.10:2048-4095" if free else "198.51.100.10:4096-6143"
    assert chosen([address("198.51.100.10")], leases) == [expected]


def test_slices_are_spread_over_the_addresses() -> None:
    addresses = [address("198.51.100.11"), address("198.51.100.10")]
    assert chosen(addresses, [], wanted=3) == [
        "198.51.100.10:2048-4095",
        "198.51.100.11:2048-4095",
        "198.51.100.10:4096-6143",
    ]


def test_an_address_of_which_this_server_has_less_comes_first() -> None:
    addresses = [address("198.51.100.10"), address("198.51.100.11")]
    leases = [
        lease("198.51.100.10:2048-4095", server="server1"),
        lease("198.51.100.11:2048-4095"),
        lease("198.51.100.11:4096-6143"),
    ]
    assert chosen(addresses, leases) == ["198.51.100.11:6144-8191"]


def test_otherwise_the_address_with_fewer_taken_comes_first() -> None:
    addresses = [address("198.51.100.10"), address("198.51.100.11")]
    assert chosen(addresses, [lease("198.51.100.10:2048-4095")]) == ["198.51.100.11:2048-4095"]


def test_a_full_address_gives_nothing() -> None:
    small = address("198.51.100.10", slice_ports=16384)
    assert chosen([small], [], wanted=9) == [
        "198.51.100.10:16384-32767",
        "198.51.100.10:32768-49151",
        "198.51.100.10:49152-65535",
    ]


def test_a_quarantined_slice_of_an_older_size_covers_what_it_touches() -> None:
    leases = [lease("198.51.100.10:2048-4095", state=LeaseState.QUARANTINED)]
    assert chosen([address("198.51.100.10", slice_ports=1024)], leases, wanted=2) == [
        "198.51.100.10:1024-2047",
        "198.51.100.10:4096-5119",
    ]
    assert chosen([address("198.51.100.10", slice_ports=16384)], [lease("198.51.100.10:16384-16399")]) == [
        "198.51.100.10:32768-49151"
    ]


def test_nothing_wanted_nothing_chosen() -> None:
    assert chosen([address("198.51.100.10")], [], wanted=0) == []
    assert chosen([address("198.51.100.10")], [], wanted=-1) == []


def test_another_site_has_nothing_for_us() -> None:
    assert chosen([address("198.51.100.10", site="far")], []) == []


def test_an_unknown_tag_is_refused() -> None:
    snapshot = Snapshot(1, (), (address("198.51.100.10"),), (), ())
    with pytest.raises(UnknownNameError, match="product=other"):
        choose(snapshot, Pool("p", {"product": "other"}), "server1", "lab", 1, NOW)
