"""ICMP errors, both ways (RFC 5508 sections 4 and 5): steered by the packet they quote, translated outside and
inside with every checksum, and without any effect on the conversation that they are about.

`left` is a client's packet as routers see it, `sent` as the client knows it; `arrived` and `given` are a reply
on the wire and at the client. Errors quote the first bytes of one of them.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IPOption_NOP
from tests.bpf import frames
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    FROM_WIRE,
    REMOTE,
    TO_CLIENT,
    TO_WIRE,
    changed,
    checksums_right,
    end,
    error,
    sum_words,
)
from tests.bpf.world import UPLINK, World

HERE, THERE, EXPIRED, NOBODY = (f"198.51.100.10:{port}" for port in (2049, 4097, 6145, 9000))
UNKNOWN_ADDRESS = "198.51.100.77:2049"
ROUTER = "192.0.2.99:0"
DATA = bytes(range(200))
NOPS = [IPOption_NOP()] * 8

# Of the quoted packet: what it is, and how many bytes from its start are quoted.
QUOTES = {
    "tcp, 8 bytes": ("tcp", 28),
    "tcp, up to its checksum": ("tcp", 36),
    "tcp, with its checksum": ("tcp", 38),
    "tcp, whole header": ("tcp", 40),
    "tcp, all": ("tcp", 240),
    "tcp with ip options, 8 bytes": ("tcp options", 36),
    "tcp with ip options, all": ("tcp options", 248),
    "tcp with all ip options": ("tcp all options", 200),
    "udp, 8 bytes": ("udp", 28),
    "udp, odd": ("udp", 51),
    "udp, all": ("udp", 228),
    "udp without checksum": ("udp no checksum", 28),
    "udp with ip options": ("udp options", 36),
    "echo, 8 bytes": ("echo", 28),
    "echo, all": ("echo", 228),
}
KINDS = ((3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0))
# Hop limit, second word of the header, and IP options of the error itself, along with each kind of error.
OUTER = tuple(
    zip(
        KINDS,
        itertools.cycle((64, 2, 255)),
        (0, 0, 0, 1400, 0, 0, 32 << 16, 0xFF000000),
        itertools.cycle(({}, {"options": NOPS})),
        strict=False,
    )
)


def packet(kind: str, source: str, destination: str, ttl: int, reply: bool = False) -> bytes:
    """A conversation's packet, without the Ethernet header."""
    port = end(destination if reply else source)[1]
    whole = {
        "tcp": lambda: frames.tcp(source, destination, "PA", DATA, ttl),
        "tcp options": lambda: frames.tcp(source, destination, "PA", DATA, ttl, ip_options=NOPS),
        "tcp all options": lambda: frames.tcp(source, destination, "PA", DATA, ttl, ip_options=NOPS * 5),
        "udp": lambda: frames.udp(source, destination, DATA, ttl),
        "udp no checksum": lambda: frames.udp(source, destination, DATA, ttl, checksum=0),
        "udp options": lambda: frames.udp(source, destination, DATA, ttl, options=NOPS),
        "echo": lambda: frames.echo(source, destination, port, reply, DATA, ttl),
    }[kind]()
    return whole[14:]


def quote(name: str, source: str, destination: str, ttl: int = 1, reply: bool = False) -> bytes:
    kind, length = QUOTES[name]
    return packet(kind, source, destination, ttl, reply)[:length]


@dataclass
class Opened:
    """A flow, and errors about it as they come and as they should leave."""

    name: str
    local: str

    def inward(self, kind: tuple[int, int], ttl: int = 64, word: int = 0, **fields: Any) -> bytes:
        """A router's, about what the client sent."""
        left = quote(self.name, self.local, REMOTE)
        return error(ROUTER, self.local, left, kind, word, ttl, FROM_WIRE, **fields)

    def inside(self, kind: tuple[int, int], ttl: int = 64, word: int = 0, **fields: Any) -> bytes:
        sent = quote(self.name, CLIENT, REMOTE)
        return error(ROUTER, CLIENT, sent, kind, word, ttl, TO_CLIENT, **fields)

    def outward(
        self, kind: tuple[int, int], ttl: int = 64, word: int = 0, source: str = CLIENT, **fields: Any
    ) -> bytes:
        """The client's, or one of a router before it, about what it got."""
        given = quote(self.name, REMOTE, CLIENT, reply=True)
        return error(source, REMOTE, given, kind, word, ttl, FROM_CLIENT, **fields)

    def outside(self, kind: tuple[int, int], ttl: int = 64, word: int = 0, **fields: Any) -> bytes:
        arrived = quote(self.name, REMOTE, self.local, reply=True)
        return error(self.local, REMOTE, arrived, kind, word, ttl, TO_WIRE, **fields)


def opened(world: World, name: str) -> Opened:
    first = {"tcp": frames.tcp, "udp": frames.udp, "echo": frames.echo}[QUOTES[name][0].split()[0]]()
    return Opened(name, frames.local_end(world.out(first).frame))


# -- to the client


@pytest.mark.parametrize("name", tuple(QUOTES))
def test_an_error_reaches_the_client_whose_packet_it_is_about(world: World, name: str) -> None:
    flow = opened(world, name)
    before = world.claims(), world.flows()
    for kind, ttl, word, fields in OUTER:
        frame = flow.inward(kind, ttl, word, **fields)
        assert world.director(frame).outcome == "here"
        ran = world.back(frame)
        assert (ran.verdict, dict(ran.counted)) == ("redirect", {"in": 1})
        assert ran.frame == flow.inside(kind, ttl - 1, word, **fields)
        assert checksums_right(ran.frame) == (True, True)
    assert (world.claims(), world.flows()) == before  # RFC 4787 REQ-12, 5382 REQ-10, 5508 REQ-6


@pytest.mark.parametrize("name", tuple(QUOTES))
@pytest.mark.parametrize("ttl", [0, 1])
def test_hop_limit_inward(world: World, name: str, ttl: int) -> None:
    flow = opened(world, name)
    assert world.back(flow.inward((3, 3), ttl)).reason == "hop_limit"


@pytest.mark.parametrize("name", ["tcp, all", "udp, all", "echo, all"])
def test_an_error_about_nobodys_packet_goes_up(world: World, name: str) -> None:
    """Another port, remote or protocol; or the claim is over: a socket of this server may have sent it."""
    flow = opened(world, name)
    address, port = end(flow.local)
    others = [(f"{address}:{port ^ 1}", REMOTE), (flow.local, "203.0.113.2:443")]
    if "echo" not in name:
        others.append((flow.local, "203.0.113.1:444"))
    for source, destination in others:
        frame = error(ROUTER, source, quote(name, source, destination))
        ran = world.back(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)
    other = "udp, all" if "tcp" in name else "tcp, all"
    assert world.back(error(ROUTER, flow.local, quote(other, flow.local, REMOTE))).verdict == "next"
    for expires_ns in (0, 1, (1 << 64) - 1):
        world.change_claims(expires_ns=expires_ns)
        ran = world.back(flow.inward((3, 3)))
        assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, flow.inward((3, 3)))


def test_wrong_checksums_stay_wrong(world: World) -> None:
    """RFC 5508 REQ-3: the embedded transport checksum is not checked, only kept in step; damage of the error
    itself is not repaired, so its receiver sees it."""
    flow = opened(world, "tcp, all")
    left, sent = (quote("tcp, all", source, REMOTE) for source in (flow.local, CLIENT))
    damaged = changed(left, 60, bytes([left[60] ^ 1])), changed(sent, 60, bytes([sent[60] ^ 1]))
    ran = world.back(error(ROUTER, flow.local, damaged[0]))
    assert ran.frame == error(ROUTER, CLIENT, damaged[1], ttl=63, macs=TO_CLIENT)
    for at, right in ((24, (False, True)), (36, (True, False)), (60, (True, False))):
        frame = flow.inward((3, 3))
        assert checksums_right(world.back(changed(frame, at, bytes([frame[at] ^ 1]))).frame) == right


def test_extensions_are_carried_along(world: World) -> None:
    """RFC 4884: the quote padded to 128 bytes and its length in the header, then objects (here: an MPLS label)."""
    flow = opened(world, "udp, 8 bytes")
    objects = struct.pack("!BBHHBBI", 0x20, 0, 0x1234, 8, 1, 1, 0xABCDE100)
    word = 32 << 16
    left, sent = (quote("udp, 8 bytes", source, REMOTE).ljust(128, b"\0") for source in (flow.local, CLIENT))
    ran = world.back(error(ROUTER, flow.local, left + objects, (11, 0), word))
    assert ran.frame == error(ROUTER, CLIENT, sent + objects, (11, 0), word, 63, TO_CLIENT)


def test_a_checksum_never_becomes_none(world: World) -> None:
    """A quoted UDP checksum that comes out as 0 is written as 0xffff: 0 would say that there was none."""
    flow = opened(world, "udp, 8 bytes")
    removed, added = (
        sum_words(text[12:16] + text[20:22])
        for text in (packet("udp", source, REMOTE, 1) for source in (flow.local, CLIENT))
    )
    critical = [value for value in range(1, 65536) if (0xFFFF - value - removed + added) % 0xFFFF == 0]
    assert critical
    for value in (0, *critical, *range(1, 65536, 997)):
        left = changed(quote("udp, 8 bytes", flow.local, REMOTE), 26, struct.pack("!H", value))
        result = world.run("egress_in", error(ROUTER, flow.local, left), UPLINK).frame
        assert checksums_right(result) == (True, True)
        assert (result[68:70] == b"\0\0") == (value == 0)
        assert (result[68:70] == b"\xff\xff") == (value in critical)


# -- from the client


@pytest.mark.parametrize("name", tuple(QUOTES))
def test_a_clients_error_leaves_from_its_port(world: World, name: str) -> None:
    """Also one that a router before the client sends: outside, it comes from the shared address."""
    flow = opened(world, name)
    before = world.claims()
    for (kind, ttl, word, fields), source in zip(
        OUTER, itertools.cycle((CLIENT, CLIENT, "10.77.0.1:0")), strict=False
    ):
        ran = world.out(flow.outward(kind, ttl, word, source, **fields))
        assert (ran.verdict, dict(ran.counted)) == ("redirect", {"out": 1})
        assert ran.frame == flow.outside(kind, ttl - 1, word, **fields)
        assert checksums_right(ran.frame) == (True, True)
        assert world.guard(ran.frame).verdict == "next"
    assert world.claims() == before


@pytest.mark.parametrize("ttl", [0, 1])
def test_hop_limit_outward(world: World, ttl: int) -> None:
    """An error is never answered with an error."""
    ran = world.out(opened(world, "udp, all").outward((3, 3), ttl))
    assert (ran.verdict, ran.reason) == ("drop", "hop_limit")


def test_a_clients_error_about_nothing_it_got(world: World) -> None:
    flow = opened(world, "udp, all")
    strangers = [
        error(CLIENT, REMOTE, quote("udp, all", REMOTE, "10.0.0.2:40001"), macs=FROM_CLIENT),
        error(CLIENT, REMOTE, quote("udp, all", "203.0.113.1:444", CLIENT), macs=FROM_CLIENT),
        error(CLIENT, "203.0.113.2:1", quote("udp, all", REMOTE, CLIENT), macs=FROM_CLIENT),
        error(CLIENT, REMOTE, quote("udp, all", flow.local, REMOTE), macs=FROM_CLIENT),
    ]
    for frame in strangers:
        ran = world.out(frame)
        assert (ran.verdict, ran.reason, ran.frame) == ("drop", "icmp_error", frame)
    host = error(CLIENT, "10.0.0.1:0", quote("udp, all", "10.0.0.1:53", CLIENT), macs=FROM_CLIENT)
    assert dict(world.out(host).counted) == {"to_host": 1}
    world.reset()
    assert world.out(flow.outward((3, 3))).reason == "icmp_error"


@pytest.mark.parametrize("name", tuple(QUOTES))
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (HERE, None),
        (THERE, "guard_foreign"),
        (EXPIRED, "guard_expired"),
        (NOBODY, "guard_nobody"),
        (UNKNOWN_ADDRESS, "guard_nobody"),
        ("192.0.2.1:2049", None),
    ],
)
def test_only_true_errors_pass_the_guard(world: World, name: str, source: str, reason: str | None) -> None:
    """The port that an error leaves from is the one that the packet it quotes came to."""
    true = error(source, REMOTE, quote(name, REMOTE, source, reply=True), macs=TO_WIRE)
    for frame in (true, frames.tagged(true)):
        ran = world.guard(frame)
        assert (ran.verdict, ran.reason, ran.frame) == ("drop" if reason else "next", reason, frame)
    false = error(source, REMOTE, quote(name, REMOTE, "203.0.113.9:2049", reply=True), macs=TO_WIRE)
    assert world.guard(false).reason == (None if source.startswith("192") else "guard_protocol")


# -- anything


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(tuple(QUOTES)),
    st.sampled_from(KINDS),
    st.integers(0, 255),
    st.lists(st.tuples(st.integers(14, 130), st.binary(min_size=1, max_size=4)), max_size=3),
    st.binary(max_size=60),
)
def test_any_damage(
    module_world: World,
    name: str,
    kind: tuple[int, int],
    ttl: int,
    damage: list[tuple[int, bytes]],
    tail: bytes,
) -> None:
    """Whatever the bytes say: one verdict, counted once; what is not translated is not changed, what is has a right
    header and a checksum exactly as right as it came (`World` checks the counting)."""
    module_world.reset()
    flow = opened(module_world, name)
    for program, frame in (
        (module_world.back, flow.inward(kind, ttl)),
        (module_world.out, flow.outward(kind, ttl)),
    ):
        whole = frame
        for at, value in damage:
            whole = changed(whole, at, value)[: len(frame)]
        whole += tail
        module_world.director(whole)
        module_world.guard(whole)
        ran = program(whole)
        if ran.outcome not in ("in", "out"):
            assert "icmp_sent" in ran.counted or ran.frame == whole
        elif ran.frame[23] == 1:
            assert checksums_right(ran.frame) == checksums_right(whole)
