"""Pools with whole addresses for one server, and pools and clients of one family or the other."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    IPv6,
)
from tests.bpf import families, frames
from tests.bpf.frames import (
    CLIENT,
    FROM_WIRE,
    REMOTE,
    echo,
    tcp,
    udp,
)
from tests.bpf.world import DEPENDENT, ME, ONRAMP, World, state

from softunicast.core.desired import AddressTable, KernelState, PoolSlices, SlotOwner
from softunicast.core.inventory import parse_inventory
from softunicast.core.pools import Timers
from softunicast.core.slices import Slice
from softunicast.kernel import sysctl

FAMILIES = (6,)


def whole_address() -> KernelState:
    """Without the tables of `state`, as a server has it that holds an address alone."""
    address = IPv6Address("2001:db8:5::7")
    return replace(
        state(),
        blocks=frozenset({Slice.parse("2001:db8:5::/64")}),
        addresses={address: AddressTable(65536, {0: SlotOwner(ME, 1, 1 << 62)})},
        pools={"gb": PoolSlices(Timers(), (Slice.of(address),), DEPENDENT, families=frozenset({6}))},
    )


@pytest.fixture
def whole(world: World) -> World:
    real = world.datapath.real
    real.apply(whole_address())
    assert real.read() == whole_address()
    return world


def test_an_address_of_one_server(whole: World) -> None:
    """Any port above the system's, replies to any of them."""
    seen = set()
    for number in range(600):
        ran = whole.out(udp(f"10.0.0.2:{1024 + number}", REMOTE))
        assert ran.outcome == "out"
        assert ran.frame[22:38] == IPv6Address("2001:db8:5::7").packed
        seen.add(int.from_bytes(ran.frame[54:56], "big"))
    assert len(seen) == 600
    assert min(seen) >= 1024
    assert max(seen) > 40000
    for port in (1, 1024, 65535):
        header = IPv6(src="2001:db8::1", dst="2001:db8:5::7") / UDP(sport=53, dport=port)
        frame = bytes(frames.ethernet(FROM_WIRE) / header)
        assert whole.director(frame).outcome == "here"


def test_some_addresses_of_a_whole_48(world: World) -> None:
    """What is announced beside them is dropped by name."""
    text = '[[blocks]]\nprefix = "2001:db8:5::/48"\n[[addresses]]\nprefix = "2001:db8:5::/48"\n'
    inventory = parse_inventory(f'{text}count = 8\nsite = "s"\nslice_ports = 65536\n', "x")
    owner = {0: SlotOwner(ME, 1, 1 << 62)}
    addresses = [one.address for one in inventory.addresses]
    world.datapath.real.apply(
        replace(
            whole_address(),
            blocks=frozenset(block.prefix for block in inventory.blocks),
            addresses={address: AddressTable(65536, owner) for address in addresses},
            pools={
                "gb": PoolSlices(
                    Timers(),
                    tuple(Slice.of(one) for one in addresses),
                    DEPENDENT,
                    families=frozenset({6}),
                )
            },
        )
    )
    expected = {"2001:db8:5::": "no_owner", "2001:db8:5:ffff::1": "no_owner", "2001:db8:6::1": None}
    expected |= {"2001:db8:5::1": "here", "2001:db8:5::8": "here", "2001:db8:5::9": "no_owner"}
    for address, counted in expected.items():
        header = IPv6(src="2001:db8::1", dst=address) / UDP(sport=53, dport=2000)
        ran = world.director(bytes(frames.ethernet(FROM_WIRE) / header))
        assert (ran.reason or ran.outcome) == counted, address


def test_a_pool_without_ipv6_refuses_by_name(world: World) -> None:
    """Every packet but those for the server itself; a ping hears it, too."""
    with families.family(4):
        world.reset(state())
    for frame in (tcp(), udp(), echo(), tcp(flags="A")):
        ran = world.out(frame)
        assert dict(ran.counted) == {"family": 1, "icmp_sent": 1}
        assert ran.frame == frames.refusal(frame, 3, 13)
    assert dict(world.out(udp(CLIENT, "10.0.0.1:53")).counted) == {"to_host": 1}


def test_a_pool_without_ipv6_where_the_onramp_does_not_forward(world: World) -> None:
    """As the agent leaves it then: the reason is the pool still."""
    with families.family(4):
        world.reset(state())
    setting = sysctl.ipv6_conf(ONRAMP, "forwarding")
    sysctl.write(setting, 0)
    try:
        assert dict(world.out(udp()).counted) == {"family": 1, "icmp_sent": 1}
        assert dict(world.out(udp(CLIENT, "10.0.0.1:53")).counted) == {"to_host": 1}
    finally:
        sysctl.write(setting, 1)


def test_a_pool_without_ipv4_refuses_by_name(whole: World) -> None:
    with families.family(4):
        ran = whole.out(udp())
        assert dict(ran.counted) == {"family": 1, "icmp_sent": 1}
        assert ran.frame == frames.refusal(udp(), 3, 13)


def test_both_families_at_once(world: World) -> None:
    real = world.datapath.real
    both, more = state(), whole_address()
    pool = replace(
        both.pools["gb"],
        slices=(*both.pools["gb"].slices, *more.pools["gb"].slices),
        families=frozenset({4, 6}),
    )
    both = replace(
        both,
        blocks=both.blocks | more.blocks,
        addresses={**both.addresses, **more.addresses},
        pools={"gb": pool},
    )
    real.apply(both)
    assert real.read() == both
    assert world.out(udp()).outcome == "out"
    with families.family(4):
        assert world.out(udp()).outcome == "out"
    total, flows = real.flows(10)
    assert total == 2
    assert {flow.remote for flow in flows} == {"203.0.113.1:443", "[2001:db8::cb00:7101]:443"}
    counts = real.count_flows(pool.slices)
    assert list(counts.values()) == [1, 1]
    assert real.sweep() == (0, 2)
