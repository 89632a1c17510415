"""Packets larger than the way on carries: their senders hear which size fits (RFC 1191, RFC 4787 REQ-13), whether
they are clients or remote ends; buffers that will be cut are judged by what they are cut into.

Without DF they are cut into fragments instead, where they can be: test_fragments_cut.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from tests.bpf import families, frames
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    FROM_WIRE,
    REMOTE,
    TO_CLIENT,
    echo,
    end,
    error,
    local_end,
    tcp,
    udp,
)
from tests.bpf.test_mapping import OPEN, behaving
from tests.bpf.world import ONRAMP, UPLINK, World

FAMILIES = (4, 6)

MTU = 1280
TO_GATEWAY = (frames.UPLINK_MAC, frames.GATEWAY_MAC)


@contextmanager
def mtu(world: World, device: str, size: int = MTU) -> Iterator[None]:
    with IPRoute() as netlink:
        netlink.link("set", index=world.index[device], mtu=size)
        try:
            yield
        finally:
            netlink.link("set", index=world.index[device], mtu=1500)


def sized(
    protocol: str,
    source: str,
    destination: str,
    size: int,
    macs: frames.Macs,
    flags: str = "",
    options: int = 0,
) -> bytes:
    """A packet of exactly `size` bytes; so many bytes of IP options; `flags`: "DF"."""
    header = 20 + options if families.chosen == 4 else 40
    data = b"\xa5" * (size - header - {"tcp": 20, "udp": 8, "icmp": 8}[protocol])
    ip_options = [IPOption_NOP()] * options
    if protocol == "icmp":
        port = end(source if macs == FROM_CLIENT else destination)[1]
        made = echo(source, destination, port, macs == FROM_WIRE, data, macs=macs, options=ip_options)
    elif protocol == "udp":
        made = udp(source, destination, data, macs=macs, options=ip_options)
    else:
        made = tcp(source, destination, "S", data, macs=macs, ip_options=ip_options)
    if families.chosen == 6:
        return made
    assert len(made) == 14 + size
    return frames.with_ip(made, flags=flags)


def told(frame: bytes, source: str, macs: frames.Macs, mtu: int = MTU) -> bytes:
    """The error that the sender of the frame gets."""
    if families.chosen == 6:
        sender = str(IPv6(frame[14:]).src)
        return error(f"{source}:0", f"{sender}:0", frames.quoted(frame), (3, 4), mtu, macs=macs)
    header = frame[14:]
    quoted = header[: (header[0] & 15) * 4 + 8]
    made = error(f"{source}:0", f"{IP(header).src}:0", quoted, (3, 4), mtu, macs=macs)
    return frames.with_ip(made, id=0, tos=frames.PRECEDENCE)


PROTOCOLS = ("tcp", "udp", "icmp")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_out(world: World, protocol: str) -> None:
    with mtu(world, UPLINK):
        for size in (MTU, MTU + 1, MTU + 2, 1500, MTU):
            frame = sized(protocol, CLIENT, REMOTE, size, FROM_CLIENT, flags="DF")
            ran = world.out(frame)
            if size <= MTU:
                assert ran.outcome == "out"
            else:
                assert dict(ran.counted) == {"too_big": 1, "icmp_sent": 1}
                assert ran.frame == told(frame, "10.0.0.1", TO_CLIENT)


def test_out_with_ip_options(world: World) -> None:
    with mtu(world, UPLINK):
        frame = sized("udp", CLIENT, REMOTE, MTU + 4, FROM_CLIENT, options=40)
        assert world.out(frame).frame[-28 - 40 :] == frame[14:82]
        assert world.out(sized("udp", CLIENT, REMOTE, MTU, FROM_CLIENT, options=40)).outcome == "out"


def test_a_way_that_became_narrower(world: World) -> None:
    """Noticed when the next hop is asked for again; the claim is not touched by what does not leave."""
    frame = sized("udp", CLIENT, REMOTE, 1400, FROM_CLIENT, flags="DF")
    assert world.out(frame).outcome == "out"
    before = world.claims()
    with mtu(world, UPLINK):
        world.change_flows(hop_ns=0)
        assert world.out(frame).reason == "too_big"
        assert world.claims() == before
    world.change_flows(hop_ns=0)
    assert world.out(frame).outcome == "out"


@pytest.mark.parametrize(("segment_bytes", "fits"), [(-40, True), (-39, False), (120, False)])
def test_a_buffer_to_be_cut(world: World, segment_bytes: int, fits: bool) -> None:
    """TCP with 20 bytes of header: what counts is each segment's packet, not the buffer."""
    segment_bytes += MTU - (20 if families.chosen == 6 else 0)
    with mtu(world, UPLINK):
        frame = sized("tcp", CLIENT, REMOTE, 1500, FROM_CLIENT)
        ran = world.out(frame, segment_bytes=segment_bytes)
        assert ran.outcome == "out" if fits else ran.reason == "too_big"
        ran = world.out(
            sized("udp", CLIENT, REMOTE, 1500, FROM_CLIENT), segment_bytes=segment_bytes - 12 + 24
        )
        assert ran.outcome == "out" if fits else ran.reason == "too_big"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_in(world: World, protocol: str) -> None:
    """The on-ramp is narrower than the uplink (a tunnel): the error leaves from the shared address, by the route
    to the remote end, and the guard lets it."""
    local = local_end(world.out(sized(protocol, CLIENT, REMOTE, 600, FROM_CLIENT)).frame)
    before = world.claims()
    with mtu(world, ONRAMP):
        for size in (MTU + 1, 1500):
            frame = sized(protocol, REMOTE, local, size, FROM_WIRE, flags="DF")
            ran = world.back(frame)
            assert (ran.verdict, dict(ran.counted)) == ("redirect", {"too_big": 1, "icmp_sent": 1})
            assert ran.frame == told(frame, end(local)[0], TO_GATEWAY)
            assert world.guard(ran.frame).verdict == "next"
            assert world.claims() == before
        assert world.back(sized(protocol, REMOTE, local, MTU, FROM_WIRE, flags="DF")).outcome == "in"
    assert world.back(sized(protocol, REMOTE, local, 1500, FROM_WIRE)).outcome == "in"


def test_in_through_an_open_mapping(world: World) -> None:
    world.reset(behaving(OPEN))
    local = local_end(world.out(udp()).frame)
    with mtu(world, ONRAMP):
        frame = sized("udp", "203.0.113.9:9", local, 1500, FROM_WIRE, flags="DF")
        assert world.back(frame).reason == "too_big"


def test_in_a_buffer_that_was_put_together(world: World) -> None:
    """GRO: what counts is each packet that came."""
    local = local_end(world.out(tcp()).frame)
    mtu_of_onramp = 1300
    with mtu(world, ONRAMP, mtu_of_onramp):
        frame = sized("tcp", REMOTE, local, 1500, FROM_WIRE)
        room = mtu_of_onramp - (60 if families.chosen == 6 else 40)
        assert world.back(frame, segment_bytes=room).outcome == "in"
        assert world.back(frame, segment_bytes=room + 1).reason == "too_big"


def test_nothing_is_said_about_what_is_not_a_clients(world: World) -> None:
    with mtu(world, ONRAMP):
        frame = sized("udp", REMOTE, "198.51.100.10:2049", 1500, FROM_WIRE)
        ran = world.back(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)


def test_hairpin(world: World) -> None:
    """To a neighbour it goes by the uplink, and is judged by it."""
    frame = sized("tcp", CLIENT, "198.51.100.10:4097", 1500, FROM_CLIENT)
    room = 1500 - (60 if families.chosen == 6 else 40)
    assert world.out(frame, segment_bytes=room + 1).frame == told(frame, "10.0.0.1", TO_CLIENT, 1500)
    assert world.out(frame, segment_bytes=room).outcome == "out"
