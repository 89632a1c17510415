"""Client packets that are not translated: passed to this server, dropped with a reason, or answered with an
ICMP error that quotes them.
"""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP
from scapy.packet import Raw
from tests.bpf import families, frames
from tests.bpf.frames import CLIENT, FROM_CLIENT, REMOTE, arp, changed, echo, gre, refusal, tagged, tcp, udp
from tests.bpf.world import DEPENDENT, ONRAMP, UPLINK, World, state

from softunicast.core.desired import PoolSlices
from softunicast.core.pools import Timers
from softunicast.kernel import abi

FAMILIES = (4, 6)

UNREACHABLE, TIME_EXCEEDED = 3, 11
NET, HOST, PROHIBITED = 0, 1, 13
ROUTER = "10.0.0.1:9000"


@contextmanager
def route(**fields: Any) -> Iterator[None]:
    if families.chosen == 6:
        address, _, length = fields["dst"].partition("/")
        fields |= {"family": socket.AF_INET6, "dst": f"{families.six(address)}/{96 + int(length)}"}
        if "gateway" in fields:
            fields["gateway"] = families.current(fields["gateway"])
    with IPRoute() as netlink:
        netlink.route("add", **fields)
        try:
            yield
        finally:
            netlink.route("del", **fields)


@contextmanager
def without_default_route() -> Iterator[None]:
    default = {"dst": "0.0.0.0/0", "gateway": "192.0.2.254"}
    if families.chosen == 6:
        default = {"family": socket.AF_INET6, "dst": "::/0", "gateway": families.current("192.0.2.254")}
    with IPRoute() as netlink:
        netlink.route("del", **default)
        try:
            yield
        finally:
            netlink.route("add", **default)


def every_kind(destination: str = REMOTE, ttl: int = 64) -> dict[str, bytes]:
    return _every_kind(families.chosen, destination, ttl)


@functools.cache
def _every_kind(version: int, destination: str, ttl: int) -> dict[str, bytes]:
    made = {
        "tcp": tcp(CLIENT, destination, ttl=ttl),
        "tcp with options": tcp(CLIENT, destination, ttl=ttl, options=[("MSS", 1460), ("WScale", 7)]),
        "udp": udp(CLIENT, destination, ttl=ttl),
        "udp, odd": udp(CLIENT, destination, b"x", ttl=ttl),
        "udp, empty": udp(CLIENT, destination, b"", ttl=ttl),
        "udp, largest": udp(CLIENT, destination, b"\xa5" * 1472, ttl=ttl),
        "udp without checksum": udp(CLIENT, destination, checksum=0, ttl=ttl),
        "echo": echo(CLIENT, destination, ttl=ttl),
        "echo, empty": echo(CLIENT, destination, payload=b"", ttl=ttl),
    }
    if version == 4:
        made["ip options"] = udp(CLIENT, destination, ttl=ttl, options=[IPOption_NOP()] * 4)
        made["all ip options"] = tcp(CLIENT, destination, ttl=ttl, ip_options=[IPOption_NOP()] * 40)
    return made


KINDS = tuple(every_kind())


@pytest.fixture(autouse=True)
def kind_of_this_family(request: pytest.FixtureRequest, family: int) -> None:
    chosen = getattr(request.node, "callspec", None)
    kind = chosen.params.get("kind") if chosen else None
    if kind is not None and kind not in every_kind():
        families.ipv4_only(kind)


def check_refused(world: World, frame: bytes, reason: str, kind: int, code: int) -> None:
    """Refused with the right error, byte by byte; nothing is kept of the packet."""
    claims, flows = world.claims(), world.flows()
    ran = world.out(frame)
    assert (ran.verdict, dict(ran.counted)) == ("redirect", {reason: 1, "icmp_sent": 1})
    assert ran.frame == refusal(frame, kind, code)
    assert (world.claims(), world.flows()) == (claims, flows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ttl", [0, 1])
def test_hop_limit(world: World, kind: str, ttl: int) -> None:
    """A client's traceroute sees this server, also in the middle of a conversation."""
    check_refused(world, every_kind(ttl=ttl)[kind], "hop_limit", TIME_EXCEEDED, 0)
    assert world.out(every_kind()[kind]).outcome == "out"
    check_refused(world, every_kind(ttl=ttl)[kind], "hop_limit", TIME_EXCEEDED, 0)


def test_a_packet_in_the_middle_of_nothing_out_of_hops(world: World) -> None:
    check_refused(world, tcp(flags="A", ttl=1), "hop_limit", TIME_EXCEEDED, 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["unreachable", "prohibit", "blackhole"])
def test_no_route(world: World, kind: str, what: str) -> None:
    with route(dst="203.0.113.0/24", type=what):
        check_refused(world, every_kind()[kind], "no_route", UNREACHABLE, NET)


@pytest.mark.parametrize("kind", ["tcp", "udp", "echo"])
def test_a_route_out_of_another_interface(world: World, kind: str) -> None:
    """Such a packet would leave untranslated, or by a way that replies do not come back."""
    with route(dst="203.0.113.0/24", oif=world.index["cm"]):
        check_refused(world, every_kind()[kind], "no_route", UNREACHABLE, NET)
    check_refused(world, every_kind("10.0.0.77:80")[kind], "no_route", UNREACHABLE, NET)


@pytest.mark.parametrize("kind", ["tcp", "udp", "echo"])
def test_forwarding_switched_off(world: World, kind: str) -> None:
    setting = Path(f"/proc/sys/net/ipv{'6' if families.chosen == 6 else '4'}/conf/{ONRAMP}/forwarding")
    setting.write_text("0")
    try:
        check_refused(world, every_kind()[kind], "no_route", UNREACHABLE, NET)
        # An agent that starts or stops must not be in the way of who talks to the server itself.
        assert dict(world.out(every_kind("10.0.0.1:53")[kind]).counted) == {"to_host": 1}
        if families.chosen == 4:
            assert dict(world.out(gre(destination="10.0.0.1:0")).counted) == {"to_host": 1}
    finally:
        setting.write_text("1")


def test_no_route_at_all_is_the_kernels_to_refuse(world: World) -> None:
    """bpf_fib_lookup answers the same for it as for a packet to this server: the kernel says so to the client."""
    with without_default_route():
        assert dict(world.out(tcp()).counted) == {"to_host": 1}
    assert world.out(tcp()).outcome == "out"


def test_a_route_that_goes_away_under_a_flow(world: World) -> None:
    """The cached next hop is good for a second; then the flow's packets are dropped by name, and only then."""
    assert world.out(tcp()).outcome == "out"
    with route(dst="203.0.113.0/24", type="unreachable"):
        assert world.out(tcp(flags="A")).outcome == "out"
        world.change_flows(hop_ns=0)
        assert world.out(tcp(flags="A")).reason == "no_route"
    assert world.out(tcp(flags="A")).outcome == "out"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "destination", ["10.0.0.1:80", "192.0.2.1:80", "127.0.0.1:80", "10.0.0.255:80", "192.0.2.255:80"]
)
def test_for_this_server_itself(world: World, kind: str, destination: str) -> None:
    if families.chosen == 6 and destination.startswith(("127", "10.0.0.255", "192.0.2.255")):
        families.ipv4_only("broadcast, and many loopback addresses")
    frame = every_kind(destination, ttl=1)[kind]
    ran = world.out(frame)
    assert (ran.verdict, dict(ran.counted), ran.frame) == ("next", {"to_host": 1}, frame)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "destination", ["224.0.0.1:5353", "239.255.255.250:1900", "224.0.0.0:1", "255.255.255.255:67"]
)
def test_multicast_and_broadcast_are_left_alone(world: World, kind: str, destination: str) -> None:
    if families.chosen == 6 and destination.startswith("255"):
        families.ipv4_only("broadcast")
    frame = every_kind(destination)[kind]
    ran = world.out(frame)
    assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("destination", ["198.51.100.10:9000", "198.51.100.10:6145", "198.51.100.255:80"])
def test_a_shared_address_whose_port_nobody_holds(world: World, kind: str, destination: str) -> None:
    """Nobody has it, this server's lease has run out, or the address is unknown: it must not go to the internet."""
    check_refused(world, every_kind(destination)[kind], "no_route", UNREACHABLE, NET)


def refused_code(kind: str) -> int:
    # Code 1 wakes no UDP socket on Linux: the refusal would end as a time-out.
    return HOST if kind.startswith(("tcp", "all ip options")) else PROHIBITED


@pytest.mark.parametrize("kind", KINDS)
def test_no_slice(world: World, kind: str) -> None:
    """No slice at all in the pool; or some, but none with a live lease."""
    for wanted in (state(pool=()), state(pool=(2,)), state(pool=(3,)), state(pool=(9,))):
        world.datapath.apply(wanted)
        check_refused(world, every_kind()[kind], "no_slice", UNREACHABLE, refused_code(kind))
    world.datapath.apply(state(pool=(3, 2, 9, 1)))
    assert world.out(every_kind()[kind]).outcome == "out"


@pytest.mark.parametrize("kind", KINDS)
def test_an_onramp_without_a_pool(world: World, kind: str) -> None:
    """Between the detaching of the program and its last packet: dropped, never passed on untranslated."""
    key = world.index[ONRAMP].to_bytes(4, "little")
    onramps = world.datapath.map("onramps")
    entry = onramps.get(key)
    assert entry
    onramps.delete(key)
    try:
        assert world.out(every_kind()[kind]).reason == "no_pool"
        onramps.set(key, abi.Onramp.unpack(entry)._replace(pool=99).pack())
        check_refused(world, every_kind()[kind], "family", UNREACHABLE, PROHIBITED)
    finally:
        onramps.set(key, entry)


def test_an_onramp_without_an_address_cannot_answer(world: World) -> None:
    key = world.index[ONRAMP].to_bytes(4, "little")
    onramps = world.datapath.map("onramps")
    entry = onramps.get(key)
    assert entry
    onramps.set(key, abi.Onramp.unpack(entry)._replace(address=0).pack())
    try:
        assert (world.out(tcp(ttl=1)).verdict, world.out(tcp(ttl=1)).reason) == ("drop", "hop_limit")
    finally:
        onramps.set(key, entry)


WITHOUT_PORT = [
    ("fragment", frames.packet(content=Raw(b"x" * 31), frag=5, proto=17, flags="MF")),
    ("protocol", gre()),
    ("protocol", frames.packet(content=Raw(b"x" * 28), proto=50)),
    ("protocol", frames.packet(content=ICMP(type=13, ts_ori=1, ts_rx=1, ts_tx=1) / Raw(b"x" * 12))),
    ("icmp_error", frames.packet(content=ICMP(type=3, code=3) / IP(src="203.0.113.1") / UDP())),
    ("icmp_error", frames.packet(content=ICMP(type=11) / IP(src="203.0.113.1") / UDP())),
]


@pytest.mark.parametrize(("reason", "frame"), WITHOUT_PORT)
def test_what_cannot_be_translated(world: World, reason: str, frame: bytes) -> None:
    if families.chosen == 6:
        families.ipv4_only("see test_ipv6.py")
    ran = world.out(frame)
    assert (ran.verdict, ran.reason, ran.frame) == ("drop", reason, frame)
    for destination, verdict in (("10.0.0.1", "next"), ("198.51.100.10", "drop"), ("224.0.0.5", "next")):
        whole = frames.ethernet(FROM_CLIENT) / IP(frame[14:])
        whole[IP].dst = destination
        whole[IP].chksum = None
        assert world.out(bytes(whole)).verdict == verdict, destination


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (14, b"\x55"),
        (14, b"\x44"),
        (14, b"\x4f"),
        (16, struct.pack("!H", 19)),
        (16, b"\xff\xff"),
        (46, b"\x40"),
        (46, b"\xf0"),
    ],
)
def test_malformed(world: World, at: int, value: bytes) -> None:
    if families.chosen == 6:
        families.ipv4_only("see test_ipv6.py")
    for destination in (REMOTE, ROUTER):
        frame = changed(tcp(CLIENT, destination), at, value)
        ran = world.out(frame)
        assert (ran.verdict, ran.reason, ran.frame) == ("drop", "malformed", frame)


def test_truncated_anywhere(world: World) -> None:
    for frame in (tcp(payload=b"hello"), udp(), echo()):
        for length in range(frames.transport_at(), len(frame)):  # TEST_RUN takes no less
            assert world.out(frame[:length]).reason == "malformed", length


def test_other_than_ip_is_left_alone(world: World) -> None:
    for frame in (arp(), tagged(tcp()), FROM_LLDP):
        ran = world.out(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("next", {}, frame)


FROM_LLDP = bytes.fromhex("0180c200000e0200000c0002") + b"\x88\xcc" + bytes(46)


def test_a_neighbour_not_known_yet(world: World) -> None:
    """The kernel resolves it: the frame's MAC addresses are written when it leaves, the rest is done."""
    with route(dst="203.0.113.0/24", gateway="192.0.2.77"):
        ran = world.out(udp())
        assert dict(ran.counted) == {"out": 1, "new_flow": 1}
        assert ran.frame == udp(frames.local_end(ran.frame), ttl=63, macs=FROM_CLIENT)
        (flow,) = world.flows().values()
        assert flow.hop_ns == 0


def test_the_last_dropped_packet_is_named(world: World) -> None:
    world.datapath.apply(replace(state(), pools={"gb": PoolSlices(Timers(), (), DEPENDENT)}))
    world.out(echo(identifier=77))
    last = next(drop.last for drop in world.datapath.drops() if drop.reason is abi.Reason.NO_SLICE)
    assert last
    assert (last.hook, last.interface, last.protocol) == ("egress out", ONRAMP, "icmp")
    assert (last.source, last.destination) == ("10.0.0.2:77", "203.0.113.1:77")
    assert UPLINK != ONRAMP
