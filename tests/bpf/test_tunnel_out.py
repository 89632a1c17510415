"""Packets for a server behind a router: what is put in front of them, which way they take, and what does not fit.

Slices as in test_director.py; the neighbour of there is here at 192.0.3.2, and the gateway is on the way to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pyroute2 import IPRoute
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from tests.bpf import families, frames
from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, TO_WIRE, UPLINK_MAC, echo, error, tcp, udp, with_ip
from tests.bpf.pieces import joined, offset_of, wires
from tests.bpf.test_director import HERE, THERE, arriving
from tests.bpf.test_too_big import sized, told
from tests.bpf.tunnels import (
    HEADER_BYTES,
    OWN,
    PEER,
    PORT,
    Ends,
    entered,
    forget_hops,
    in_tunnel,
    set_up,
    without_port,
)
from tests.bpf.world import FAR_NS, UPLINK, World

FAMILIES = (4, 6)
MTU = 1500
KINDS = tuple(kind for kind in arriving(THERE) if kind != "largest")


@pytest.fixture(params=["xdp", "tc"])
def ends(world: World, request: pytest.FixtureRequest) -> Ends:
    set_up(world)
    return Ends(world, request.param)


def arriving_now(ttl: int) -> dict[str, bytes]:
    """Of the family in hand."""
    if families.chosen == 4:
        return arriving(THERE, ttl)
    return {
        "tcp": tcp(REMOTE, THERE, "SA", ttl=ttl, macs=FROM_WIRE),
        "tcp data": tcp(REMOTE, THERE, "PA", b"odd", ttl=ttl, macs=FROM_WIRE),
        "udp": udp(REMOTE, THERE, ttl=ttl, macs=FROM_WIRE),
        "echo reply": echo(REMOTE, THERE, 4097, reply=True, ttl=ttl, macs=FROM_WIRE),
    }


@pytest.mark.parametrize("ttl", [2, 64, 255])
@pytest.mark.parametrize("kind", KINDS)
def test_a_header_in_front_and_one_hop_less(ends: Ends, kind: str, ttl: int) -> None:
    if kind not in arriving_now(ttl):
        families.ipv4_only(kind)
    ran = ends.send(arriving_now(ttl)[kind])
    assert (ran.verdict, dict(ran.counted)) == ("tx", {"steered": 1, "tunnel_out": 1})
    assert without_port(ran.frame) == without_port(entered(arriving_now(ttl - 1)[kind]))
    assert frames_checksum_right(ran.frame)


def frames_checksum_right(frame: bytes) -> bool:
    return frames.sum_words(frame[14:34]) == 0xFFFF


def test_padding_stays_outside(ends: Ends) -> None:
    """A short frame is longer than what it carries."""
    frame = udp(REMOTE, THERE, b"x", macs=FROM_WIRE)
    ran = ends.send(frame + bytes(17))
    assert without_port(ran.frame) == without_port(entered(udp(REMOTE, THERE, b"x", 63, FROM_WIRE))) + bytes(
        17
    )


@pytest.mark.parametrize(("tos", "outside"), [(0, 0), (0xB8, 0xB8), (0x03, 0), (0xBA, 0xB8)])
def test_the_class_goes_along_and_congestion_marks_do_not(ends: Ends, tos: int, outside: int) -> None:
    frame = bytearray(udp(REMOTE, THERE, macs=FROM_WIRE))
    if families.chosen == 6:
        frame[14:16] = (0x6000 | tos << 4).to_bytes(2, "big")
    else:
        frame = bytearray(with_ip(bytes(frame), tos=tos))
    assert Ether(ends.send(bytes(frame)).frame)[IP].tos == outside


def port_of(ran_frame: bytes) -> int:
    return int.from_bytes(ran_frame[34:36], "big")


def test_flows_have_source_ports_of_their_own(ends: Ends) -> None:
    ports = [
        port_of(ends.send(tcp(f"203.0.113.1:{n}", THERE, "A", macs=FROM_WIRE)).frame) for n in range(1, 65)
    ]
    again = [
        port_of(ends.send(tcp(f"203.0.113.1:{n}", THERE, "A", macs=FROM_WIRE)).frame) for n in range(1, 65)
    ]
    assert ports == again
    assert len(set(ports)) > 60
    assert all(port >= 49152 for port in ports)


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_hop_limit_used_up_is_a_loop(ends: Ends, ttl: int) -> None:
    frame = tcp(REMOTE, THERE, "A", ttl=ttl, macs=FROM_WIRE)
    ran = ends.send(frame)
    assert (ran.verdict, ran.reason, ran.frame) == ("drop", "steer_loop", frame)


def test_what_is_here_is_untouched_and_counted_once(ends: Ends) -> None:
    frame = tcp(REMOTE, HERE, "A", macs=FROM_WIRE)
    ran = ends.send(frame)
    if ends.attach == "xdp" and families.chosen == 6:
        assert (ran.verdict, dict(ran.counted), ran.frame) == (
            "pass",
            {},
            frame,
        )  # only what comes behind XDP
    else:
        assert (ran.verdict, dict(ran.counted), ran.frame) == ("pass", {"here": 1}, frame)


def test_an_icmp_error_goes_the_same_way(ends: Ends) -> None:
    quoted = udp(THERE, REMOTE)[14:]
    sent, less = (error("203.0.113.9:0", "198.51.100.10:0", quoted, ttl=ttl) for ttl in (64, 63))
    ran = ends.send(sent)
    assert ran.outcome == "steered"
    assert without_port(ran.frame) == without_port(entered(less))


# what does not fit


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_too_big_with_the_header(ends: Ends, protocol: str) -> None:
    """Its sender hears what fits, from this server's own address."""
    own = OWN if families.chosen == 4 else str(families.six(OWN))
    for size in (MTU - HEADER_BYTES, MTU - HEADER_BYTES + 1, MTU):
        frame = sized(protocol, REMOTE, THERE, size, FROM_WIRE, flags="DF")
        ran = ends.send(frame)
        if size <= MTU - HEADER_BYTES:
            assert ran.outcome == "steered"
            continue
        assert dict(ran.counted) == {"too_big": 1, "icmp_sent": 1}
        assert ran.frame == told(frame, own, TO_WIRE, MTU - HEADER_BYTES)


def test_no_error_about_an_error(ends: Ends) -> None:
    if families.chosen == 6:
        families.ipv4_only("errors of IPv6 always fit")
    frame = error("203.0.113.9:0", "198.51.100.10:0", udp(THERE, REMOTE)[14:] + bytes(1420), flags="DF")
    ran = ends.send(frame)
    assert (ran.verdict, dict(ran.counted)) == ("drop", {"too_big": 1})


def test_senders_are_not_told_for_ever(ends: Ends) -> None:
    frame = sized("udp", "203.0.113.77:443", THERE, MTU, FROM_WIRE, flags="DF")
    assert dict(ends.send(frame).counted) == {"too_big": 1, "icmp_sent": 1}
    told_when = ends.world.datapath.map("told" if families.chosen == 4 else "told6")
    for key, _ in list(told_when.items()):
        told_when.set(key, FAR_NS.to_bytes(8, "little"))  # has had enough of them
    assert dict(ends.send(frame).counted) == {"too_big": 1, "icmp_muted": 1}


def test_cut_where_that_is_allowed(ends: Ends) -> None:
    """The pieces come in again, meet somewhere, and leave through the tunnel."""
    if families.chosen == 6:
        families.ipv4_only("routers do not cut IPv6")
    frame = sized("udp", REMOTE, THERE, MTU, FROM_WIRE)
    with wires() as sides:
        ran = ends.send(frame)
        assert "cut" in ran.counted
        found = sides._through(sides._wire, sides._wire, [], 2)
    assert all(piece[30:34] == bytes(map(int, PEER.split("."))) for piece in found)
    inner = [piece[:12] + b"\x08\x00" + piece[14 + HEADER_BYTES :] for piece in found]
    assert max(map(len, found)) <= MTU + 14
    whole = joined(sorted(inner, key=offset_of))
    assert whole[14 + 20 :] == frame[14 + 20 :]


def test_a_router_on_the_way_carries_less(ends: Ends) -> None:
    """What it says is remembered, of peers only, and only about tunnels."""

    def narrow(
        mtu: int, destination: str = OWN, source: str = OWN, peer: str = PEER, port: int = PORT
    ) -> bytes:
        quoted = in_tunnel(udp(REMOTE, THERE), source, peer, port=port)[14:][:28]
        return error("192.0.2.254:0", f"{destination}:0", quoted, (3, 4), mtu)

    frame = sized("udp", REMOTE, THERE, 1400, FROM_WIRE, flags="DF")
    with families.family(4):
        for forged in (
            narrow(1300, destination="192.0.2.77"),
            narrow(1300, source="192.0.2.77"),
            narrow(1300, peer="192.0.3.9"),
            narrow(1300, port=6081),
        ):
            assert ends.send(forged).counted == {}
    assert ends.send(frame).outcome == "steered"
    with families.family(4):
        ran = ends.send(narrow(1300))
        assert (ran.verdict, ran.counted) == ("pass", {})
    forget_hops(ends.world)  # this may be another CPU than the error came to
    ran = ends.send(frame)
    own = OWN if families.chosen == 4 else str(families.six(OWN))
    assert ran.reason == "too_big"
    assert ran.frame == told(frame, own, TO_WIRE, 1300 - HEADER_BYTES)
    with families.family(4):
        ends.send(narrow(20))  # nobody carries so little
    forget_hops(ends.world)
    assert told(frame, own, TO_WIRE, 576 - HEADER_BYTES) == ends.send(frame).frame


# the way


@contextmanager
def routed(**route: object) -> Iterator[None]:
    with IPRoute() as netlink:
        netlink.route("add", dst="192.0.3.0/24", **route)
        try:
            yield
        finally:
            netlink.route("del", dst="192.0.3.0/24", **route)


def test_the_way_is_the_kernels(ends: Ends) -> None:
    """As long as it leaves by the uplink; and a route may say that the way carries less."""
    frame = udp(REMOTE, THERE, bytes(1300), macs=FROM_WIRE)
    for route in ({"gateway": "10.0.0.9", "oif": ends.world.index["cl"]}, {"type": "unreachable"}):
        forget_hops(ends.world)
        with routed(**route):
            assert ends.send(frame).reason == "no_neighbour"
    forget_hops(ends.world)
    with routed(gateway="192.0.2.254", metrics={"mtu": 1300, "lock": 4}):
        assert ends.send(with_df(frame)).reason == "too_big"
    forget_hops(ends.world)
    assert ends.send(frame).outcome == "steered"


def with_df(frame: bytes) -> bytes:
    return frame if families.chosen == 6 else with_ip(frame, flags="DF")


def test_a_gateway_not_known_yet(ends: Ends) -> None:
    """The kernel asks for it, and holds the packet meanwhile."""
    with routed(gateway="192.0.2.77", oif=ends.world.index[UPLINK]):
        ran = ends.send(udp(REMOTE, THERE, macs=FROM_WIRE))
    assert (ran.verdict, ran.outcome) == ("tx", "steered")
    assert without_port(ran.frame)[12:] == without_port(entered(udp(REMOTE, THERE, ttl=63)))[12:]


def test_a_client_of_this_server_goes_by_the_director(ends: Ends) -> None:
    """Hairpin: a client's packet to the other server's slice comes in by the uplink, and leaves in a tunnel."""
    ran = ends.world.out(udp(CLIENT, THERE))
    assert ran.outcome == "out"
    assert Ether(ran.frame).dst == Ether(ran.frame).src == UPLINK_MAC
    sent = ends.world.remote(ran.frame) if ends.attach == "xdp" else ends.world.director_tc(ran.frame)
    assert dict(sent.counted) == {"steered": 1, "tunnel_out": 1}
    assert sent.frame[14 + HEADER_BYTES + 20 :] == ran.frame[14 + 20 :]
    big = sized("udp", CLIENT, THERE, MTU, frames.FROM_CLIENT, flags="DF")
    assert ends.world.out(big).reason == "too_big"


# the guard


def test_only_the_director_speaks_through_tunnels(world: World) -> None:
    set_up(world)
    inner = udp("198.51.100.10:5000", REMOTE)
    with families.family(4):
        frame = in_tunnel(inner, OWN, PEER, TO_WIRE)
        assert world.guard(frame, came_by=UPLINK).verdict == "next"
        for came_by in (None, "cl"):
            assert world.guard(frame, came_by=came_by).reason == "guard_tunnel"
        for other in (
            in_tunnel(inner, OWN, "192.0.3.9", TO_WIRE),
            in_tunnel(inner, OWN, PEER, TO_WIRE, port=6081),
        ):
            assert (world.guard(other).verdict, world.guard(other).counted) == ("next", {})
    world.reset()
    with families.family(4):
        assert world.guard(frame).verdict == "next"  # no tunnels: no business of ours
