"""The short way in XDP: it moves packets of established flows, and passes everything else on untouched, so that there
is one place that decides. That it does exactly what tc would is in test_fast_same.py.

On-ramp `cl` is attached by XDP and tc, `cm` by tc alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw
from tests.bpf import families, frames
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    FROM_WIRE,
    REMOTE,
    arp,
    changed,
    echo,
    end,
    error,
    gre,
    tagged,
    tcp,
    udp,
)
from tests.bpf.short_way import (
    FAST_IN,
    FAST_OUT,
    PROTOCOLS,
    Flow,
    attached,
    check_passed,
    check_passed_in,
    established,
)
from tests.bpf.talk import Conversation
from tests.bpf.test_mapping import OPEN, behaving
from tests.bpf.world import ME, ONRAMP, ONRAMP2, UPLINK, World, slot_changed

from softunicast.core.desired import SlotOwner
from softunicast.kernel import abi

FAMILIES = (4, 6)
BUSY = (1 << 64) - 1


@pytest.fixture(scope="module")
def fast_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("fast")
    with attached(folder, {ONRAMP: "xdp", ONRAMP2: "tc"}, UPLINK, ONRAMP) as made:
        yield made


@pytest.fixture
def world(fast_world: World, family: int) -> World:
    fast_world.reset()
    return fast_world


# -- what is moved


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("ttl", "size"), [(2, 60), (64, 101), (255, 1500)])
def test_an_established_flow(world: World, protocol: str, ttl: int, size: int) -> None:
    flow = established(world, protocol)
    for _ in range(2):
        ran = world.fast(flow.sent(ttl, size))
        assert (ran.verdict, dict(ran.counted)) == ("redirect", FAST_OUT)
        assert ran.frame == flow.left(ttl - 1, size)
        assert world.guard(ran.frame).verdict == "next"
        ran = world.director(flow.arrived(ttl, size))
        assert (ran.verdict, dict(ran.counted)) == ("redirect", FAST_IN)
        assert ran.frame == flow.given(ttl - 1, size)


def test_numbers_are_followed(world: World) -> None:
    """An RST of either side behind what only XDP has seen is believed."""
    for speaker in ("out", "back"):
        world.reset()
        talk = Conversation(world).established()
        spoken(world, talk)
        getattr(talk, speaker)("R")
        assert [flow.state for flow in world.datapath.flows(1)[1]] == ["closing"], speaker


def spoken(world: World, talk: Conversation) -> None:
    """Both sides say something, in XDP alone."""
    for _ in range(3):
        data = tcp(CLIENT, REMOTE, "PA", b"x" * 900, sequence=talk.client, acknowledgement=talk.peer)
        assert world.fast(data).outcome == "out"
        talk.client += 900
        data = tcp(
            REMOTE,
            talk.local,
            "PA",
            b"y" * 800,
            macs=FROM_WIRE,
            sequence=talk.peer,
            acknowledgement=talk.client,
        )
        assert dict(world.director(data).counted) == FAST_IN
        talk.peer += 800


def test_an_ended_conversation_is_tcs_matter_again(world: World) -> None:
    """So that its packets are noticed: its port may be used again after a silence."""
    for speak in ("out", "back"):
        world.reset()
        talk = Conversation(world).established()
        getattr(talk, speak)("R")
        check_passed(world, tcp(CLIENT, REMOTE, "A", sequence=talk.client, acknowledgement=talk.peer))
        check_passed_in(world, tcp(REMOTE, talk.local, "A", macs=FROM_WIRE, sequence=talk.peer))


# -- what is not


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_needs_a_decision(world: World, protocol: str) -> None:
    check_passed(world, Flow(protocol, "").sent())  # no flow yet
    flow = established(world, protocol)
    for change in ({"refresh_ns": 0}, {"hop_ns": 0}, {"hop_mtu": 99}, {"hairpin": 1}):
        before = world.flows()
        world.change_flows(**change)
        check_passed(world, flow.sent())
        for key, value in before.items():
            world.datapath.map("flows").set(key.pack(), value.pack())
    for ttl in (0, 1):
        check_passed(world, flow.sent(ttl))
    assert world.fast(flow.sent()).outcome == "out"
    check_passed(world, flow.sent(macs=("02:00:00:00:0c:41", frames.ONRAMP_MAC)))  # the claim has to know
    for owner in (SlotOwner(ME, 1, 5), SlotOwner("server2", 5, 0), None):  # the guard's question
        world.datapath.apply(slot_changed(world.datapath.state, 1, owner))
        check_passed(world, flow.sent())
        verdict = world.out(flow.sent())
        assert world.guard(verdict.frame).verdict == "drop"


@pytest.mark.parametrize("flags", ["S", "SA", "FA", "F", "R", "RA", "SF", "SEC"])
def test_tcp_that_changes_the_state(world: World, flags: str) -> None:
    flow = established(world, "tcp")
    check_passed(world, flow.sent(flags=flags))
    check_passed_in(world, flow.arrived(flags=flags))


def test_tcp_that_is_not_established(world: World) -> None:
    talk = Conversation(world)
    for flags in ("A", "PA"):
        check_passed(world, tcp(flags=flags))
        check_passed_in(world, tcp(REMOTE, talk.local, flags, macs=FROM_WIRE))
    talk.back("SA")
    check_passed(world, tcp(flags="A"))  # the packet that makes it so


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_replies_that_need_a_decision(world: World, protocol: str) -> None:
    flow = established(world, protocol)
    for ttl in (0, 1):
        check_passed_in(world, flow.arrived(ttl))
    for expires_ns in (0, 1, BUSY):
        before = world.claims()
        world.change_claims(expires_ns=expires_ns)
        check_passed_in(world, flow.arrived())
        for key, value in before.items():
            world.datapath.map("claims").set(key.pack(), value.pack())
    if protocol == "tcp":
        world.change_claims(refresh_in_ticks=0)
        check_passed_in(world, flow.arrived())
    key = world.index[ONRAMP].to_bytes(4, "little")
    onramps = world.datapath.map("onramps")
    entry = onramps.get(key)
    assert entry
    for mtu in (0, 99):
        onramps.set(key, abi.Onramp.unpack(entry)._replace(xdp_mtu=mtu).pack())
        check_passed_in(world, flow.arrived())
    onramps.delete(key)
    check_passed_in(world, flow.arrived())
    onramps.set(key, entry)


def test_replies_to_an_onramp_without_xdp(world: World) -> None:
    """A veth takes frames from XDP only while its peer asks for them."""
    first = udp(macs=(frames.CLIENT_MAC, frames.ONRAMP2_MAC))
    local = frames.local_end(world.out(first, ONRAMP2).frame)
    check_passed_in(world, udp(REMOTE, local, macs=FROM_WIRE))
    assert world.back(udp(REMOTE, local, macs=FROM_WIRE)).outcome == "in"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_strangers_through_an_open_mapping(world: World, protocol: str) -> None:
    world.reset(behaving(OPEN))
    local = frames.local_end(world.out({"tcp": tcp(), "udp": udp(), "icmp": echo()}[protocol]).frame)
    stranger = {
        "tcp": lambda: tcp("203.0.113.9:9", local, macs=FROM_WIRE),
        "udp": lambda: udp("203.0.113.9:9", local, macs=FROM_WIRE),
        "icmp": lambda: echo("203.0.113.9:9", local, end(local)[1], True, macs=FROM_WIRE),
    }[protocol]()
    check_passed_in(world, stranger)


def test_hairpin(world: World) -> None:
    """Its way is not the wire: by tc, each packet."""
    world.reset(behaving(OPEN))
    other = frames.local_end(world.out(udp("10.0.0.9:9")).frame)
    assert world.out(udp(CLIENT, other)).outcome == "out"
    check_passed(world, udp(CLIENT, other))
    there = udp(CLIENT, "198.51.100.10:4097")
    assert world.out(there).outcome == "out"
    assert world.fast(there).outcome == "out"  # to the neighbour it is


def test_what_is_not_plain(world: World) -> None:
    flow = established(world, "udp")
    whole, at = flow.sent(), frames.transport_at()
    other = IP() if families.chosen == 6 else IPv6()
    for frame in (
        changed(whole, 14, b"\x4f"),
        changed(whole, 14, b"\x65" if families.chosen == 4 else b"\x55"),
        changed(whole, 18 if families.chosen == 6 else 16, b"\xff\xff"),
        changed(whole, at + 4, struct.pack("!H", 7)),
        frames.packet(CLIENT, REMOTE, UDP(sport=40000, dport=443) / Raw(b"x" * 32), flags="MF"),
        frames.packet(CLIENT, REMOTE, proto=17, frag=9),
        frames.packet(CLIENT, REMOTE, ICMP(type=13) / Raw(b"x" * 12)),
        error(CLIENT, REMOTE, flow.given()[14 : at + 8], macs=FROM_CLIENT),
        gre(),
        tagged(whole),
        arp(),
        bytes(frames.ethernet(FROM_CLIENT) / other / UDP(sport=1, dport=2)),
        udp(CLIENT, "224.0.0.1:5353"),
        udp(CLIENT, "255.255.255.255:67"),
        udp(CLIENT, "10.0.0.1:53"),
        whole[: at + 6],
        whole[: at - 1],
    ):
        check_passed(world, frame)
