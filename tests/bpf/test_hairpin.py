"""Two clients of shared addresses talk to each other by their outside ends (RFC 4787 REQ-9, RFC 5382 REQ-8): on
one server, and over the wire between two.

A packet for another client leaves like any other, with its sender's outside address and port. It then arrives at
the owner of the slice that it is for; when that is this server, by the uplink's ingress and not by the wire.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    NEIGHBOUR_MAC,
    ONRAMP2_MAC,
    REMOTE,
    TO_CLIENT,
    UPLINK_MAC,
    Macs,
    end,
    error,
    local_end,
    quoted,
    refusal,
    tcp,
    udp,
)
from tests.bpf.test_mapping import MAPPING, OPEN, behaving
from tests.bpf.world import ONRAMP, ONRAMP2, World, slot_changed

from softunicast.core.desired import SlotOwner
from softunicast.core.pools import Behaviour

FAMILIES = (4, 6)

OTHER = "10.0.0.9:50000"
OTHER_MAC = "02:00:00:00:0d:09"
FROM_OTHER: Macs = (OTHER_MAC, ONRAMP2_MAC)
TO_OTHER: Macs = (ONRAMP2_MAC, OTHER_MAC)
TO_SELF: Macs = (UPLINK_MAC, UPLINK_MAC)
TO_NEIGHBOUR: Macs = (UPLINK_MAC, NEIGHBOUR_MAC)
FROM_NEIGHBOUR: Macs = (NEIGHBOUR_MAC, UPLINK_MAC)
THERE = "198.51.100.10:4097"  # of a client of the neighbour
PACKET = {"tcp": tcp, "udp": udp}


def packet(protocol: str, source: str, destination: str, ttl: int = 64, macs: Macs = FROM_CLIENT) -> bytes:
    return PACKET[protocol](source, destination, ttl=ttl, macs=macs)


def outside(world: World, protocol: str, client: str, onramp: str, macs: Macs, remote: str = REMOTE) -> str:
    """Where the client is seen."""
    return local_end(world.out(packet(protocol, client, remote, macs=macs), onramp).frame)


def other_outside(world: World, protocol: str, remote: str = REMOTE) -> str:
    return outside(world, protocol, OTHER, ONRAMP2, FROM_OTHER, remote)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_on_one_server(world: World, protocol: str) -> None:
    world.reset(behaving(OPEN))
    other = other_outside(world, protocol)
    ran = world.out(packet(protocol, CLIENT, other))
    assert dict(ran.counted) == {"out": 1, "new_flow": 1}
    mine = local_end(ran.frame)
    assert ran.frame == packet(protocol, mine, other, 63, TO_SELF)
    arrived = world.back(ran.frame)
    assert arrived.frame == packet(protocol, mine, OTHER, 62, TO_OTHER)
    # And back: the same ends, the other way.
    if protocol == "tcp":
        answer = tcp(OTHER, mine, "SA", macs=FROM_OTHER)
        given = tcp(other, CLIENT, "SA", ttl=62, macs=TO_CLIENT)
    else:
        answer, given = udp(OTHER, mine, macs=FROM_OTHER), udp(other, CLIENT, ttl=62, macs=TO_CLIENT)
    back = world.out(answer, ONRAMP2)
    assert back.outcome == "out"
    assert local_end(back.frame) == other
    assert world.back(back.frame).frame == given


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_only_whom_the_other_has_sent_to(world: World, protocol: str) -> None:
    """Filtering is for hairpinned packets what it is for all others: both have to send, then both are heard."""
    world.reset(behaving(MAPPING))
    other, mine = other_outside(world, protocol), outside(world, protocol, CLIENT, ONRAMP, FROM_CLIENT)
    ran = world.out(packet(protocol, CLIENT, other))
    assert local_end(ran.frame) == mine
    assert world.back(ran.frame).reason == "filtered"
    assert other_outside(world, protocol, mine) == other
    assert world.back(world.out(packet(protocol, CLIENT, other)).frame).outcome == "in"


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_from_one_server_to_another(world: World, protocol: str) -> None:
    """Straight to its neighbour's MAC address, past the router; the guard sees its own slice leave."""
    ran = world.out(packet(protocol, CLIENT, THERE))
    assert dict(ran.counted) == {"out": 1, "new_flow": 1}
    mine = local_end(ran.frame)
    assert ran.frame == packet(protocol, mine, THERE, 63, TO_NEIGHBOUR)
    assert world.guard(ran.frame).verdict == "next"
    flags = {"flags": "SA"} if protocol == "tcp" else {}
    answer = PACKET[protocol](THERE, mine, macs=FROM_NEIGHBOUR, **flags)
    assert world.director(answer).outcome == "here"
    assert world.back(answer).frame == PACKET[protocol](THERE, CLIENT, ttl=63, macs=TO_CLIENT, **flags)


def test_a_slice_that_moves_under_a_conversation(world: World) -> None:
    """Noticed as soon as any other change of the route is."""
    mine = local_end(world.out(udp(CLIENT, THERE)).frame)
    taken = slot_changed(world.datapath.state, 2, SlotOwner("server1", 2, 1 << 62))
    for owner, macs in ((taken, TO_SELF), (slot_changed(taken, 2, SlotOwner("server2", 3, 0)), TO_NEIGHBOUR)):
        world.datapath.apply(owner)
        world.change_flows(hop_ns=0)
        for _ in range(2):
            assert world.out(udp(CLIENT, THERE)).frame == udp(mine, THERE, ttl=63, macs=macs)
        (flow,) = world.flows().values()
        assert flow.hairpin == (macs == TO_SELF)
    world.datapath.apply(slot_changed(world.datapath.state, 2, None))
    world.change_flows(hop_ns=0)
    assert world.out(udp(CLIENT, THERE)).reason == "no_route"


def test_a_neighbour_that_is_not_known(world: World) -> None:
    world.datapath.apply(
        replace(world.datapath.state, addresses=slot_changed(world.datapath.state, 2, None).addresses)
    )
    ran = world.out(udp(CLIENT, THERE))
    assert (ran.reason, ran.frame) == ("no_route", refusal(udp(CLIENT, THERE), 3, 0))


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_hop_limits(world: World, protocol: str) -> None:
    """One hop out and one in, as if the packet had been outside."""
    world.reset(behaving(OPEN))
    other = other_outside(world, protocol)
    ran = world.out(packet(protocol, CLIENT, other, ttl=1))
    assert (ran.reason, ran.frame) == ("hop_limit", refusal(packet(protocol, CLIENT, other, ttl=1), 11, 0))
    ran = world.out(packet(protocol, CLIENT, other, ttl=2))
    assert world.back(ran.frame).reason == "hop_limit"


def test_errors_come_back_to_who_caused_them(world: World) -> None:
    """RFC 5508 REQ-7: the other client refuses; outside, its error has the shared address at both ends."""
    world.reset(behaving(OPEN))
    other = other_outside(world, "udp")
    mine = outside(world, "udp", CLIENT, ONRAMP, FROM_CLIENT, other)
    other_outside(world, "udp", mine)
    given = quoted(udp(mine, OTHER, ttl=62))
    ran = world.out(error(OTHER, mine, given, macs=FROM_OTHER), ONRAMP2)
    assert ran.frame == error(other, mine, quoted(udp(mine, other, ttl=62)), ttl=63, macs=TO_SELF)
    ran = world.back(ran.frame)
    assert ran.frame == error(other, CLIENT, quoted(udp(CLIENT, other, ttl=62)), ttl=62, macs=TO_CLIENT)


def test_a_client_that_talks_to_itself(world: World) -> None:
    """By its own outside end, from another port."""
    world.reset(behaving(OPEN))
    own = outside(world, "udp", CLIENT, ONRAMP, FROM_CLIENT)
    second = "10.0.0.2:40001"
    ran = world.out(udp(second, own))
    assert world.back(ran.frame).frame == udp(local_end(ran.frame), CLIENT, ttl=62, macs=TO_CLIENT)
    assert end(own)[1] != end(local_end(ran.frame))[1]


def test_dependent_mapping_has_ports_for_it_too(world: World) -> None:
    """The sender's port is claimed towards the other's outside end like towards any remote."""
    world.reset(behaving(Behaviour(frozenset(), frozenset()), 16))
    for number in range(16):
        assert world.out(tcp(f"10.0.0.2:{41000 + number}", "198.51.100.10:20")).outcome == "out"
    assert world.out(tcp("10.0.0.2:42000", "198.51.100.10:20")).reason == "slice_full"
    assert world.out(tcp("10.0.0.2:42000", "198.51.100.10:21")).outcome == "out"
