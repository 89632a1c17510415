"""ICMP errors at the director: to whom, by what they quote; and those that quote nothing that could be ours."""

from __future__ import annotations

import itertools

import pytest
from tests.bpf import frames
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    REMOTE,
    TO_CLIENT,
    TO_WIRE,
    changed,
    error,
    gre,
)
from tests.bpf.test_icmp_errors import (
    DATA,
    EXPIRED,
    HERE,
    KINDS,
    NOBODY,
    QUOTES,
    ROUTER,
    THERE,
    UNKNOWN_ADDRESS,
    opened,
    packet,
    quote,
)
from tests.bpf.world import World

STEERED = (frames.UPLINK_MAC, frames.NEIGHBOUR_MAC)


@pytest.mark.parametrize(("name", "kind"), tuple(zip(QUOTES, itertools.cycle(KINDS), strict=False)))
@pytest.mark.parametrize(
    ("to", "verdict", "counted"),
    [
        (HERE, "pass", "here"),
        (THERE, "tx", "steered"),
        (EXPIRED, "drop", "lease_expired"),
        (NOBODY, "drop", "no_owner"),
        (UNKNOWN_ADDRESS, "drop", "no_owner"),
        ("192.0.2.1:2049", "pass", None),
    ],
)
def test_steered_by_what_it_quotes(
    world: World, name: str, kind: tuple[int, int], to: str, verdict: str, counted: str | None
) -> None:
    frame = error(ROUTER, to, quote(name, to, REMOTE), kind, 9, 33)
    ran = world.director(frame)
    assert (ran.verdict, dict(ran.counted)) == (verdict, {counted: 1} if counted else {})
    if verdict == "tx":
        assert ran.frame == error(ROUTER, to, quote(name, to, REMOTE), kind, 9, 32, STEERED)
    else:
        assert ran.frame == frame


@pytest.mark.parametrize("ttl", [0, 1])
def test_an_error_between_servers_is_not_sent_to_and_fro(world: World, ttl: int) -> None:
    frame = error(ROUTER, THERE, quote("udp, all", THERE, REMOTE), ttl=ttl)
    assert world.director(frame).reason == "steer_loop"


def bad_quotes(local: str) -> dict[str, bytes]:
    """About a packet of `local`, but nobody can say, or believe, which."""
    whole = packet("tcp", local, REMOTE, 9)
    datagram = packet("udp", local, REMOTE, 9)
    other = packet("tcp", "198.51.100.11:2049", REMOTE, 9)
    later = frames.packet(local, REMOTE, proto=17, frag=5)[14:]
    return {
        "wrong header checksum": changed(whole, 10, bytes([whole[10] ^ 1])),
        "wrong address": changed(whole, 19, bytes([whole[19] ^ 1])),
        "from another address": other,
        "a later fragment": later,
        "version 6": changed(whole, 0, b"\x65"),
        "header too short": changed(whole, 0, b"\x44"),
        "header longer than quoted": changed(whole[:28], 0, b"\x4f"),
        "seven bytes": datagram[:27],
        "only the header": datagram[:20],
        "half the header": datagram[:10],
        "nothing": b"",
        "gre": gre(local, REMOTE)[14:],
        "an error about an error": error(local, REMOTE, packet("udp", REMOTE, local, 9))[14:],
        "a timestamp": frames.packet(local, REMOTE, proto=1)[14:34] + b"\x0d\0\0\0\x08\x01\0\0",
    }


@pytest.mark.parametrize("name", tuple(bad_quotes(HERE)))
def test_what_quotes_no_conversation(world: World, name: str) -> None:
    """Dropped where it arrives; out of an on-ramp, too; and it may not leave with our address."""
    frame = error(ROUTER, HERE, bad_quotes(HERE)[name])
    ran = world.director(frame)
    assert (ran.verdict, ran.reason, ran.frame) == ("drop", "icmp_error", frame)
    ran = world.back(frame)
    assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)
    frame = error(ROUTER, "192.0.2.1:1", bad_quotes(HERE)[name])
    assert (world.director(frame).verdict, world.director(frame).counted) == ("pass", {})
    frame = error(CLIENT, REMOTE, bad_quotes(REMOTE)[name], macs=FROM_CLIENT)
    ran = world.out(frame)
    assert (ran.verdict, ran.reason, ran.frame) == ("drop", "icmp_error", frame)
    leaving = error(HERE, REMOTE, bad_quotes(REMOTE)[name], macs=TO_WIRE)
    ran = world.guard(leaving)
    assert (ran.verdict, ran.reason, ran.frame) == ("drop", "guard_protocol", leaving)


@pytest.mark.parametrize(
    "name", ["tcp, 8 bytes", "tcp, up to its checksum", "udp with ip options", "echo, all"]
)
def test_truncated_anywhere(world: World, name: str) -> None:
    """Every length of the packet, with an honest total length and with one that claims more than is there; and
    with more in the frame than in the packet."""
    flow = opened(world, name)
    needed = len(packet(QUOTES[name][0], HERE, REMOTE, 1)) - (len(DATA) + (20 if "tcp" in name else 8)) + 8
    left = quote(name, flow.local, REMOTE)
    for length in range(len(left)):
        frame = error(ROUTER, flow.local, left[:length])
        for padded in (frame, frame + left[length:] + DATA):
            assert world.director(padded).outcome == ("here" if length >= needed else None), length
        lying = error(ROUTER, flow.local, left)[: 42 + length]
        assert world.director(lying).reason == "malformed"
        if length >= needed:
            ran = world.back(frame + left[length:] + DATA)
            sent = quote(name, CLIENT, REMOTE)[:length]
            expected = error(ROUTER, CLIENT, sent, ttl=63, macs=TO_CLIENT)
            assert ran.frame == expected + left[length:] + DATA  # what is behind the packet is not our matter
