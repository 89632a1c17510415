"""Packets that are too big for the way on and may be cut (no DF) are cut, in order (RFC 4787 REQ-13a): whole ones and
fragments, both ways. What cannot be cut gets the error that packets with DF get.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.bpf import frames
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    FROM_WIRE,
    REMOTE,
    TO_CLIENT,
    TO_WIRE,
    end,
    local_end,
    udp,
    with_ip,
)
from tests.bpf.pieces import Wires, cut, id_of, joined, more_of, offset_of, wires
from tests.bpf.test_fragments import MINE, opened
from tests.bpf.test_too_big import MTU, mtu, sized
from tests.bpf.world import ONRAMP, UPLINK, World

PROTOCOLS = ("udp", "tcp", "icmp")
LARGEST = 1500


@pytest.fixture
def sides(world: World) -> Iterator[Wires]:
    with wires() as made:
        yield made


def in_order(fragments: list[bytes]) -> bool:
    return [offset_of(one) for one in fragments] == sorted(offset_of(one) for one in fragments)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [MTU + 1, MTU + 8, LARGEST])
def test_out(world: World, sides: Wires, protocol: str, size: int) -> None:
    opened(world, protocol)
    [port] = world.local_ports()
    with mtu(world, UPLINK):
        world.change_flows(hop_ns=0)
        left = sides.out([sized(protocol, CLIENT, REMOTE, size, FROM_CLIENT)], 2)
    assert all(len(one) <= 14 + MTU for one in left)
    assert in_order(left)
    made = joined(left)
    local = f"198.51.100.10:{port}"
    expected = sized(protocol, local, REMOTE, size, TO_WIRE)
    if protocol == "icmp":
        expected = frames.echo(local, REMOTE, port, payload=b"\xa5" * (size - 28), macs=TO_WIRE)
    assert made == with_ip(expected, id=id_of(made), ttl=63)
    assert frames.checksums_right(made) == (True, True)
    assert id_of(made) in MINE


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [MTU + 1, LARGEST])
def test_in(world: World, sides: Wires, protocol: str, size: int) -> None:
    local = opened(world, protocol)
    with mtu(world, ONRAMP):
        got = sides.back([sized(protocol, REMOTE, local, size, FROM_WIRE)], 2)
    assert all(len(one) <= 14 + MTU for one in got)
    assert in_order(got)
    expected = sized(protocol, REMOTE, CLIENT, size, TO_CLIENT)
    if protocol == "icmp":
        data = b"\xa5" * (size - 28)
        expected = frames.echo(REMOTE, CLIENT, end(CLIENT)[1], True, data, macs=TO_CLIENT)
    assert joined(got) == with_ip(expected, ttl=63)


@pytest.mark.parametrize("size", [68, 100, 576])
def test_many_pieces(world: World, sides: Wires, size: int) -> None:
    """Each as large as it may be, the last of what is left."""
    opened(world, "udp")
    with mtu(world, UPLINK, size):
        world.change_flows(hop_ns=0)
        step = (size - 20) // 8 * 8
        count = -(-(LARGEST - 20) // step)
        left = sides.out([sized("udp", CLIENT, REMOTE, LARGEST, FROM_CLIENT)], count)
    assert [len(one) - 34 for one in left[:-1]] == [step] * (count - 1)
    assert frames.checksums_right(joined(left)) == (True, True)
    assert world.counters()["cut"] > 0


@pytest.mark.parametrize("first", [0, 1])
def test_fragments_of_fragments(world: World, sides: Wires, first: int) -> None:
    """Which are too big themselves; the last piece of one that is not the last goes on."""
    local = opened(world, "udp")
    whole = udp(CLIENT, REMOTE, b"\xa5" * 2800)
    pieces = cut(whole, 1440)
    assert len(pieces) == 2
    with mtu(world, UPLINK):
        world.change_flows(hop_ns=0)
        left = sides.out([pieces[first], pieces[1 - first]], 4)
    made = joined(left)
    assert made == with_ip(udp(local, REMOTE, b"\xa5" * 2800, 63, TO_WIRE), id=id_of(made))
    assert [more_of(one) for one in sorted(left, key=offset_of)] == [True] * 3 + [False]


def test_frames_longer_than_their_packet(world: World, sides: Wires) -> None:
    """What a network card or a sender has put behind the packet is not a part of it."""
    opened(world, "udp")
    with mtu(world, UPLINK, 576):
        world.change_flows(hop_ns=0)
        left = sides.out([sized("udp", CLIENT, REMOTE, 600, FROM_CLIENT) + b"behind"], 2)
    assert b"behind" not in b"".join(left)
    assert frames.checksums_right(joined(left)) == (True, True)


def test_udp_without_checksum(world: World, sides: Wires) -> None:
    opened(world, "udp")
    with mtu(world, UPLINK):
        world.change_flows(hop_ns=0)
        left = sides.out([udp(payload=b"\xa5" * 1400, checksum=0)], 2)
    assert joined(left)[40:42] == b"\0\0"


def test_the_first_packet_of_a_conversation(world: World, sides: Wires) -> None:
    with mtu(world, UPLINK):
        left = sides.out([sized("udp", CLIENT, REMOTE, LARGEST, FROM_CLIENT)], 2)
    assert local_end(joined(left)) == f"198.51.100.10:{world.local_ports()[0]}"
    assert len(world.claims()) == len(world.flows()) == 1


@pytest.mark.parametrize("how", ["options", "segments", "flagged"])
def test_what_cannot_be_cut(world: World, how: str) -> None:
    """IP options; a buffer of several segments; DF."""
    frame = sized(
        "udp",
        CLIENT,
        REMOTE,
        LARGEST,
        FROM_CLIENT,
        "DF" if how == "flagged" else "",
        4 if how == "options" else 0,
    )
    with mtu(world, UPLINK):
        ran = world.out(frame, segment_bytes=1400 if how == "segments" else None)
        assert ran.reason == "too_big"
        assert ran.counted["icmp_sent"] == 1


def test_a_later_one_with_df_gets_no_error(world: World) -> None:
    """Nothing may be said about it (RFC 1122 section 3.2.2)."""
    first, later = (
        with_ip(piece, flags=("MF+DF", "DF")[at])
        for at, piece in enumerate(cut(udp(payload=b"\xa5" * 2800), 1440))
    )
    opened(world, "udp")
    with mtu(world, UPLINK, 1400):
        world.change_flows(hop_ns=0)
        assert dict(world.out(first).counted) == {"too_big": 1, "icmp_sent": 1}
    world.change_flows(hop_ns=0)
    assert world.out(first).outcome == "out"
    with mtu(world, UPLINK, 1300):
        world.change_flows(hop_ns=0)
        ran = world.out(later)
        assert (ran.verdict, dict(ran.counted)) == ("drop", {"too_big": 1})


def test_a_later_one_with_df_that_is_too_big_for_a_client(world: World) -> None:
    local = opened(world, "udp")
    first, later = (
        with_ip(piece, flags=("MF+DF", "DF")[at])
        for at, piece in enumerate(cut(udp(REMOTE, local, b"\xa5" * 2800, macs=FROM_WIRE), 1440))
    )
    assert world.back(first).outcome == "in"
    with mtu(world, ONRAMP, 1300):
        ran = world.back(later)
        assert (ran.verdict, dict(ran.counted)) == ("drop", {"too_big": 1})
        assert dict(world.back(first).counted) == {"too_big": 1, "icmp_sent": 1}
