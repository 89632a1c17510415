"""Fragments that lie, whose first one never comes, that come too late or too many: each is counted by name, and
nobody else notices.
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.packet import Packet, Raw
from tests.bpf import frames
from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, TO_WIRE, changed, local_end, tcp, udp, with_ip
from tests.bpf.pieces import content_at, cut, id_of, joined
from tests.bpf.test_fragments import whole
from tests.bpf.world import LIMITS, World, make_world

FAMILIES = (4, 6)
HERE = "198.51.100.10:2049"
CONTENT = Raw(b"x" * 32)

LYING: dict[str, tuple[Packet, dict[str, object]]] = {
    "udp header cut": (Raw(struct.pack("!HH", 2049, 443)), {"flags": "MF", "proto": 17}),
    "tcp header cut": (Raw(bytes(TCP(sport=2049, dport=443))[:16]), {"flags": "MF", "proto": 6}),
    "tcp options cut": (
        Raw(bytes(TCP(sport=2049, dport=443, dataofs=15) / (b"x" * 12))[:24]),
        {"flags": "MF", "proto": 6},
    ),
    "icmp header cut": (Raw(b"\x08\0\0\0"), {"flags": "MF", "proto": 1}),
    "empty first": (Raw(b""), {"flags": "MF", "proto": 17}),
    "empty later": (Raw(b""), {"frag": 5, "proto": 17}),
    "not of eights": (UDP(sport=2049, dport=443) / Raw(b"x" * 33), {"flags": "MF"}),
    "later, not of eights": (Raw(b"x" * 33), {"frag": 5, "flags": "MF", "proto": 17}),
    "over the tcp ports' neighbours": (CONTENT, {"frag": 1, "proto": 6}),
    "over the tcp checksum": (CONTENT, {"frag": 2, "proto": 6}),
    "beyond the largest packet": (CONTENT, {"frag": 8191, "proto": 17}),
    "an error in fragments": (ICMP(type=3) / Raw(b"x" * 32), {"flags": "MF", "proto": 1}),
}


@pytest.mark.parametrize("how", LYING)
def test_lying(world: World, how: str) -> None:
    content, fields = LYING[how]
    ran = world.out(frames.packet(content=content, **fields))
    assert (ran.verdict, ran.reason) == ("drop", "fragment")
    ran = world.director(frames.packet(REMOTE, HERE, content, FROM_WIRE, **fields))
    assert (ran.verdict, ran.reason) == ("drop", "fragment")
    ran = world.guard(frames.packet(HERE, REMOTE, content, TO_WIRE, **fields))
    assert (ran.verdict, ran.reason) == ("drop", "guard_fragment")
    arriving = frames.packet(REMOTE, "192.0.2.1:1", content, FROM_WIRE, **fields)
    leaving = frames.packet("192.0.2.1:1", REMOTE, content, TO_WIRE, **fields)
    for other, verdict in (
        (world.director(arriving), "pass"),
        (world.back(arriving), "next"),
        (world.guard(leaving), "next"),
    ):
        assert (other.verdict, other.counted) == (verdict, {})
    assert not world.claims()
    assert not list(world.datapath.map("datagrams").items())


@pytest.mark.parametrize("protocol", [0, 4, 41, 47, 50, 132])
@pytest.mark.parametrize("fields", [{"flags": "MF"}, {"frag": 5}])
def test_protocols_without_ports(world: World, protocol: int, fields: dict[str, object]) -> None:
    assert world.out(frames.packet(content=CONTENT, proto=protocol, **fields)).reason == "protocol"
    assert (
        world.director(frames.packet(REMOTE, HERE, CONTENT, FROM_WIRE, proto=protocol, **fields)).reason
        == "protocol"
    )
    assert (
        world.guard(frames.packet(HERE, REMOTE, CONTENT, TO_WIRE, proto=protocol, **fields)).reason
        == "guard_protocol"
    )


def test_overlapping(world: World) -> None:
    """Which of two to believe is the receiver's to say; ports cannot be overlapped, so all of them stay with their
    conversation."""
    first, second, third = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    again = with_ip(second, frag=1)
    left = [world.out(piece).frame for piece in (first, again, second, third)]
    assert len({(id_of(frame), frames.source_of(frame)) for frame in left}) == 1


def test_udp_length_beyond_the_datagram(world: World) -> None:
    """What a whole packet would be refused for shows only where it is put together."""
    first, *_ = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    assert world.out(changed(first, content_at() + 4, b"\xff\xff")).outcome == "out"
    assert world.out(changed(first, content_at() + 4, b"\0\7")).reason == "fragment"


def age(world: World, *tables: str) -> None:
    """Makes what is remembered of fragments 30 seconds older."""
    for name in tables:
        table = world.datapath.map(name)
        at = {"datagrams": 0, "held": 8}[name]
        for key, value in list(table.items()):
            (was,) = struct.unpack_from("<Q", value, at)
            if was:
                table.set(key, value[:at] + struct.pack("<Q", max(was - 31 * 10**9, 1)) + value[at + 8 :])


def test_the_first_one_is_forgotten(world: World) -> None:
    first, second, third = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    assert world.out(first).outcome == "out"
    assert world.out(second).outcome == "out"
    age(world, "datagrams")
    assert dict(world.out(third).counted) == {"held": 1}
    assert dict(world.out(first).counted) == {"released": 1, "out": 2}


def test_the_first_one_never_comes(world: World) -> None:
    for piece in cut(whole("udp", REMOTE, HERE, FROM_WIRE))[1:]:
        assert dict(world.back(piece).counted) == {"held": 1}
    assert swept(world) == 0
    age(world, "held")
    assert swept(world) == 2
    assert swept(world) == 0
    last = next(drop.last for drop in world.datapath.drops() if drop.reason.name == "FRAGMENT_LOST")
    assert last
    assert (last.source, last.destination, last.protocol) == ("203.0.113.1:0", "198.51.100.10:0", "udp")


def swept(world: World) -> int:
    before = world.counters()["fragment_lost"]
    world.datapath.sweep()
    return world.counters()["fragment_lost"] - before


def test_the_first_one_comes_too_late(world: World) -> None:
    first, second, third = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    world.out(second)
    age(world, "held", "datagrams")
    assert dict(world.out(first).counted) == {"fragment_lost": 1, "out": 1, "new_flow": 1}
    assert world.out(third).outcome == "out"


def test_too_long_to_wait(world: World) -> None:
    """Only test runs are limited to 1,514 bytes: the place of a frame is measured against the map's."""
    table = world.datapath.map("held")
    assert table.value_bytes - 40 - 8 >= 1514


def test_a_flood_hurts_only_fragments_that_come_early(world: World, tmp_path: Path) -> None:
    """Of first ones, that are remembered, and of later ones, that wait: far more than there is room for. Everything
    else goes on; fragments that come in order do, too; and each one that was given up is counted."""
    held, datagrams = world.datapath.map("held"), world.datapath.map("datagrams")
    conversation = local_end(world.out(udp()).frame)
    victim = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
    before = Counter(world.counters())
    rounds = 3 * held.max_entries
    waiting = sum(1 for _, value in held.items() if value[:4] != b"\0\0\0\0")
    later = cut(whole("udp", "10.0.0.66:1", REMOTE, frames.FROM_CLIENT))[1]
    first = cut(whole("udp", "203.0.113.66:1", HERE, FROM_WIRE))[0]
    for number in range(rounds):
        world.run("egress_out", with_ip(later, id=number), "cl")
        world.run("egress_in", with_ip(first, id=number), "upl")
        if number % 64 == 0:
            assert world.out(udp()).outcome == "out"
            assert world.out(tcp(source=f"10.0.0.3:{1024 + number}")).outcome == "out"
            assert world.back(udp(REMOTE, conversation, macs=FROM_WIRE)).outcome == "in"
            ran = [world.out(with_ip(piece, id=number)) for piece in victim]
            assert frames.checksums_right(joined([one.frame for one in ran])) == (True, True)
    grown = Counter(world.counters())
    grown.subtract(before)
    assert grown["held"] == rounds
    now = sum(1 for _, value in held.items() if value[:4] != b"\0\0\0\0")
    assert now == held.max_entries
    assert grown["held"] - grown["released"] - grown["fragment_lost"] == now - waiting
    assert len(list(datagrams.items())) <= datagrams.max_entries


def test_more_datagrams_than_can_be_remembered(tmp_path: Path) -> None:
    """The oldest make room: one that has just begun is never among them."""
    with make_world(tmp_path, replace(LIMITS, fragments_max=128)) as world:
        first, later, _ = cut(whole("udp", CLIENT, REMOTE, frames.FROM_CLIENT))
        for number in range(1, 1000):
            assert world.run("egress_out", with_ip(first, id=number), "cl").verdict == "redirect"
            assert world.run("egress_out", with_ip(later, id=number), "cl").verdict == "redirect"
        assert len(list(world.datapath.map("datagrams").items())) <= 128
