"""What stands between the headers of IPv6 and of its transport: chains of extension headers, which are carried along,
and the header of fragments. What fragments of both families have in common is in test_fragments*.py.
"""

from __future__ import annotations

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrRouting, PadN
from scapy.packet import Packet, Raw
from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, TO_CLIENT, TO_WIRE, changed, error, udp
from tests.bpf.pieces import cut
from tests.bpf.test_ipv6 import CHAINS, CONTENTS, HERE, HOP_LIMIT, SHARED, behind, fragments_behind, packet
from tests.bpf.test_too_big import MTU, mtu
from tests.bpf.world import UPLINK, World

FAMILIES = (6,)


@pytest.mark.parametrize("protocol", CONTENTS)
@pytest.mark.parametrize("chain", CHAINS)
def test_extension_headers_are_carried_along(world: World, chain: str, protocol: str) -> None:
    ran = world.out(behind(chain, protocol, CLIENT, REMOTE))
    assert ran.outcome == "out"
    ports = list(world.claims())
    local = f"{SHARED}:{int.from_bytes(ports[0].local_port.to_bytes(2, 'little'), 'big')}"
    assert ran.frame == behind(chain, protocol, local, REMOTE, 63, TO_WIRE)
    assert world.guard(ran.frame).verdict == "next"
    reply = behind(chain, protocol, REMOTE, local, 50, FROM_WIRE)
    assert world.director(reply).outcome == "here"
    ran = world.back(reply)
    assert ran.frame == behind(chain, protocol, REMOTE, CLIENT, 49, TO_CLIENT)


@pytest.mark.parametrize("chain", CHAINS)
def test_an_error_about_a_packet_with_extension_headers(world: World, chain: str) -> None:
    """Both made here, quoting all of them, and translated."""
    frame = behind(chain, "udp", CLIENT, REMOTE, ttl=1)
    quoted = frame[14:][: len(frame) - 14 - 3]
    assert world.out(frame).frame == error("10.0.0.1:0", CLIENT, quoted, (11, 0), macs=TO_CLIENT)
    sent = world.out(behind(chain, "udp", CLIENT, REMOTE)).frame
    at = len(sent) - 3 - 8
    local = f"{SHARED}:{int.from_bytes(sent[at : at + 2], 'big')}"
    inside = behind(chain, "udp", CLIENT, REMOTE)[14:]
    ran = world.back(error("192.0.2.9:0", local, sent[14:], (3, 3), macs=FROM_WIRE))
    assert ran.frame == error("192.0.2.9:0", CLIENT, changed(inside, 7, b"\x3f"), (3, 3), 0, 63, TO_CLIENT)


def wrong_chains() -> dict[str, Packet]:
    options = [PadN(optdata=b"\0" * 4)]
    return {
        "five": IPv6ExtHdrDestOpt(options=options)
        / IPv6ExtHdrDestOpt(options=options)
        / IPv6ExtHdrDestOpt(options=options)
        / IPv6ExtHdrDestOpt(options=options)
        / IPv6ExtHdrDestOpt(options=options),
        "72 bytes": IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 68)]),
        "not the last destination": IPv6ExtHdrRouting(type=4, addresses=["2001:db8::9"], segleft=1),
    }


@pytest.mark.parametrize("name", wrong_chains())
def test_chains_that_are_not_followed(world: World, name: str) -> None:
    content = UDP(sport=40000, dport=443) / Raw(b"x")
    assert world.out(packet(CLIENT, REMOTE, content, chain=wrong_chains()[name])).reason == "protocol"
    arriving = packet(REMOTE, HERE, content, macs=FROM_WIRE, chain=wrong_chains()[name])
    assert world.director(arriving).reason == "protocol"
    leaving = packet(HERE, REMOTE, content, macs=TO_WIRE, chain=wrong_chains()[name])
    assert world.guard(leaving).reason == "guard_protocol"
    other = packet(REMOTE, "192.0.2.1:9", content, macs=FROM_WIRE, chain=wrong_chains()[name])
    assert (world.director(other).verdict, world.director(other).counted) == ("pass", {})


@pytest.mark.parametrize("behind_it", [60, 44, 0])
@pytest.mark.parametrize("fields", [{"m": 1}, {"offset": 3}, {}])
def test_headers_behind_a_fragment_header_are_not_followed(
    world: World, fields: dict[str, int], behind_it: int
) -> None:
    fragment = IPv6ExtHdrFragment(id=9, nh=behind_it, **fields)
    content = Raw(bytes([17, 0, 0, 0, 0, 0, 0, 0]) + bytes(UDP(sport=40000, dport=443) / (b"x" * 8)))
    assert world.out(packet(CLIENT, REMOTE, content, chain=fragment)).reason == "protocol"
    assert world.director(packet(REMOTE, HERE, content, macs=FROM_WIRE, chain=fragment)).reason == "protocol"
    assert world.guard(packet(HERE, REMOTE, content, macs=TO_WIRE, chain=fragment)).reason == "guard_protocol"


@pytest.mark.parametrize("chain", ["destination options", "three", "64 bytes"])
def test_fragments_behind_extension_headers(world: World, chain: str) -> None:
    """All of it is carried along; the identification is ours, and the same."""
    pieces = fragments_behind(chain, CLIENT, REMOTE)
    left = [world.out(piece) for piece in pieces]
    assert [ran.outcome for ran in left] == ["out", "out"]
    (port,) = world.local_ports()
    expected = fragments_behind(chain, f"{SHARED}:{port}", REMOTE, TO_WIRE)
    at = len(pieces[0]) - 24 - 4  # of the identification
    number = left[0].frame[at : at + 4]
    assert int.from_bytes(number[:2], "big") in range(2048, 4096)
    for ran, piece in zip(left, expected, strict=True):
        assert ran.frame == changed(changed(piece, at, number), HOP_LIMIT, b"\x3f")
        assert world.guard(ran.frame).verdict == "next"


def test_an_error_about_a_fragment(world: World) -> None:
    """Packet Too Big: whoever sent it must send smaller ones. Of a later one nobody knows the ports."""
    first, last = (world.out(piece).frame for piece in fragments_behind("three", CLIENT, REMOTE))
    local = f"{SHARED}:{world.local_ports()[0]}"
    ran = world.back(error("192.0.2.9:0", local, first[14:], (3, 4), 1280, macs=FROM_WIRE))
    assert ran.outcome == "in"
    at = len(first) - 24 - 4
    inside = changed(fragments_behind("three", CLIENT, REMOTE)[0], at, first[at : at + 4])[14:]
    inside = changed(inside, 7, b"\x3f")
    assert ran.frame == error("192.0.2.9:0", CLIENT, inside, (3, 4), 1280, 63, TO_CLIENT)
    about_last = error("192.0.2.9:0", local, last[14:], (3, 4), 1280, macs=FROM_WIRE)
    assert world.director(about_last).reason == "icmp_error"


def test_a_fragment_that_is_too_big_is_not_cut(world: World) -> None:
    """Its sender hears the size that fits, about the first one."""
    pieces = cut(udp(payload=b"x" * 2600), 1304)
    assert world.out(udp()).outcome == "out"
    with mtu(world, UPLINK):
        world.change_flows(hop_ns=0)
        ran = world.out(pieces[0])
        assert dict(ran.counted) == {"too_big": 1, "icmp_sent": 1}
        assert ran.frame == error("10.0.0.1:0", CLIENT, pieces[0][14:70], (3, 4), MTU, macs=TO_CLIENT)
