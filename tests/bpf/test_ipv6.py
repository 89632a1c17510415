"""What only IPv6 has: extension headers, neighbour discovery, ICMPv6's checksum over addresses. Whole addresses for one
server, and pools without any: test_ipv6_families.py. The rest are the tables for both families (families.py).
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    in6_chksum,
)
from scapy.packet import Packet, Raw
from tests.bpf import families, frames
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    FROM_WIRE,
    REMOTE,
    TO_WIRE,
    changed,
    echo,
    error,
    tcp,
    udp,
)
from tests.bpf.world import ONRAMP, SPENT, UPLINK, Ran, World

FAMILIES = (6,)
SHARED = "198.51.100.10"
HERE, THERE = f"{SHARED}:2049", f"{SHARED}:4097"
NEXT_HEADER, HOP_LIMIT = 20, 21
OPTIONS = [PadN(optdata=b"\0" * 4)]
CHAINS = {
    "destination options": lambda: IPv6ExtHdrDestOpt(options=OPTIONS),
    "hop-by-hop options": lambda: IPv6ExtHdrHopByHop(options=OPTIONS),
    "routing, all visited": lambda: IPv6ExtHdrRouting(type=4, addresses=["2001:db8::9"], segleft=0),
    "three": lambda: (
        IPv6ExtHdrHopByHop(options=OPTIONS)
        / IPv6ExtHdrRouting(type=4, addresses=[], segleft=0)
        / IPv6ExtHdrDestOpt(options=OPTIONS)
    ),
    "64 bytes": lambda: IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 60)]),
    "fragment, of one": lambda: IPv6ExtHdrFragment(id=9),  # RFC 6946: a whole packet
    "64 bytes and fragment, of one": lambda: (
        IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 60)]) / IPv6ExtHdrFragment(id=9)
    ),
}
CONTENTS = {
    "tcp": lambda at, to: TCP(sport=at, dport=to, flags="S"),
    "udp": lambda at, to: UDP(sport=at, dport=to),
}


def six(text: str) -> tuple[str, int]:
    address, port = frames.end(text)
    return families.current(address), port


def packet(
    source: str,
    destination: str,
    content: Packet,
    ttl: int = 64,
    macs: frames.Macs = FROM_CLIENT,
    chain: Packet | None = None,
) -> bytes:
    header = IPv6(src=six(source)[0], dst=six(destination)[0], hlim=ttl)
    return bytes(frames.ethernet(macs) / (header / chain / content if chain else header / content))


def behind(
    chain: str, protocol: str, source: str, destination: str, ttl: int = 64, macs: frames.Macs = FROM_CLIENT
) -> bytes:
    content = CONTENTS[protocol](six(source)[1], six(destination)[1]) / Raw(b"odd")
    return packet(source, destination, content, ttl, macs, CHAINS[chain]())


# -- extension headers


def fragments_behind(
    chain: str, source: str, destination: str, macs: frames.Macs = FROM_CLIENT
) -> list[bytes]:
    """First and last; the first has the checksum of both."""
    whole = bytes(
        packet(source, destination, UDP(sport=six(source)[1], dport=six(destination)[1]) / (b"odd" * 9))
    )
    contents = (whole[54:78], {"m": 1}), (whole[78:], {"offset": 3})
    return [
        packet(
            source,
            destination,
            Raw(content),
            macs=macs,
            chain=CHAINS[chain]() / IPv6ExtHdrFragment(id=9, nh=17, **fields),
        )
        for content, fields in contents
    ]


@pytest.mark.parametrize("number", [50, 51, 59, 1, 132, 255])
def test_other_protocols_have_no_ports(world: World, number: int) -> None:
    frame = changed(packet(CLIENT, REMOTE, Raw(b"x" * 40)), NEXT_HEADER, bytes([number]))
    assert world.out(frame).reason == "protocol"
    arriving = changed(packet(REMOTE, HERE, Raw(b"x" * 40), macs=FROM_WIRE), NEXT_HEADER, bytes([number]))
    assert world.director(arriving).reason == "protocol"


# -- what is the link's own business


def discovery(source: str, destination: str) -> list[bytes]:
    target = str(families.six(SHARED))
    header = IPv6(src=source, dst=destination, hlim=255)
    contents = (ICMPv6ND_NS(tgt=target), ICMPv6ND_NA(tgt=target, S=1))
    return [bytes(frames.ethernet(FROM_CLIENT) / header / content) for content in contents]


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("fe80::2", "ff02::1:ff00:1"),
        ("::", "ff02::1:ff00:1"),
        ("fe80::2", "fe80::1"),
        ("fd00::a00:2", "fd00::a00:1"),
        ("2001:db8::cb00:7101", "2001:db8::c633:640a"),
    ],
)
def test_neighbour_discovery_is_never_touched(world: World, source: str, destination: str) -> None:
    for frame in discovery(source, destination):
        for run in (world.out, world.director, world.back):
            ran = run(frame)
            assert (ran.verdict in ("next", "pass"), dict(ran.counted), ran.frame) == (True, {}, frame)


def test_nobody_speaks_for_a_shared_address(world: World) -> None:
    for frame in discovery(str(families.six(SHARED)), "2001:db8::cb00:7101"):
        assert world.guard(frame).reason == "guard_protocol"


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        ("fe80::2", "2001:db8::1"),
        ("2001:db8::2", "fe80::1"),
        ("2001:db8::2", "febf::1"),
        ("2001:db8::2", "ff0e::1"),
    ],
)
def test_link_local_and_multicast_are_left_alone(world: World, source: str, destination: str) -> None:
    for content in (UDP(sport=1, dport=2049), TCP(sport=1, dport=80), ICMPv6EchoRequest(id=7)):
        frame = bytes(frames.ethernet(FROM_CLIENT) / IPv6(src=source, dst=destination) / content)
        ran = world.out(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)


def test_the_other_family_is_left_alone(world: World) -> None:
    with families.family(4):
        frame = udp(CLIENT, REMOTE)
    before = world.counters()
    for program in ("egress_out6", "director_tc6", "remote6", "egress_in6", "guard6"):
        ran = world.run(program, frame, ONRAMP if program == "egress_out6" else UPLINK)
        assert (ran.verdict, ran.frame) == ("next", frame), program
    assert world.counters() == before


# -- malformed


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (14, b"\x40"),  # version
        (14, b"\x70"),
        (18, struct.pack("!H", 19)),  # payload length
        (18, struct.pack("!H", 21)),
        (18, b"\xff\xff"),
        (18, b"\0\0"),
        (66, b"\x40"),  # doff
        (66, b"\xf0"),
        (22, bytes(16)),  # from nobody
        (38, bytes(16)),  # to nobody
        (22, b"\xff\x02"),  # from many
    ],
)
def test_malformed(world: World, at: int, value: bytes) -> None:
    ran = world.out(changed(tcp(), at, value))
    assert (ran.verdict, ran.reason) == ("drop", "malformed")
    if at not in (22, 38):
        assert world.guard(changed(tcp(HERE, REMOTE, macs=TO_WIRE), at, value)).reason == "malformed"
        assert world.director(changed(tcp(REMOTE, HERE, macs=FROM_WIRE), at, value)).reason == "malformed"


@pytest.mark.parametrize("chain", CHAINS)
def test_chains_truncated_anywhere(world: World, chain: str) -> None:
    frame = behind(chain, "tcp", REMOTE, HERE, macs=FROM_WIRE)
    for length in range(54, len(frame)):
        assert world.director(frame[:length]).reason == "malformed", length
        honest = changed(frame[:length], 18, struct.pack("!H", length - 54))
        assert world.director(honest).reason in ("malformed", "protocol", None)


# -- anything

CHECKED = {6: 16, 17: 6, 58: 2}


def right(frame: bytes) -> bool:
    """Whether the checksum behind the extension headers is; True where there is none to tell."""
    at, number = 54, frame[NEXT_HEADER]
    while number in (0, 43, 44, 60):
        if number == 44 and frame[at + 2 : at + 4] not in (b"\0\0", b"\0\2", b"\0\4", b"\0\6"):
            return True  # a fragment
        number, at = frame[at], at + (frame[at + 1] + 1) * 8
    if number not in CHECKED:
        return True
    end = 54 + int.from_bytes(frame[18:20], "big")
    segment = frame[at:end]
    if number == 17 and segment[6:8] == b"\0\0":
        return True
    covered = segment[: int.from_bytes(segment[4:6], "big")] if number == 17 else segment
    header = IPv6(src=IPv6Address(frame[22:38]), dst=IPv6Address(frame[38:54]))
    return bool(in6_chksum(number, header, covered) in (0, 0xFFFF))


def examples() -> list[bytes]:
    with families.family(6):
        made = [behind(chain, protocol, CLIENT, REMOTE) for chain in CHAINS for protocol in CONTENTS]
        made += [
            behind(chain, protocol, REMOTE, HERE, macs=FROM_WIRE) for chain in CHAINS for protocol in CONTENTS
        ]
        made += [tcp(), udp(), udp(checksum=0), echo(), tcp(REMOTE, THERE, macs=FROM_WIRE)]
        made += [
            error("192.0.2.9:0", HERE, udp(HERE, REMOTE)[14:]),
            error(CLIENT, REMOTE, tcp(REMOTE, CLIENT)[14:]),
        ]
        made += fragments_behind("three", CLIENT, REMOTE) + fragments_behind("three", REMOTE, HERE, FROM_WIRE)
        return made + discovery("fe80::1", "ff02::2")


@pytest.mark.parametrize("hook", ["out", "back", "director", "guard"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(examples()),
    st.lists(st.tuples(st.integers(12, 130), st.binary(min_size=1, max_size=4)), max_size=3),
    st.integers(54, 200),
    st.binary(max_size=40),
)
@example(examples()[0], [], 200, b"")
def test_any_damage(
    module_world: World, hook: str, frame: bytes, damage: list[tuple[int, bytes]], length: int, tail: bytes
) -> None:
    """One verdict, counted once (`World` checks that); what is sent has a checksum as right as it came."""
    for at, value in damage:
        frame = changed(frame, at, value)[: len(frame)]
    frame = frame[:length] + tail
    if len(frame) < 54:
        return
    with families.family(6):
        if not module_world.flows():
            module_world.reset()
            module_world.out(udp())
        ran: Ran = getattr(module_world, hook)(frame)
    if SPENT & set(ran.counted):
        return  # with others, of packets before
    if ran.outcome in ("in", "out", "steered"):
        assert len(ran.frame) == len(frame)
        assert right(ran.frame) == right(frame)
        assert ran.frame[HOP_LIMIT] == frame[HOP_LIMIT] - 1
    elif "icmp_sent" in ran.counted:
        assert right(ran.frame)
    else:
        assert ran.frame == frame
