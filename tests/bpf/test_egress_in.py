"""Replies that the director let pass: a flow's are translated back and handed to its client, all others go up to
the kernel stack untouched.
"""

from __future__ import annotations

import struct
from functools import partial

import pytest
from scapy.layers.inet import ICMP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw
from tests.bpf import families, frames
from tests.bpf.frames import (
    CLIENT,
    FROM_WIRE,
    REMOTE,
    TO_CLIENT,
    arp,
    changed,
    echo,
    end,
    local_end,
    tagged,
    tcp,
    udp,
)
from tests.bpf.world import UPLINK, World

from softunicast.kernel import abi

FAMILIES = (4, 6)

ANYTHING = bytes(range(256)) * 6


def open_flow(world: World, kind: str) -> str:
    """Sends a client's first packet; returns the local end."""
    first = {"tcp": tcp(), "udp": udp(), "echo": echo()}[kind]
    return local_end(world.out(first).frame)


def reply(kind: str, to: str, ttl: int, macs: frames.Macs) -> bytes:
    port = end(to)[1]
    return {
        "tcp": lambda: tcp(REMOTE, to, "SA", b"", ttl, macs),
        "tcp options": lambda: tcp(REMOTE, to, "SA", b"", ttl, macs, [("MSS", 1460), ("WScale", 7)]),
        "tcp data": lambda: tcp(REMOTE, to, "PA", ANYTHING[:1460], ttl, macs),
        "tcp reset": lambda: tcp(REMOTE, to, "RA", b"", ttl, macs),
        "tcp and ip options": lambda: tcp(
            REMOTE, to, "PA", b"x", ttl, macs, [("NOP", None)] * 40, [IPOption_NOP()] * 40
        ),
        "udp": lambda: udp(REMOTE, to, b"answer", ttl, macs),
        "udp odd": lambda: udp(REMOTE, to, b"x", ttl, macs),
        "udp empty": lambda: udp(REMOTE, to, b"", ttl, macs),
        "udp largest": lambda: udp(REMOTE, to, ANYTHING[:1472], ttl, macs),
        "udp without checksum": lambda: udp(REMOTE, to, b"answer", ttl, macs, checksum=0),
        "echo": lambda: echo(REMOTE, to, port, True, b"ping", ttl, macs),
        "echo odd": lambda: echo(REMOTE, to, port, True, b"x" * 57, ttl, macs),
        "echo ip options": lambda: echo(REMOTE, to, port, True, b"", ttl, macs, options=[IPOption_NOP()] * 8),
    }[kind]()


KINDS = (
    *("tcp", "tcp options", "tcp data", "tcp reset", "tcp and ip options"),
    *("udp", "udp odd", "udp empty", "udp largest", "udp without checksum"),
    *("echo", "echo odd", "echo ip options"),
)


@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_reaches_its_client(world: World, kind: str, ttl: int) -> None:
    local = open_flow(world, kind.split()[0])
    frame = reply(kind, local, ttl, FROM_WIRE)
    assert dict(world.director(frame).counted) == {"here": 1}
    ran = world.back(frame)
    assert (ran.verdict, dict(ran.counted)) == ("redirect", {"in": 1})
    assert ran.frame == reply(kind, CLIENT, ttl - 1, TO_CLIENT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ttl", [0, 1])
def test_hop_limit(world: World, kind: str, ttl: int) -> None:
    local = open_flow(world, kind.split()[0])
    before = world.claims()
    ran = world.back(reply(kind, local, ttl, FROM_WIRE))
    assert (ran.verdict, ran.reason) == ("drop", "hop_limit")
    assert world.claims() == before  # what does not arrive changes nothing


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_flow_has_goes_up(world: World, kind: str) -> None:
    """Each time one field differs from a reply of the flow: another port, remote, or protocol."""
    local = open_flow(world, kind.split()[0])
    address, port = end(local)
    segment = partial(tcp, flags="A")  # a SYN would be unsolicited
    other_protocol = udp if kind.startswith("tcp") else segment
    strangers = [
        reply(kind, f"{address}:{port ^ 1}", 64, FROM_WIRE),
        reply(kind, f"198.51.100.11:{port}", 64, FROM_WIRE),
        other_protocol(REMOTE, local, macs=FROM_WIRE),
    ]
    if kind.startswith("echo"):
        strangers.append(echo("203.0.113.2:0", local, port, True, macs=FROM_WIRE))
    else:
        same_protocol = segment if kind.startswith("tcp") else udp
        strangers += [
            same_protocol("203.0.113.1:444", local, macs=FROM_WIRE),
            same_protocol("203.0.113.2:443", local, macs=FROM_WIRE),
        ]
    for frame in strangers:
        ran = world.back(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expires_ns", [0, 1, (1 << 64) - 1])
def test_an_expired_or_busy_claim_is_nobodys(world: World, kind: str, expires_ns: int) -> None:
    local = open_flow(world, kind.split()[0])
    frame = reply(kind, local, 64, FROM_WIRE)
    world.change_claims(expires_ns=expires_ns)
    before = world.claims()
    ran = world.back(frame)
    assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)
    assert world.claims() == before


def test_a_flow_that_only_the_claim_remembers(world: World) -> None:
    """Replies need the claim alone: the flow entry is a cache of the client's side."""
    local = open_flow(world, "udp")
    for key in world.flows():
        world.datapath.map("flows").delete(key.pack())
    assert world.back(udp(REMOTE, local, macs=FROM_WIRE)).outcome == "in"


def test_every_protocol_on_one_port(world: World) -> None:
    """TCP, UDP and echo have ports of their own: three flows on the same number do not mix."""
    world.out(tcp())
    ((key, claim),) = world.claims().items()
    for protocol, client in ((17, "10.0.0.3"), (1, "10.0.0.4")):
        flow = abi.FlowKey.unpack(claim.flow)
        word = int.from_bytes(bytes(int(part) for part in client.split(".")), "little")
        theirs = claim._replace(flow=flow._replace(client=word, protocol=protocol).pack())
        their_key = key._replace(protocol=protocol, remote_port=0 if protocol == 1 else key.remote_port)
        world.datapath.map("claims").set(their_key.pack(), theirs.pack())
    local = f"198.51.100.10:{int.from_bytes(key.local_port.to_bytes(2, 'little'), 'big')}"
    assert world.back(reply("tcp", local, 9, FROM_WIRE)).frame == reply("tcp", CLIENT, 8, TO_CLIENT)
    assert world.back(reply("udp", local, 9, FROM_WIRE)).frame == reply("udp", "10.0.0.3:40000", 8, TO_CLIENT)
    assert world.back(reply("echo", local, 9, FROM_WIRE)).frame == reply(
        "echo", "10.0.0.4:40000", 8, TO_CLIENT
    )


def test_what_is_not_readable_goes_up(world: World) -> None:
    """The director has dropped such packets when they were for us."""
    if families.chosen == 6:
        families.ipv4_only("its header")
    local = open_flow(world, "udp")
    whole = udp(REMOTE, local, macs=FROM_WIRE)
    for frame in (
        changed(whole, 14, b"\x4f"),
        changed(whole, 16, b"\xff\xff"),
        changed(whole, 38, struct.pack("!H", 7)),
        frames.packet(REMOTE, local, Raw(b"x" * 31), FROM_WIRE, flags="MF", proto=17),
        frames.packet(REMOTE, local, ICMP(type=3, code=3) / Raw(b"x" * 28), FROM_WIRE),
        frames.gre(REMOTE, local, FROM_WIRE),
        tagged(whole),
        arp(FROM_WIRE),
        bytes(frames.ethernet(FROM_WIRE) / IPv6() / UDP(sport=443, dport=end(local)[1])),
    ):
        ran = world.back(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)


@pytest.mark.parametrize("kind", ["tcp data", "udp"])
def test_a_wrong_checksum_stays_wrong(world: World, kind: str) -> None:
    """Patched, not computed anew: damage on the way is seen by the client, not repaired."""
    local = open_flow(world, kind.split()[0])
    frame = reply(kind, local, 64, FROM_WIRE)
    damaged = frame[:-1] + bytes([frame[-1] ^ 1])
    assert frames.checksums_right(world.back(frame).frame) == (True, True)
    assert frames.checksums_right(world.back(damaged).frame) == (True, False)
    if families.chosen == 6:
        return
    header = changed(frame, 24, bytes([frame[24] ^ 1]))
    assert frames.checksums_right(world.back(header).frame) == (False, True)


def test_all_checksums_over_many_ports(world: World) -> None:
    """Every value of the identifier, so also those where the patched sum carries or becomes 0 or 0xffff."""
    local = open_flow(world, "udp")
    for value in range(0, 65536, 97):
        whole = udp(REMOTE, local, value.to_bytes(2, "big"), macs=FROM_WIRE)
        result = world.run("egress_in", whole, UPLINK)
        assert frames.checksums_right(result.frame) == (True, True)
        assert result.frame[-4:-2] != b"\0\0"


def test_the_last_dropped_packet_is_named(world: World) -> None:
    local = open_flow(world, "tcp")
    world.back(reply("tcp", local, 1, FROM_WIRE))
    last = next(drop.last for drop in world.datapath.drops() if drop.reason is abi.Reason.HOP_LIMIT)
    assert last
    assert (last.hook, last.interface, last.protocol) == ("egress in", UPLINK, "tcp")
    assert (last.source, last.destination) == (REMOTE, local)


@pytest.mark.parametrize("kind", ["tcp data", "udp", "echo"])
def test_a_client_that_sends_from_another_mac(world: World, kind: str) -> None:
    """Its router failed over, or its container was made anew: replies follow with the very next packet."""
    protocol = kind.split()[0]
    local = open_flow(world, protocol)
    if protocol == "tcp":
        world.back(tcp(REMOTE, local, "SA", macs=FROM_WIRE))
        world.out(tcp(flags="A"))
    moved, onramp = "02:00:00:00:0c:77", "02:00:00:00:0c:78"
    macs = (moved, onramp)
    ran = world.out(
        {"tcp": tcp(flags="A", macs=macs), "udp": udp(macs=macs), "echo": echo(macs=macs)}[protocol]
    )
    assert (dict(ran.counted), local_end(ran.frame)) == ({"out": 1}, local)
    back = world.back(reply(kind, local, 64, FROM_WIRE))
    assert back.frame == reply(kind, CLIENT, 63, (onramp, moved))
    assert len(world.claims()) == len(world.flows()) == 1
