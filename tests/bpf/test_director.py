"""Packets that arrive on the uplink: who gets them, what is changed, what is counted.

198.51.100.10 is cut into slices of 2048 ports: 2048-4095 is this server's, 4096-6143 its neighbour's,
6144-8191 this server's but past its deadline, the rest nobody's.

Every test is run with both attachments: in XDP and at tc the director gives the same answer.
"""

from __future__ import annotations

import functools
import struct

import pytest
from scapy.layers.inet import IP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from tests.bpf import families, frames
from tests.bpf.frames import (
    FROM_WIRE,
    NEIGHBOUR_MAC,
    REMOTE,
    UPLINK_MAC,
    arp,
    changed,
    echo,
    sum_words,
    tagged,
    tcp,
    udp,
)
from tests.bpf.world import UPLINK, World

from softunicast.kernel import abi
from softunicast.kernel.words import index_key

FAMILIES = (4, 6)

HERE, THERE, EXPIRED, NOBODY = (f"198.51.100.10:{port}" for port in (2049, 4097, 6145, 9000))
UNKNOWN_ADDRESS = "198.51.100.77:2049"  # in the block, in no table
STEERED = (UPLINK_MAC, NEIGHBOUR_MAC)
ICMP_NUMBER = 1
ICMP6_ERRORS = {3: 1, 11: 3, 12: 4}


@pytest.fixture(params=["director", "director_tc"])
def world(
    module_world: World, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, family: int
) -> World:
    module_world.reset()
    monkeypatch.setattr(module_world, "director", getattr(module_world, request.param))
    return module_world


def arriving(to: str, ttl: int = 64) -> dict[str, bytes]:
    """One packet of every kind the director can place."""
    return _arriving(to, ttl, families.chosen)


@functools.cache
def _arriving(to: str, ttl: int, version: int) -> dict[str, bytes]:
    identifier = frames.end(to)[1]
    if version == 4:
        longest = udp(REMOTE, to, ttl=ttl, macs=FROM_WIRE, options=[IPOption_NOP()] * 40)
    else:
        content = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(60))]) / UDP(sport=443, dport=identifier)
        longest = frames.packet(REMOTE, to, content, FROM_WIRE, ttl=ttl)
    return {
        "tcp": tcp(REMOTE, to, "SA", ttl=ttl, macs=FROM_WIRE),
        "tcp data": tcp(REMOTE, to, "PA", b"odd", ttl=ttl, macs=FROM_WIRE),
        "udp": udp(REMOTE, to, ttl=ttl, macs=FROM_WIRE),
        "udp, no checksum": udp(REMOTE, to, checksum=0, ttl=ttl, macs=FROM_WIRE),
        "echo reply": echo(REMOTE, to, identifier, reply=True, ttl=ttl, macs=FROM_WIRE),
        "echo request": echo(REMOTE, to, identifier, ttl=ttl, macs=FROM_WIRE),
        "ip options": longest,
        "tcp options": tcp(REMOTE, to, "SA", ttl=ttl, macs=FROM_WIRE, options=[("MSS", 1460), ("WScale", 7)]),
        "largest": udp(REMOTE, to, b"\xa5" * 1472, ttl=ttl, macs=FROM_WIRE),
    }


KINDS = tuple(arriving(HERE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("to", "verdict", "counted"),
    [
        (HERE, "pass", "here"),
        ("198.51.100.10:2048", "pass", "here"),
        ("198.51.100.10:4095", "pass", "here"),
        (EXPIRED, "drop", "lease_expired"),
        (NOBODY, "drop", "no_owner"),
        ("198.51.100.10:0", "drop", "no_owner"),
        ("198.51.100.10:65535", "drop", "no_owner"),
        (UNKNOWN_ADDRESS, "drop", "no_owner"),
        ("198.51.101.10:2049", "pass", None),
        ("192.0.2.1:2049", "pass", None),
    ],
)
def test_untouched_or_dropped(world: World, kind: str, to: str, verdict: str, counted: str | None) -> None:
    frame = arriving(to)[kind]
    ran = world.director(frame)
    assert (ran.verdict, dict(ran.counted)) == (verdict, {counted: 1} if counted else {})
    assert ran.frame == frame


@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbours_slice_gets_its_mac_and_one_hop_less(world: World, kind: str, ttl: int) -> None:
    ran = world.director(arriving(THERE, ttl)[kind])
    assert (ran.verdict, dict(ran.counted)) == ("tx", {"steered": 1})
    expected = Ether(arriving(THERE, ttl - 1)[kind])
    expected.src, expected.dst = STEERED
    assert ran.frame == bytes(expected)


@pytest.mark.parametrize("wanted", [0x0000, 0x00FF, 0x0100, 0xFDFF, 0xFE00, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFE])
def test_a_header_checksum_at_its_edges(world: World, wanted: int) -> None:
    """The patched checksum equals the computed one also where the sum carries round."""
    frame = udp_with_checksum(wanted)
    assert frame[24:26] == struct.pack("!H", wanted)
    after = Ether(world.director(frame).frame)
    patched = after[IP].chksum
    del after[IP].chksum
    assert patched == Ether(bytes(after))[IP].chksum


def udp_with_checksum(wanted: int) -> bytes:
    """A packet whose identification makes the checksum of its header what is wanted."""
    frame = udp(REMOTE, THERE, macs=FROM_WIRE, options=[])
    rest = sum_words(frame[14:18] + frame[20:24] + frame[26:34])
    number = (0xFFFF - wanted - rest) % 0xFFFF
    return frame[:18] + struct.pack("!H", number) + frame[20:24] + struct.pack("!H", wanted) + frame[26:]


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_hop_limit_used_up_between_servers_is_a_loop(world: World, ttl: int) -> None:
    frame = tcp(REMOTE, THERE, "A", ttl=ttl, macs=FROM_WIRE)
    ran = world.director(frame)
    assert (ran.verdict, ran.reason, ran.frame) == ("drop", "steer_loop", frame)
    assert world.director(tcp(REMOTE, HERE, "A", ttl=ttl, macs=FROM_WIRE)).outcome == "here"


def test_an_owner_without_a_server_entry(world: World) -> None:
    index = world.datapath._tables.server_index("server2")
    servers = world.datapath.map("servers")
    entry = servers.get(index_key(index))
    assert entry
    for kind in (abi.ServerKind.UNUSED, abi.ServerKind.SELF):
        servers.set(index_key(index), abi.Server.unpack(entry)._replace(kind=kind).pack())
        assert world.director(tcp(REMOTE, THERE, macs=FROM_WIRE)).reason == "no_neighbour"
    servers.set(index_key(index), entry)
    assert world.director(tcp(REMOTE, THERE, macs=FROM_WIRE)).outcome == "steered"


@pytest.mark.parametrize("to", [HERE, THERE, NOBODY, UNKNOWN_ADDRESS])
@pytest.mark.parametrize(
    ("reason", "number", "kind"),
    [
        *(("icmp_error", ICMP_NUMBER, kind) for kind in (3, 11, 12)),
        *(("protocol", ICMP_NUMBER, kind) for kind in (4, 5, 9, 10, 13, 14, 15, 17, 30, 255)),
        *(("protocol", number, ord("x")) for number in (0, 4, 41, 47, 50, 132, 136)),
    ],
)
def test_ours_without_a_port(world: World, to: str, reason: str, number: int, kind: int) -> None:
    if families.chosen == 6:
        kind = ICMP6_ERRORS.get(kind, max(kind, 100 + kind % 100))  # of informational ones, any
    content = Raw(bytes([kind]) + b"x" * 35)
    frame = frames.packet(REMOTE, to, content, FROM_WIRE, proto=number)
    ran = world.director(frame)
    assert (ran.verdict, ran.reason, ran.frame) == ("drop", reason, frame)
    other = frames.packet(REMOTE, "192.0.2.1:1", content, FROM_WIRE, proto=number)
    assert (world.director(other).verdict, world.director(other).counted) == ("pass", {})


def lying(to: str) -> dict[str, bytes]:
    whole = tcp(REMOTE, to, "SA", b"hello", macs=FROM_WIRE)
    datagram = udp(REMOTE, to, b"hello", macs=FROM_WIRE)
    return {
        "version 5": changed(whole, 14, b"\x55"),
        "ihl 4": changed(whole, 14, b"\x44"),
        "ihl beyond total length": changed(whole, 14, b"\x4f"),
        "total length below header": changed(whole, 16, struct.pack("!H", 19)),
        "total length beyond frame": changed(whole, 16, struct.pack("!H", len(whole) - 14 + 1)),
        "total length 65535": changed(whole, 16, b"\xff\xff"),
        "tcp cut by total length": changed(whole, 16, struct.pack("!H", 39)),
        "doff 4": changed(whole, 46, b"\x40"),
        "doff beyond segment": changed(whole, 46, b"\x70"),
        "doff 15": changed(whole, 46, b"\xf0"),
        "udp.len 7": changed(datagram, 38, struct.pack("!H", 7)),
        "udp.len 0": changed(datagram, 38, b"\0\0"),
        "udp.len beyond packet": changed(datagram, 38, struct.pack("!H", 14)),
        "udp cut by total length": changed(datagram, 16, struct.pack("!H", 27)),
        "icmp cut": changed(echo(REMOTE, to, 2049, macs=FROM_WIRE), 16, struct.pack("!H", 27)),
        "no transport at all": changed(whole, 16, struct.pack("!H", 20))[:34],
    }


@pytest.mark.parametrize("name", tuple(lying(HERE)))
def test_lying_headers(world: World, name: str) -> None:
    if families.chosen == 6:
        families.ipv4_only("these places; test_ipv6.py has its own")
    ran = world.director(lying(HERE)[name])
    assert (ran.verdict, ran.reason, ran.frame) == ("drop", "malformed", lying(HERE)[name])
    assert world.director(lying("192.0.2.1:2049")[name]).verdict == "pass"


@pytest.mark.parametrize("kind", ["tcp data", "udp", "echo reply", "ip options"])
def test_truncated_anywhere(world: World, kind: str) -> None:
    """A frame shorter than its headers claim: never read beyond, dropped once the address can be read."""
    frame = arriving(HERE)[kind]
    least = (
        frames.transport_at() if world.director == world.director_tc else 14
    )  # the kernel makes no socket buffer of less
    for length in range(least, len(frame)):
        ran = world.director(frame[:length])
        assert ran.reason == ("malformed" if length >= frames.transport_at() else None), length


def test_trailing_padding_is_not_the_packets_matter(world: World) -> None:
    assert world.director(tcp(REMOTE, HERE, macs=FROM_WIRE) + bytes(6)).outcome == "here"


@pytest.mark.parametrize("to", [HERE, THERE, NOBODY])
def test_other_packets_are_untouched(world: World, to: str) -> None:
    inner = IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=2049)
    for frame in (
        tagged(tcp(REMOTE, to, macs=FROM_WIRE)),
        arp(FROM_WIRE),
        bytes(frames.ethernet(FROM_WIRE) / inner),
        bytes.fromhex("020000000001020000000002") + b"\x88\xcc" + bytes(46),
    ):
        ran = world.director(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("pass", {}, frame)


def test_the_last_dropped_packet_is_named(world: World) -> None:
    world.director(tcp(REMOTE, NOBODY, macs=FROM_WIRE))
    drop = next(drop for drop in world.datapath.drops() if drop.reason is abi.Reason.NO_OWNER)
    last = drop.last
    assert last
    assert (last.hook, last.interface, last.protocol) == ("director", UPLINK, "tcp")
    assert (last.source, last.destination) == (REMOTE, NOBODY)
    assert 0 <= last.age_s < 10
