"""Any bytes at all, to all four programs: a defined verdict, every drop counted once, no frame made worse.

`World` checks the counting of every run (see `Ran`). Frames are random, or valid ones with fields overwritten, cut
or lengthened; ends are drawn from few, so that tables, flows and claims are hit.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IPOption_NOP
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    FROM_WIRE,
    REMOTE,
    changed,
    checksums_right,
    echo,
    end,
    gre,
    local_end,
    packet,
    sum_words,
    tcp,
    udp,
)
from tests.bpf.world import Ran, World, state

SMALLEST_IPV4, SMALLEST_IPV6 = 34, 54  # BPF_PROG_TEST_RUN takes no shorter ones for tc programs
HOOKS = ("director", "guard", "out", "back")

OURS = [f"198.51.100.10:{port}" for port in (0, 2049, 4095, 4097, 6145, 9000, 65535)]
OTHERS = [
    "198.51.100.77:2049",
    "192.0.2.1:22",
    "10.0.0.1:53",
    "224.0.0.1:1",
    "255.255.255.255:67",
    "127.0.0.1:1",
]
ends = st.sampled_from([CLIENT, REMOTE, *OURS, *OTHERS])
macs = st.sampled_from([FROM_CLIENT, FROM_WIRE])
flags = st.sampled_from(["", "S", "SA", "A", "PA", "FA", "R", "RA", "FSRPAU"])
payloads = st.binary(max_size=60)
ttls = st.sampled_from([0, 1, 2, 64, 255])
options = st.integers(0, 10).map(lambda words: [IPOption_NOP()] * words * 4)

valid = st.one_of(
    st.builds(tcp, ends, ends, flags, payloads, ttls, macs, ip_options=options),
    st.builds(udp, ends, ends, payloads, ttls, macs, st.sampled_from([None, 0]), options=options),
    st.builds(echo, ends, ends, st.sampled_from([0, 2049, 4097, 40000]), st.booleans(), payloads, ttls, macs),
    st.builds(gre, ends, ends, macs),
    st.builds(
        packet, ends, ends, st.none(), macs, frag=st.integers(0, 3), flags=st.sampled_from(["", "MF", "DF"])
    ),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid frame with some bytes of its headers overwritten, then cut or lengthened."""
    frame = draw(valid)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(12, min(len(frame) - 2, 80)))
        frame = changed(frame, at, draw(st.binary(min_size=1, max_size=2)))
    if draw(st.booleans()):
        frame = frame[: draw(st.integers(14, len(frame)))]
    return frame + draw(st.sampled_from([b"", b"\0", bytes(60)]))


def can_be_run(frame: bytes, hook: str) -> bool:
    smallest = {b"\x08\x00": SMALLEST_IPV4, b"\x86\xdd": SMALLEST_IPV6}.get(frame[12:14], 15)
    return len(frame) >= (14 if hook == "director" else smallest)


def run(world: World, hook: str, frame: bytes) -> Ran:
    ran: Ran = getattr(world, hook)(frame)
    return ran


def readable(frame: bytes) -> bool:
    """An IPv4 packet whose lengths are true, whole, and of a protocol with a checksum."""
    if len(frame) < 34 or frame[12:14] != b"\x08\x00" or frame[14] >> 4 != 4:
        return False
    header_bytes, total = (frame[14] & 15) * 4, int.from_bytes(frame[16:18], "big")
    if not 20 <= header_bytes <= total <= len(frame) - 14 or frame[20] & 0x3F or frame[21]:
        return False
    segment = frame[14 + header_bytes : 14 + total]
    smallest = {1: 8, 6: 20, 17: 8}.get(frame[23])
    if smallest is None or len(segment) < smallest:
        return False
    return frame[23] != 17 or 8 <= int.from_bytes(segment[4:6], "big") <= len(segment)


def check_frame(hook: str, before: bytes, ran: Ran) -> None:
    if ran.verdict in ("pass", "next", "drop"):
        assert ran.frame == before
        return
    after = ran.frame
    if "icmp_sent" in ran.counted:
        assert checksums_right(after) == (True, True)
        assert len(after) <= 14 + 28 + 80
        assert after[30:34] == before[26:30]
        return
    assert len(after) == len(before)
    if before[20] & 0x3F or before[21]:  # a fragment: of later ones only the IP header can be checked
        sums = [sum_words(frame[14 : 14 + (frame[14] & 15) * 4]) % 0xFFFF for frame in (before, after)]
        assert sums[0] == sums[1]
        return
    assert readable(before)
    assert checksums_right(after) == checksums_right(before)
    assert after[22] == before[22] - 1
    header_bytes = (before[14] & 15) * 4
    kept = slice(34, 14 + header_bytes), slice(14 + header_bytes + 20, None), slice(14, 22)
    assert all(after[part] == before[part] for part in kept)
    if hook == "director":
        assert after[26:] == before[26:]


@pytest.fixture(scope="module")
def busy_world(module_world: World) -> World:
    """With flows of the client's that packets can hit, in both directions."""
    module_world.reset(state())
    for frame in (tcp(), udp(), echo()):
        local = local_end(module_world.out(frame).frame)
        assert local.startswith("198.51.100.10:")
    return module_world


QUIET = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("hook", HOOKS)
@QUIET
@given(frame=mutated())
@example(frame=tcp())
@example(frame=udp(checksum=0))
def test_mutated_frames(busy_world: World, hook: str, frame: bytes) -> None:
    if can_be_run(frame, hook):
        check_frame(hook, frame, run(busy_world, hook, frame))


@pytest.mark.parametrize("hook", HOOKS)
@QUIET
@given(
    start=st.sampled_from([b"", tcp()[:12], tcp()[:14], udp()[:24], tcp(REMOTE, "198.51.100.10:2049")[:34]]),
    data=st.binary(min_size=15, max_size=120),
)
def test_random_bytes(busy_world: World, hook: str, start: bytes, data: bytes) -> None:
    frame = start + data
    if can_be_run(frame, hook):
        check_frame(hook, frame, run(busy_world, hook, frame))


@QUIET
@given(
    kind=st.sampled_from(["tcp", "udp", "echo"]),
    payload=st.binary(max_size=40),
    port=st.integers(1, 65535),
    remote=st.tuples(st.integers(1, 254), st.integers(1, 65535)),
    ttl=st.integers(2, 255),
)
def test_there_and_back(
    busy_world: World, kind: str, payload: bytes, port: int, remote: tuple[int, int], ttl: int
) -> None:
    """Whatever the ports, bytes and hop limits: out and in again, all checksums right, the payload untouched."""
    client, server = f"10.0.0.2:{port}", f"203.0.113.{remote[0]}:{remote[1]}"

    def make(source: str, destination: str, identifier: int, reply: bool) -> bytes:
        macs = FROM_WIRE if reply else FROM_CLIENT
        if kind == "echo":
            return echo(source, destination, identifier, reply, payload, ttl, macs=macs)
        if kind == "tcp":
            return tcp(source, destination, "S", payload, ttl, macs=macs)
        return udp(source, destination, payload, ttl, macs=macs)

    out = busy_world.out(make(client, server, port, False))
    assert out.outcome == "out"
    assert checksums_right(out.frame) == (True, True)
    local = local_end(out.frame)
    back = busy_world.back(make(server, local, end(local)[1], True))
    assert back.outcome == "in"
    assert checksums_right(back.frame) == (True, True)
    assert back.frame[30:34] == bytes([10, 0, 0, 2])
    at = 38 if kind == "echo" else 36
    assert back.frame[at : at + 2] == struct.pack("!H", port)
    assert back.frame.endswith(payload)
    assert sum_words(back.frame[14:34]) == 0xFFFF


@pytest.mark.parametrize("hook", ["director", "out"])
@QUIET
@given(frame=mutated())
def test_what_is_ours_is_counted_exactly_once(busy_world: World, hook: str, frame: bytes) -> None:
    """To an announced address; from a client, to anywhere but a group: one reason or one outcome, whatever it says."""
    if not can_be_run(frame, hook) or frame[12:14] != b"\x08\x00" or len(frame) < 34:
        return
    to = frame[30:34]
    if to[:3] != bytes([198, 51, 100]) if hook == "director" else to[0] >> 4 == 14 or to == b"\xff" * 4:
        return
    ran = run(busy_world, hook, frame)
    assert [ran.reason, ran.outcome].count(None) == 1 or dict(ran.counted) == {"held": 1}, ran
