"""Client packets that leave: translated to a port of the slice, every byte as it should be on the wire.

The pool has this server's one slice, 198.51.100.10:2048-4095. Frames expected are built by scapy from what
they should say, so lengths and all checksums are compared with computed ones.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from itertools import pairwise

import pytest
from scapy.layers.inet import IPOption_NOP
from tests.bpf import frames
from tests.bpf.frames import (
    CLIENT,
    CLIENT_MAC,
    FROM_CLIENT,
    ONRAMP2_MAC,
    ONRAMP_MAC,
    REMOTE,
    TO_WIRE,
    echo,
    local_end,
    tcp,
    udp,
)
from tests.bpf.world import ONRAMP, ONRAMP2, World, state

from softunicast.kernel.words import address_word, be16

FAMILIES = (4, 6)

FIRST, LAST = 2048, 4095
ANYTHING = bytes(range(256)) * 6


def both_ways(kind: str, source: str, ttl: int, macs: frames.Macs) -> bytes:
    """A packet that may begin a conversation, as the client sends it or as the wire sees it."""
    port = frames.end(source)[1]
    sizes = {"empty": 0, "odd": 1, "odder": 333, "largest": 1472}
    if kind in sizes:
        return udp(source, REMOTE, ANYTHING[: sizes[kind]], ttl, macs)
    return {
        "syn": lambda: tcp(source, REMOTE, "S", b"", ttl, macs),
        "syn with options": lambda: tcp(
            source, REMOTE, "S", b"", ttl, macs, [("MSS", 1460), ("SAckOK", ""), ("WScale", 7)], tos=0x2E
        ),
        "syn with ecn": lambda: tcp(source, REMOTE, "SEC", b"", ttl, macs),
        "syn with data": lambda: tcp(source, REMOTE, "S", b"fast open", ttl, macs),
        "udp": lambda: udp(source, REMOTE, b"question", ttl, macs),
        "udp without checksum": lambda: udp(source, REMOTE, b"question", ttl, macs, checksum=0),
        "ip options": lambda: udp(source, REMOTE, b"question", ttl, macs, options=[IPOption_NOP()] * 40),
        "tcp and ip options": lambda: tcp(
            source, REMOTE, "S", b"", ttl, macs, [("NOP", None)] * 40, ip_options=[IPOption_NOP()] * 40
        ),
        "do not fragment": lambda: udp(source, REMOTE, b"question", ttl, macs, flags="DF"),
        "echo": lambda: echo(source, REMOTE, port, False, b"ping", ttl, macs),
        "echo, odd": lambda: echo(source, REMOTE, port, False, b"x" * 57, ttl, macs),
        "echo, nothing in it": lambda: echo(source, REMOTE, port, False, b"", ttl, macs),
    }[kind]()


KINDS = (
    *("syn", "syn with options", "syn with ecn", "syn with data", "tcp and ip options"),
    *("udp", "udp without checksum", "ip options", "do not fragment", "empty", "odd", "odder", "largest"),
    *("echo", "echo, odd", "echo, nothing in it"),
)


@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_first_and_next_packet(world: World, kind: str, ttl: int) -> None:
    ran = world.out(both_ways(kind, CLIENT, ttl, FROM_CLIENT))
    assert (ran.verdict, dict(ran.counted)) == ("redirect", {"out": 1, "new_flow": 1})
    local = local_end(ran.frame)
    address, port = frames.end(local)
    assert address == "198.51.100.10"
    assert FIRST <= port <= LAST
    assert ran.frame == both_ways(kind, local, ttl - 1, TO_WIRE)
    again = world.out(both_ways(kind, CLIENT, ttl, FROM_CLIENT))
    assert (again.verdict, dict(again.counted)) == ("redirect", {"out": 1})
    assert again.frame == ran.frame
    assert world.guard(ran.frame).verdict == "next"


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "RA", "SA", "F", "", "UPA"])
def test_tcp_of_a_known_flow(world: World, flags: str) -> None:
    local = local_end(world.out(tcp()).frame)
    ran = world.out(tcp(flags=flags, payload=b"hello"))
    assert dict(ran.counted) == {"out": 1}
    assert ran.frame == tcp(local, REMOTE, flags, b"hello", 63, TO_WIRE)


@pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "RA", "SA", "F", "", "SR", "SRA"])
def test_tcp_in_the_middle_of_nothing(world: World, flags: str) -> None:
    frame = tcp(flags=flags)
    ran = world.out(frame)
    assert (ran.verdict, ran.reason, ran.frame) == ("drop", "no_flow", frame)
    assert not world.claims()
    assert not world.flows()


def test_syn_with_other_flags_begins_a_conversation(world: World) -> None:
    for port, flags in enumerate(("S", "SP", "SU", "SF", "SEC"), start=40000):
        assert world.out(tcp(f"10.0.0.2:{port}", flags=flags)).outcome == "out", flags


def test_an_echo_reply_begins_nothing(world: World) -> None:
    ran = world.out(echo(reply=True))
    assert (ran.verdict, ran.reason) == ("drop", "no_flow")
    assert not world.claims()


def test_echo_is_known_by_its_identifier_alone(world: World) -> None:
    """One ping has one identifier for all its packets; two pings to one host are two flows."""
    first = local_end(world.out(echo(payload=b"1")).frame)
    assert local_end(world.out(echo(payload=b"2")).frame) == first
    other = world.out(echo(identifier=40001))
    assert dict(other.counted) == {"out": 1, "new_flow": 1}
    assert local_end(other.frame) != first


def test_every_conversation_has_a_port_towards_its_destination(world: World) -> None:
    """Clients, ports, protocols and destinations that differ in one thing are different flows."""
    tuples = [
        *(("tcp", client, REMOTE) for client in (CLIENT, "10.0.0.2:40001", "10.0.0.3:40000")),
        *(("tcp", CLIENT, remote) for remote in ("203.0.113.1:444", "203.0.113.2:443")),
        ("udp", CLIENT, REMOTE),
    ]
    seen = set()
    for protocol, client, remote in tuples:
        ran = world.out((tcp if protocol == "tcp" else udp)(client, remote))
        assert "new_flow" in ran.counted
        seen.add((protocol, local_end(ran.frame), remote))
    assert len(seen) == len(tuples)
    assert len(world.claims()) == len(world.flows()) == len(tuples)


def test_two_onramps_with_the_same_client(world: World) -> None:
    """The same five-tuple from two networks is two conversations."""
    first, second = world.out(tcp(), ONRAMP), world.out(tcp(macs=(CLIENT_MAC, ONRAMP2_MAC)), ONRAMP2)
    assert "new_flow" in second.counted
    ends = local_end(first.frame), local_end(second.frame)
    assert ends[0] != ends[1]
    for onramp, mac, local in zip((ONRAMP, ONRAMP2), (ONRAMP_MAC, ONRAMP2_MAC), ends, strict=True):
        assert local_end(world.out(tcp(flags="A", macs=(CLIENT_MAC, mac)), onramp).frame) == local
    for local, macs in (
        (ends[0], (ONRAMP_MAC, CLIENT_MAC)),
        (ends[1], (ONRAMP2_MAC, CLIENT_MAC)),
    ):
        reply = world.back(tcp(REMOTE, local, "SA", macs=frames.FROM_WIRE))
        assert reply.frame == tcp(REMOTE, CLIENT, "SA", ttl=63, macs=macs)


def test_what_the_tables_say_afterwards(world: World) -> None:
    ran = world.out(tcp())
    ((claim_key, claim),) = world.claims().items()
    ((flow_key, flow),) = world.flows().items()
    address, port = frames.end(local_end(ran.frame))
    assert (claim_key.local_port, flow.local_port) == (be16(port), be16(port))
    assert claim_key.protocol == flow_key.protocol == 6
    assert claim.flow == flow_key.pack()
    assert flow_key.onramp == world.index[ONRAMP]
    assert claim.client_mac.hex(":") == CLIENT_MAC
    assert claim.onramp_mac.hex(":") == ONRAMP_MAC
    assert flow.local == address_word(IPv4Address(address))
    total, (shown,) = world.datapath.flows(10)
    assert total == 1
    assert (shown.onramp, shown.protocol, shown.client, shown.remote) == (ONRAMP, "tcp", CLIENT, REMOTE)
    assert (shown.local, shown.state) == (f"{address}:{port}", "opening")


def test_a_client_keeps_its_address_over_destinations(world: World) -> None:
    """Sticky: while there is room, everything one client sends leaves from one slice."""

    world.reset(state(ports=64, mine=(1, 2, 4, 5), theirs=(), expired=()))
    for client in range(2, 12):
        ports = {
            frames.end(local_end(world.out(udp(f"10.0.0.{client}:5000", f"203.0.113.{remote}:53")).frame))[1]
            for remote in range(1, 30)
        }
        assert len({port // 64 for port in ports}) == 1


def test_ports_are_hard_to_guess(world: World) -> None:
    """RFC 6056: many flows, no order in their ports."""
    ports = [frames.end(local_end(world.out(udp(f"10.0.0.2:{5000 + n}")).frame))[1] for n in range(200)]
    steps = [later - earlier for earlier, later in pairwise(ports)]
    assert len(set(steps)) > 150
    assert max(ports) - min(ports) > 1500
