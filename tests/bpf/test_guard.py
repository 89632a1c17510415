"""Packets about to leave by the uplink: only those with a soft-unicast source are judged, by this server's
slices alone. The guard never changes a packet. Slices as in test_director.py.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw
from tests.bpf import families, frames
from tests.bpf.frames import REMOTE, TO_WIRE, arp, changed, echo, tagged, tcp, udp
from tests.bpf.world import ME, UPLINK, World, slot_changed, state

from softunicast.core.desired import SlotOwner
from softunicast.kernel import abi

FAMILIES = (4, 6)

HELD, FOREIGN, EXPIRED, NOBODY = (f"198.51.100.10:{port}" for port in (2049, 4097, 6145, 9000))
UNKNOWN_ADDRESS = "198.51.100.77:2049"
OWN_ADDRESS = "192.0.2.1:2049"
CLIENTS_ADDRESS = "10.0.0.2:2049"


def leaving(source: str) -> dict[str, bytes]:
    """One packet of every kind that has a port."""
    return _leaving(source, families.chosen)


@functools.cache
def _leaving(source: str, version: int) -> dict[str, bytes]:
    identifier = frames.end(source)[1]
    made = {
        "tcp": tcp(source, REMOTE, macs=TO_WIRE),
        "tcp reset": tcp(source, REMOTE, "R", macs=TO_WIRE),
        "tcp data": tcp(source, REMOTE, "PA", b"x" * 1000, macs=TO_WIRE),
        "udp": udp(source, REMOTE, macs=TO_WIRE),
        "udp, no checksum": udp(source, REMOTE, checksum=0, macs=TO_WIRE),
        "empty udp": udp(source, REMOTE, b"", macs=TO_WIRE),
        "echo request": echo(source, REMOTE, identifier, macs=TO_WIRE),
        "echo reply": echo(source, REMOTE, identifier, reply=True, macs=TO_WIRE),
        "to another of our addresses": udp(source, "198.51.100.99:53", macs=TO_WIRE),
    }
    if version == 4:
        made["ip options"] = udp(source, REMOTE, macs=TO_WIRE, options=[IPOption_NOP()] * 40)
    return made


KINDS = tuple(leaving(HELD))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (HELD, None),
        ("198.51.100.10:2048", None),
        ("198.51.100.10:4095", None),
        (FOREIGN, "guard_foreign"),
        (EXPIRED, "guard_expired"),
        (NOBODY, "guard_nobody"),
        ("198.51.100.10:0", "guard_nobody"),
        (UNKNOWN_ADDRESS, "guard_nobody"),
        (OWN_ADDRESS, None),
        (CLIENTS_ADDRESS, None),
        ("198.51.101.0:2049", None),
        ("198.51.99.255:2049", None),
    ],
)
def test_only_a_held_slice_leaves(world: World, kind: str, source: str, reason: str | None) -> None:
    if kind not in leaving(source):
        families.ipv4_only(kind)
    frame = leaving(source)[kind]
    ran = world.guard(frame)
    assert (ran.verdict, ran.reason, ran.outcome) == ("drop" if reason else "next", reason, None)
    assert ran.frame == frame


WITHOUT_PORT = [
    ("guard_fragment", Raw(b"x" * 32), {"frag": 5, "proto": 17}),
    *(("guard_protocol", ICMP(type=kind) / Raw(b"x" * 28), {}) for kind in (3, 5, 11, 12, 13, 17)),
    *(("guard_protocol", Raw(b"x" * 28), {"proto": number}) for number in (0, 4, 41, 47, 50, 132)),
]


@pytest.mark.parametrize("source", [HELD, FOREIGN, NOBODY, UNKNOWN_ADDRESS])
@pytest.mark.parametrize(("reason", "content", "fields"), WITHOUT_PORT)
def test_a_port_that_cannot_be_read_cannot_be_checked(
    world: World, source: str, reason: str, content: Packet, fields: dict[str, int]
) -> None:
    assert world.guard(frames.packet(source, REMOTE, content, TO_WIRE, **fields)).reason == reason
    other = world.guard(frames.packet(OWN_ADDRESS, REMOTE, content, TO_WIRE, **fields))
    assert (other.verdict, other.counted) == ("next", {})


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (14, b"\x55"),  # version
        (14, b"\x44"),  # ihl
        (14, b"\x4f"),
        (16, struct.pack("!H", 19)),  # total length
        (16, b"\xff\xff"),
        (46, b"\x40"),  # doff
        (46, b"\xf0"),
    ],
)
def test_malformed(world: World, at: int, value: bytes) -> None:
    if families.chosen == 6:
        families.ipv4_only("the offsets; see test_ipv6.py")
    assert world.guard(changed(tcp(HELD, REMOTE, macs=TO_WIRE), at, value)).reason == "malformed"
    other = world.guard(changed(tcp(OWN_ADDRESS, REMOTE, macs=TO_WIRE), at, value))
    assert (other.verdict, other.counted) == ("next", {})


def test_truncated_anywhere(world: World) -> None:
    frame = tcp(HELD, REMOTE, "PA", b"hello", macs=TO_WIRE)
    for length in range(54 if families.chosen == 6 else 34, len(frame)):
        assert world.guard(frame[:length]).reason == "malformed", length


def test_other_than_ipv4_is_untouched(world: World) -> None:
    inner = IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP(sport=1, dport=2049)
    for frame in (arp(TO_WIRE), bytes(frames.ethernet(TO_WIRE) / inner)):
        ran = world.guard(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)


def test_a_slice_that_changes_hands(world: World) -> None:
    """What counts is the table now, not when the conversation began."""
    frame = tcp(HELD, REMOTE, "A", macs=TO_WIRE)
    assert world.guard(frame).verdict == "next"
    for owner, reason in (
        (SlotOwner("server2", 2, 0), "guard_foreign"),
        (None, "guard_nobody"),
        (SlotOwner(ME, 3, 5), "guard_expired"),
    ):
        world.datapath.apply(slot_changed(world.datapath.state, 1, owner))
        assert world.guard(frame).reason == reason
    world.datapath.apply(replace(state(), blocks=frozenset(), addresses={}, pools={}, onramps={}))
    assert world.guard(frame).verdict == "next"  # not soft-unicast any more: none of our business


def test_the_last_dropped_packet_is_named(world: World) -> None:
    world.guard(udp(FOREIGN, REMOTE, macs=TO_WIRE))
    last = next(drop.last for drop in world.datapath.drops() if drop.reason is abi.Reason.GUARD_FOREIGN)
    assert last
    assert (last.hook, last.interface, last.protocol) == ("guard", UPLINK, "udp")
    assert (last.source, last.destination) == (FOREIGN, REMOTE)


@pytest.mark.parametrize("tags", [(0,), (5,), (0, 0), (5, 6)])
def test_a_tag_in_the_frame_does_not_hide_the_source(world: World, tags: tuple[int, ...]) -> None:
    """Root can write any Ethernet header; a router takes priority tag 0 for untagged."""

    def behind_tags(frame: bytes) -> bytes:
        for vlan in tags:
            frame = tagged(frame, vlan)
        return frame

    for source, reason in (
        (HELD, None),
        (FOREIGN, "guard_foreign"),
        (NOBODY, "guard_nobody"),
        (EXPIRED, "guard_expired"),
        (UNKNOWN_ADDRESS, "guard_nobody"),
        (OWN_ADDRESS, None),
    ):
        for kind, frame in leaving(source).items():
            assert world.guard(behind_tags(frame)).reason == reason, (source, kind)
    whole = behind_tags(tcp(HELD, REMOTE, macs=TO_WIRE))
    for length in range((54 if families.chosen == 6 else 34) + 4 * len(tags), len(whole)):
        assert world.guard(whole[:length]).reason == "malformed", length
    assert world.guard(behind_tags(arp(TO_WIRE))).counted == {}
