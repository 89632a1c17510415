"""The short way in XDP makes of a packet, byte by byte, what tc makes of it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet, Raw
from tests.bpf import families, frames
from tests.bpf.frames import CLIENT, FROM_CLIENT, FROM_WIRE, REMOTE, changed, checksums_right, end
from tests.bpf.short_way import PROTOCOLS, Flow, attached, established
from tests.bpf.test_ipv6 import CHAINS, right
from tests.bpf.world import ONRAMP, ONRAMP2, UPLINK, Ran, World

FAMILIES = (4, 6)


@pytest.fixture(scope="module")
def fast_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("same")
    with attached(folder, {ONRAMP: "xdp", ONRAMP2: "tc"}, UPLINK, ONRAMP) as made:
        yield made


@pytest.fixture
def world(fast_world: World, family: int) -> World:
    fast_world.reset()
    return fast_world


def headers(source: str, to: str, ttl: int, fields: dict[str, Any]) -> Packet:
    """Of the chosen family; of IPv6 with extension headers, perhaps."""
    if families.chosen == 4:
        return IP(src=end(source)[0], dst=end(to)[0], ttl=ttl, **fields)
    chain = fields.get("chain")
    plain = {name: value for name, value in fields.items() if name != "chain"}
    header = IPv6(src=families.current(end(source)[0]), dst=families.current(end(to)[0]), hlim=ttl, **plain)
    return header / CHAINS[chain]() if chain else header


def is_right(frame: bytes) -> Any:
    return checksums_right(frame) if families.chosen == 4 else right(frame)


def set_ends(segment: Packet, flow: Flow, source: str, to: str, reply: bool) -> Packet:
    if flow.protocol != "icmp":
        segment.sport, segment.dport = end(source)[1], end(to)[1]
        return segment
    identifier = end(to if reply else source)[1]
    if families.chosen == 6:
        header = (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(seq=segment.seq, cksum=segment.chksum)
        header.id = identifier
        return header / segment.payload
    segment.type, segment.id = 0 if reply else 8, identifier
    return segment


def check_same(world: World, flow: Flow, inner: Packet, ttl: int, tail: bytes, **fields: Any) -> None:
    """The client's packet by both ways, and the same packet of its peer. `inner`: with any ports."""

    def both(frame: bytes, fast: Callable[[bytes], Any], slow: Callable[[bytes], Any]) -> None:
        quick, thorough = fast(frame), slow(frame)
        assert thorough.outcome in ("in", "out")
        assert quick.verdict == "redirect"
        assert quick.frame == thorough.frame
        assert is_right(quick.frame) == is_right(frame)

    for source, to, macs, ways in (
        (CLIENT, REMOTE, FROM_CLIENT, (world.fast, world.out)),
        (REMOTE, flow.local, FROM_WIRE, (world.director, world.back)),
    ):
        segment = set_ends(inner.copy(), flow, source, to, macs == FROM_WIRE)
        frame = bytes(frames.ethernet(macs) / headers(source, to, ttl, fields) / segment)
        if len(frame) <= 1514:
            both(frame + tail, *ways)


TCP_OPTIONS = st.lists(
    st.sampled_from([("NOP", None), ("Timestamp", (1, 2)), ("SAck", (5, 9)), ("MSS", 1400)]), max_size=3
)
HEADERS4 = st.fixed_dictionaries(
    {
        "id": st.integers(0, 65535),
        "tos": st.integers(0, 255),
        "flags": st.sampled_from(["", "DF"]),
        "options": st.integers(0, 40).map(lambda count: [IPOption_NOP()] * count),
    }
)
HEADERS6 = st.fixed_dictionaries(
    {
        "tc": st.integers(0, 255),
        "fl": st.integers(0, (1 << 20) - 1),
        "chain": st.none() | st.sampled_from(sorted(CHAINS)),
    }
)
CHECKSUMS = st.one_of(st.none(), st.integers(0, 65535))
NUMBERS = st.integers(0, (1 << 32) - 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_packet_of_an_established_flow(
    fast_world: World, family: int, protocol: str, data: st.DataObject
) -> None:
    """Both ways make the same of it, right or wrong checksums included."""
    fast_world.reset()
    flow = established(fast_world, protocol)
    payload = data.draw(st.binary(max_size=1432) | st.binary(max_size=9))
    checksum = data.draw(CHECKSUMS)
    if protocol == "tcp":
        flags = data.draw(st.lists(st.sampled_from("APUEC"), unique=True).map("".join))
        inner: Packet = TCP(
            flags=flags,
            seq=data.draw(NUMBERS),
            ack=data.draw(NUMBERS),
            window=data.draw(st.integers(0, 65535)),
            options=data.draw(TCP_OPTIONS),
            chksum=checksum,
        )
    elif protocol == "udp":
        inner = UDP(chksum=checksum)
    else:
        inner = ICMP(seq=data.draw(st.integers(0, 65535)), chksum=checksum)
    fields = data.draw(HEADERS4 if family == 4 else HEADERS6)
    tail = b"" if len(payload) > 1300 else data.draw(st.binary(max_size=20))
    whole = inner / Raw(payload)
    assume(len(bytes(whole)) + len(headers(CLIENT, REMOTE, 64, fields)) <= 1500)
    check_same(fast_world, flow, whole, data.draw(st.integers(2, 255)), tail, **fields)


def check_damaged(ran: Ran, same: Callable[[], Ran], frame: bytes, passed: dict[str, int]) -> None:
    """Moved as tc would, or left as it came: dropped, counted or passed on by the director alone."""
    if ran.verdict == "redirect":
        slow = same()
        assert (slow.verdict, slow.frame) == ("redirect", ran.frame)
    elif ran.verdict == "pass":
        assert (dict(ran.counted), ran.frame) in (({}, frame), (passed, frame))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(PROTOCOLS),
    st.lists(st.tuples(st.integers(12, 80), st.binary(min_size=1, max_size=2)), max_size=2),
    st.integers(15, 200),
    st.booleans(),
)
def test_any_damage_in_ipv6(
    fast_world: World, protocol: str, damage: list[tuple[int, bytes]], length: int, reply: bool
) -> None:
    with families.family(6):
        fast_world.reset()
        flow = established(fast_world, protocol)
        frame = flow.arrived() if reply else flow.sent()
        for at, value in damage:
            frame = changed(frame, at, value)
        frame = frame[:length]
        if reply:
            check_damaged(fast_world.director(frame), lambda: fast_world.back(frame), frame, {"here": 1})
        else:
            check_damaged(fast_world.fast(frame), lambda: fast_world.out(frame), frame, {})


def test_every_checksum_that_carries(world: World) -> None:
    """UDP at each value of the patched sum's last step, 0 and 0xffff included; and none stays none."""
    flow = established(world, "udp")
    for value in (0, 1, 0xFFFE, 0xFFFF, *range(2, 65534, 1021)):
        check_same(world, flow, UDP(chksum=value) / Raw(b"x"), 64, b"")
    at = frames.transport_at()
    source = slice(22, 38) if families.chosen == 6 else slice(26, 30)
    removed, added = (
        frames.sum_words(frame[source] + frame[at : at + 2]) for frame in (flow.sent(), flow.left())
    )
    critical = [value for value in range(1, 65536) if (0xFFFF - value - removed + added) % 0xFFFF == 0]
    for value in critical:
        check_same(world, flow, UDP(chksum=value) / Raw(b"x"), 64, b"")
        sent = changed(flow.sent(), at + 6, struct.pack("!H", value))
        assert world.fast(sent).frame[at + 6 : at + 8] == b"\xff\xff"
