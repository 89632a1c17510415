"""Finding a port: every port of every usable slice is found before anybody is refused, and nobody gets a port
outside of them.
"""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from tests.bpf import frames
from tests.bpf.frames import echo, refusal, tcp, udp
from tests.bpf.world import ADDRESS, ADDRESS2, DEPENDENT, FAR_NS, ME, ONRAMP, World, state

from softunicast.core.desired import AddressTable, PoolSlices, SlotOwner
from softunicast.core.pools import Timers
from softunicast.core.slices import Slice

PROTOCOLS = ("tcp", "udp", "echo")


def first_packet(protocol: str, number: int, remote: str = "203.0.113.1:443") -> bytes:
    """Of conversation `number` with `remote`, all from one client so that they compete for the same slices."""
    port = 1024 + number
    if protocol == "echo":
        return echo("10.0.0.2:0", remote, port)
    return (tcp if protocol == "tcp" else udp)(f"10.0.0.2:{port}", remote)


class Opener:
    """Opens conversations quickly: one frame, with the client's port (or identifier) written over."""

    def __init__(self, world: World, protocol: str, remote: str = "203.0.113.1:443") -> None:
        self.world = world
        self.frame = first_packet(protocol, 0, remote)
        self.at = frames.transport_at() + (4 if protocol == "echo" else 0)

    def open(self, number: int) -> tuple[str, int] | None:
        """The local end that conversation `number` got; None: refused."""
        frame = frames.changed(self.frame, self.at, struct.pack("!H", 1024 + number))
        result = self.world.run("egress_out", frame, ONRAMP)
        assert result.verdict == "redirect"
        address = frames.source_of(result.frame)
        if address == "10.0.0.1":  # an ICMP error
            return None
        return address, int.from_bytes(result.frame[self.at : self.at + 2], "big")

    def fill(self, count: int, first: int = 0) -> set[tuple[str, int]]:
        """Opens `count` conversations; all must succeed, each with an end of its own."""
        ends = [self.open(first + number) for number in range(count)]
        assert None not in ends
        assert len(set(ends)) == count
        return {found for found in ends if found}


def slice_ends(*slots: int, ports: int, address: str = str(ADDRESS)) -> set[tuple[str, int]]:
    return {(address, slot * ports + port) for slot in slots for port in range(ports)}


def check_full(world: World, protocol: str, number: int, remote: str = "203.0.113.1:443") -> None:
    frame = first_packet(protocol, number, remote)
    ran = world.out(frame)
    assert dict(ran.counted) == {"slice_full": 1, "icmp_sent": 1}
    assert ran.frame == refusal(frame, 3, 1 if protocol == "tcp" else 13)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("ports", [16, 64, 2048])
def test_a_slice_is_filled_to_the_last_port(world: World, protocol: str, ports: int) -> None:
    world.reset(state(ports=ports))
    assert Opener(world, protocol).fill(ports) == slice_ends(1, ports=ports)
    for late in range(3):
        check_full(world, protocol, ports + late)
    known = world.out(first_packet(protocol, 0))  # those that have a port keep it
    assert dict(known.counted) == {"out": 1}
    assert len(world.claims()) == len(world.flows()) == ports


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_port_serves_every_destination(world: World, protocol: str) -> None:
    """Full towards one destination is empty towards the next; for other protocols, too."""
    world.reset(state(ports=64))
    others = ["203.0.113.2:443"] + ["203.0.113.1:444"] * (protocol != "echo")
    for remote in ("203.0.113.1:443", *others):
        assert Opener(world, protocol, remote).fill(64) == slice_ends(1, ports=64)
        check_full(world, protocol, 64, remote)
    if protocol == "echo":  # a ping has no port: another number in that place is the same destination
        check_full(world, protocol, 65, "203.0.113.1:444")
    for other in set(PROTOCOLS) - {protocol}:
        assert Opener(world, other).fill(64) == slice_ends(1, ports=64)
    assert len(world.claims()) == 64 * (len(others) + 3)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_slice_of_the_pool_is_used(world: World, protocol: str) -> None:
    """Whichever slice the client starts with; not those without a live lease, nor those of others."""
    world.reset(state(ports=16, mine=(1, 4, 9), theirs=(2,), expired=(3,), pool=(1, 2, 3, 4, 8, 9)))
    assert Opener(world, protocol).fill(48) == slice_ends(1, 4, 9, ports=16)
    check_full(world, protocol, 48)


def test_slices_of_several_addresses(world: World) -> None:
    wanted = state(ports=16, mine=(1,))
    other = AddressTable(64, {2: SlotOwner(ME, 1, FAR_NS)})
    slices = (Slice.of(ADDRESS, 16, 16), Slice.of(ADDRESS2, 128, 64))
    world.reset(
        replace(
            wanted,
            addresses={**wanted.addresses, ADDRESS2: other},
            pools={"gb": PoolSlices(Timers(), slices, DEPENDENT)},
        )
    )
    expected = slice_ends(1, ports=16) | slice_ends(2, ports=64, address=str(ADDRESS2))
    assert Opener(world, "tcp").fill(80) == expected
    check_full(world, "tcp", 80)


def test_the_most_slices_a_pool_can_have(world: World) -> None:
    slots = tuple(range(1, 257))
    world.reset(state(ports=16, mine=slots, theirs=(), expired=()))
    assert Opener(world, "udp").fill(256 * 16) == slice_ends(*slots, ports=16)
    check_full(world, "udp", 256 * 16)


def test_a_lease_that_runs_out_while_its_slice_fills(world: World) -> None:
    """No new flow in it from then on; those it has are the guard's matter."""
    world.reset(state(ports=16, mine=(1, 4)))
    opener = Opener(world, "tcp")
    before = opener.fill(5)
    world.datapath.apply(state(ports=16, mine=(1,), expired=(3, 4), pool=(1, 4)))
    in_first = len(before & slice_ends(1, ports=16))
    assert opener.fill(16 - in_first, 5) == slice_ends(1, ports=16) - before
    check_full(world, "tcp", 21)
    world.datapath.apply(state(ports=16, mine=(1, 4)))  # renewed
    in_other = len(before & slice_ends(4, ports=16))
    assert opener.fill(16 - in_other, 100) == slice_ends(4, ports=16) - before


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_one_free_port_is_found(world: World, protocol: str) -> None:
    """Wherever it is, and at the first attempt."""
    world.reset(state(ports=64))
    opener = Opener(world, protocol)
    opener.fill(64)
    for attempt, key in enumerate(list(world.claims())[::7]):
        world.datapath.map("claims").delete(key.pack())
        world.forget_exhausted()
        port = int.from_bytes(key.local_port.to_bytes(2, "little"), "big")
        assert opener.open(1000 + attempt) == (str(ADDRESS), port)
        assert opener.open(2000 + attempt) is None


def test_the_smallest_port_and_the_largest(world: World) -> None:
    """The last slice ends at 65535: no port number wraps round."""
    world.reset(state(ports=2048, mine=(31,), theirs=(), expired=()))
    ends = Opener(world, "udp").fill(2048)
    assert (min(ends)[1], max(ends)[1]) == (63488, 65535)


def test_a_slice_of_half_the_ports(world: World) -> None:
    world.reset(state(ports=32768, mine=(1,), theirs=(), expired=()))
    ends = Opener(world, "udp").fill(3000)
    assert all(32768 <= port <= 65535 for _, port in ends)


def test_nobody_is_refused_while_a_neighbour_conversation_is_only_refreshed(world: World) -> None:
    """Traffic of known flows claims nothing: a full slice stays exactly full."""
    world.reset(state(ports=16))
    opener = Opener(world, "udp")
    ends = opener.fill(16)
    world.change_flows(refresh_ns=0)
    assert opener.fill(16) == ends
    assert len(world.claims()) == 16
