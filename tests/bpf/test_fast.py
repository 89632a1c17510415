"""The short way in XDP: it moves packets of established flows exactly as tc would, and passes everything else on
untouched, so that there is one place that decides.

On-ramp `cl` is attached by XDP and tc, `cm` by tc alone. `fast` is a client's packet in XDP, `out` the same at tc;
`director` and `back` are a reply in XDP and at tc.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw
from tests.bpf import frames
from tests.bpf.frames import (
    CLIENT,
    FROM_CLIENT,
    FROM_WIRE,
    REMOTE,
    TO_CLIENT,
    TO_WIRE,
    arp,
    changed,
    checksums_right,
    echo,
    end,
    error,
    gre,
    tagged,
    tcp,
    udp,
)
from tests.bpf.talk import Conversation
from tests.bpf.test_mapping import OPEN, behaving
from tests.bpf.world import (
    ATTACH,
    LIMITS,
    ME,
    ONRAMP,
    ONRAMP2,
    UPLINK,
    World,
    make_server,
    slot_changed,
    state,
)

from softunicast.core.desired import SlotOwner
from softunicast.core.errors import HostError
from softunicast.kernel import abi
from softunicast.kernel.datapath import Datapath, attach_pass

BUSY = (1 << 64) - 1
FAST_OUT, FAST_IN = {"out": 1, "fast_out": 1}, {"here": 1, "in": 1, "fast_in": 1}
PROTOCOLS = ("tcp", "udp", "icmp")
PEERS = {UPLINK: "upp", ONRAMP: "clp"}


@contextmanager
def attached(folder: Path, attach: Mapping[str, str], *taking: str) -> Iterator[World]:
    """A server whose on-ramps are attached so. These devices take frames from XDP: a veth does while its peer has a
    program, or GRO."""
    with make_server(folder) as mount:
        datapath = Datapath.open(mount, UPLINK, ME, LIMITS, {**ATTACH, **attach})
        try:
            for device in taking:
                attach_pass(PEERS[device], mount / f"pass-{device}")
            datapath.apply(state())
            yield World(datapath)
        finally:
            datapath.remove()


@pytest.fixture(scope="module")
def fast_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("fast")
    with attached(folder, {ONRAMP: "xdp", ONRAMP2: "tc"}, UPLINK, ONRAMP) as made:
        yield made


@pytest.fixture
def world(fast_world: World) -> World:
    fast_world.reset()
    return fast_world


@dataclass
class Flow:
    """An established flow and its packets, outside and inside."""

    protocol: str
    local: str

    def sent(
        self, ttl: int = 64, size: int = 100, flags: str = "PA", macs: frames.Macs = FROM_CLIENT
    ) -> bytes:
        return self._packet(CLIENT, REMOTE, False, ttl, size, flags, macs)

    def left(self, ttl: int = 63, size: int = 100, flags: str = "PA") -> bytes:
        return self._packet(self.local, REMOTE, False, ttl, size, flags, TO_WIRE)

    def arrived(self, ttl: int = 64, size: int = 100, flags: str = "PA") -> bytes:
        return self._packet(REMOTE, self.local, True, ttl, size, flags, FROM_WIRE)

    def given(self, ttl: int = 63, size: int = 100, flags: str = "PA") -> bytes:
        return self._packet(REMOTE, CLIENT, True, ttl, size, flags, TO_CLIENT)

    def _packet(
        self, source: str, to: str, reply: bool, ttl: int, size: int, flags: str, macs: frames.Macs
    ) -> bytes:
        data = bytes(range(256)) * 6
        if self.protocol == "tcp":
            return tcp(source, to, flags, data[: size - 40], ttl, macs)
        if self.protocol == "udp":
            return udp(source, to, data[: size - 28], ttl, macs)
        return echo(source, to, end(to if reply else source)[1], reply, data[: size - 28], ttl, macs)


def established(world: World, protocol: str) -> Flow:
    if protocol == "tcp":
        return Flow(protocol, Conversation(world).established().local)
    first = udp() if protocol == "udp" else echo()
    return Flow(protocol, frames.local_end(world.out(first).frame))


def check_passed(world: World, frame: bytes, onramp: str = ONRAMP) -> None:
    """A client's packet goes on to tc as it came."""
    claims, flows = world.claims(), world.flows()
    ran = world.fast(frame, onramp)
    assert (ran.verdict, ran.counted, ran.frame) == ("pass", {}, frame)
    assert (world.claims(), world.flows()) == (claims, flows)


def check_passed_in(world: World, frame: bytes) -> None:
    """A reply goes on to tc as it came."""
    claims, flows = world.claims(), world.flows()
    ran = world.director(frame)
    assert (ran.verdict, dict(ran.counted), ran.frame) == ("pass", {"here": 1}, frame)
    assert (world.claims(), world.flows()) == (claims, flows)


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
    whole = flow.sent()
    for frame in (
        changed(whole, 14, b"\x4f"),
        changed(whole, 14, b"\x65"),
        changed(whole, 16, b"\xff\xff"),
        changed(whole, 38, struct.pack("!H", 7)),
        frames.packet(CLIENT, REMOTE, UDP(sport=40000, dport=443) / Raw(b"x" * 32), flags="MF"),
        frames.packet(CLIENT, REMOTE, proto=17, frag=9),
        frames.packet(CLIENT, REMOTE, ICMP(type=13) / Raw(b"x" * 12)),
        error(CLIENT, REMOTE, flow.given()[14:][:28], macs=FROM_CLIENT),
        gre(),
        tagged(whole),
        arp(),
        bytes(frames.ethernet(FROM_CLIENT) / IPv6() / UDP(sport=1, dport=2)),
        udp(CLIENT, "224.0.0.1:5353"),
        udp(CLIENT, "255.255.255.255:67"),
        udp(CLIENT, "10.0.0.1:53"),
        whole[:40],
        whole[:33],
    ):
        check_passed(world, frame)


# -- the same as tc, byte by byte


def check_same(world: World, flow: Flow, inner: Packet, ttl: int, tail: bytes, **fields: Any) -> None:
    """The client's packet by both ways, and the same packet of its peer. `inner`: with any ports."""

    def both(frame: bytes, fast: Callable[[bytes], Any], slow: Callable[[bytes], Any]) -> None:
        quick, thorough = fast(frame), slow(frame)
        assert thorough.outcome in ("in", "out")
        assert quick.verdict == "redirect"
        assert quick.frame == thorough.frame
        assert checksums_right(quick.frame) == checksums_right(frame)

    for source, to, macs, ways in (
        (CLIENT, REMOTE, FROM_CLIENT, (world.fast, world.out)),
        (REMOTE, flow.local, FROM_WIRE, (world.director, world.back)),
    ):
        segment = inner.copy()
        if flow.protocol == "icmp":
            segment.type, segment.id = (8, end(source)[1]) if macs == FROM_CLIENT else (0, end(to)[1])
        else:
            segment.sport, segment.dport = end(source)[1], end(to)[1]
        packet = IP(src=end(source)[0], dst=end(to)[0], ttl=ttl, **fields) / segment
        frame = bytes(frames.ethernet(macs) / packet)
        if len(frame) <= 1514:
            both(frame + tail, *ways)


TCP_OPTIONS = st.lists(
    st.sampled_from([("NOP", None), ("Timestamp", (1, 2)), ("SAck", (5, 9)), ("MSS", 1400)]), max_size=3
)
HEADERS = st.fixed_dictionaries(
    {
        "id": st.integers(0, 65535),
        "tos": st.integers(0, 255),
        "flags": st.sampled_from(["", "DF"]),
        "options": st.integers(0, 40).map(lambda count: [IPOption_NOP()] * count),
    }
)
CHECKSUMS = st.one_of(st.none(), st.integers(0, 65535))
NUMBERS = st.integers(0, (1 << 32) - 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_packet_of_an_established_flow(fast_world: World, protocol: str, data: st.DataObject) -> None:
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
    fields = data.draw(HEADERS)
    tail = b"" if len(payload) > 1300 else data.draw(st.binary(max_size=20))
    whole = inner / Raw(payload)
    assume(len(bytes(whole)) + 20 + len(fields["options"]) <= 1500)
    check_same(fast_world, flow, whole, data.draw(st.integers(2, 255)), tail, **fields)


def test_every_checksum_that_carries(world: World) -> None:
    """UDP at each value of the patched sum's last step, 0 and 0xffff included; and none stays none."""
    flow = established(world, "udp")
    for value in (0, 1, 0xFFFE, 0xFFFF, *range(2, 65534, 1021)):
        check_same(world, flow, UDP(chksum=value) / Raw(b"x"), 64, b"")
    removed, added = (frames.sum_words(frame[26:30] + frame[34:36]) for frame in (flow.sent(), flow.left()))
    critical = [value for value in range(1, 65536) if (0xFFFF - value - removed + added) % 0xFFFF == 0]
    for value in critical:
        check_same(world, flow, UDP(chksum=value) / Raw(b"x"), 64, b"")
        assert world.fast(changed(flow.sent(), 40, struct.pack("!H", value))).frame[40:42] == b"\xff\xff"


# -- attaching


def attachment(world: World, interface: str = ONRAMP) -> tuple[bool, int]:
    """Whether XDP is attached, and the size of replies up to which it may hand them over."""
    entry = world.datapath.map("onramps").get(world.index[interface].to_bytes(4, "little"))
    assert entry
    pinned = (world.datapath.folder / "links" / f"fast@{interface}").exists()
    return pinned, abi.Onramp.unpack(entry).xdp_mtu


def test_how_an_onramp_is_attached(tmp_path: Path) -> None:
    """As configured; `auto` is tc on a veth, whose packets are large; another choice replaces what is pinned."""
    with attached(tmp_path, {ONRAMP: "xdp"}, UPLINK, ONRAMP) as world:
        assert (attachment(world), attachment(world, ONRAMP2)) == ((True, 1500), (False, 0))
        folder = world.datapath.folder
        world.datapath.close()
        world.datapath = Datapath.open(folder, UPLINK, ME, LIMITS, {ONRAMP: "tc", ONRAMP2: "xdp"})
        assert world.datapath.adopted
        assert (attachment(world), attachment(world, ONRAMP2)) == ((False, 0), (True, 0))
        assert world.out(udp()).outcome == "out"
        world.datapath.apply(replace(state(), onramps={}))
        assert not list((folder / "links").glob("fast@*"))


def test_replies_that_xdp_could_not_hand_over(tmp_path: Path) -> None:
    """The clients' end takes nothing from XDP: replies go by tc, or they would be lost without a word."""
    with attached(tmp_path, {ONRAMP: "xdp"}, UPLINK) as world:
        assert attachment(world) == (True, 0)
        flow = established(world, "udp")
        assert world.fast(flow.sent()).outcome == "out"
        check_passed_in(world, flow.arrived())


def test_an_uplink_that_xdp_could_not_send_by(tmp_path: Path) -> None:
    message = (
        'upl does not send what XDP redirects to it: cl cannot be attached by XDP; fix: set attach = "tc"'
    )
    with pytest.raises(HostError, match=message), attached(tmp_path, {ONRAMP: "xdp"}):
        pass
