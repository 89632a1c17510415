"""Packets that come through a tunnel: from whom, what may be in them, and that they go no further than here."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IPOption_NOP
from tests.bpf import families, frames
from tests.bpf.frames import FROM_WIRE, REMOTE, changed, echo, error, tcp, udp, with_ip
from tests.bpf.pieces import cut
from tests.bpf.test_director import EXPIRED, HERE, NOBODY, THERE
from tests.bpf.tunnels import OWN, PEER, STRANGER, Ends, in_tunnel, opened, set_up, tunnelled
from tests.bpf.world import NEIGHBOUR, World, state

from softunicast.kernel import abi

FAMILIES = (4, 6)


@pytest.fixture(params=["xdp", "tc"])
def ends(world: World, request: pytest.FixtureRequest) -> Ends:
    set_up(world)
    return Ends(world, request.param)


def inner_kinds(to: str) -> dict[str, bytes]:
    return {
        "tcp": tcp(REMOTE, to, "SA", macs=FROM_WIRE),
        "tcp data": tcp(REMOTE, to, "PA", b"odd", macs=FROM_WIRE),
        "udp": udp(REMOTE, to, macs=FROM_WIRE),
        "echo reply": echo(REMOTE, to, frames.end(to)[1], reply=True, macs=FROM_WIRE),
        "error": error("203.0.113.9:0", f"{frames.end(to)[0]}:0", udp(to, REMOTE)[14:]),
        "another server's client": udp("198.51.100.10:5000", to, macs=FROM_WIRE),
    }


@pytest.mark.parametrize("kind", list(inner_kinds(HERE)))
def test_for_a_slice_of_this_server(ends: Ends, kind: str) -> None:
    frame = inner_kinds(HERE)[kind]
    ran = ends.open(in_tunnel(frame))
    assert (ran.verdict, dict(ran.counted)) == ("pass", {"tunnel_in": 1, "here": 1})
    assert ran.frame == opened(frame)


def test_with_options_and_padding_outside(ends: Ends) -> None:
    frame = udp(REMOTE, HERE, macs=FROM_WIRE)
    for front in (in_tunnel(frame, options=[IPOption_NOP()] * 8), in_tunnel(frame, tos=0xB8, ttl=1)):
        assert ends.open(front).frame == opened(frame)
    assert ends.open(in_tunnel(frame) + bytes(9)).frame == opened(frame) + bytes(9)


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        (THERE, "tunnel_astray"),
        ("203.0.113.50:80", "tunnel_astray"),
        ("192.0.2.1:2049", "tunnel_astray"),
        (NOBODY, "no_owner"),
        (EXPIRED, "lease_expired"),
        ("198.51.100.77:2049", "no_owner"),
    ],
)
@pytest.mark.parametrize("kind", list(inner_kinds(HERE)))
def test_for_somebody_else(ends: Ends, kind: str, to: str, reason: str) -> None:
    """Also for the peer itself: nothing goes on from one tunnel into another."""
    ran = ends.open(in_tunnel(inner_kinds(to)[kind]))
    assert (ran.verdict, ran.reason) == ("drop", reason)
    assert "steered" not in ran.counted


def test_a_tunnel_in_a_tunnel(ends: Ends) -> None:
    with families.family(4):
        twice = in_tunnel(in_tunnel(udp(REMOTE, HERE)))
        assert ends.open(twice).reason == "tunnel_astray"


def test_from_a_stranger(ends: Ends) -> None:
    """Whatever is in it, and also when it is this server itself that it claims to be from."""
    for source in (STRANGER, "203.0.113.1", OWN):
        for inner in (udp(REMOTE, HERE), udp(REMOTE, THERE)):
            ran = ends.open(in_tunnel(inner, source))
            assert (ran.verdict, dict(ran.counted)) == ("drop", {"tunnel_stranger": 1})
    last = next(
        drop.last for drop in ends.world.datapath.drops() if drop.reason is abi.Reason.TUNNEL_STRANGER
    )
    assert last is not None
    assert last.hook == "director"


def test_what_is_not_for_the_end_of_a_tunnel_is_left_alone(ends: Ends) -> None:
    inner = udp(REMOTE, HERE)
    for frame in (
        in_tunnel(inner, port=6081),
        in_tunnel(inner, destination="192.0.2.77"),
        in_tunnel(inner, STRANGER, "192.0.2.77"),
        in_tunnel(inner, from_port=6080, port=53),
    ):
        ran = ends.open(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("pass", {}, frame)


def test_without_tunnels_the_port_is_the_hosts(ends: Ends) -> None:
    ends.world.reset()
    for source in (PEER, STRANGER):
        frame = in_tunnel(udp(REMOTE, HERE), source)
        ran = ends.open(frame)
        assert (ran.verdict, ran.counted, ran.frame) == ("pass", {}, frame)


@pytest.mark.parametrize(
    "content", [b"", b"\x45", bytes(40), b"\x45" + bytes(18), b"\x60" + bytes(38), b"\x15" * 60]
)
def test_what_is_no_packet(ends: Ends, content: bytes) -> None:
    """No GUE control message either, nor what the peer's operator has there by mistake."""
    with families.family(4):
        ran = ends.open(in_tunnel(b"", content=content))
    assert (ran.verdict, ran.reason) == ("drop", "malformed")


def test_truncated_anywhere(ends: Ends) -> None:
    """Outside or inside: never read beyond the end, and always counted."""
    frame = in_tunnel(tcp(REMOTE, HERE, "PA", b"hello", macs=FROM_WIRE))
    for length in range(42, len(frame)):
        ran = ends.open(frame[:length])  # the outer header says more than there is: none of our business
        assert (ran.verdict, ran.counted) == ("pass", {}), length
    inner = tcp(REMOTE, HERE, "PA", b"hello", macs=FROM_WIRE)[14:]
    for length in range(1, len(inner)):
        ran = ends.open(in_tunnel(b"", content=inner[:length]))
        assert ran.verdict == "drop", length
        assert ran.reason == "malformed", length


def test_lying_inside(ends: Ends) -> None:
    frame = tcp(REMOTE, HERE, "A", macs=FROM_WIRE)
    at = 46 + (20 if families.chosen == 6 else 0)
    assert ends.open(in_tunnel(changed(frame, at, b"\xf0"))).reason == "malformed"


@given(st.binary(min_size=1, max_size=120), st.integers(0, 3), st.binary(max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(ends: Ends, content: bytes, start: int, over: bytes) -> None:
    """Whatever is in a tunnel: it stays and is counted, or is dropped with one reason; nothing is sent."""
    begin = (b"", b"\x45", b"\x60", tcp(REMOTE, HERE)[14:])[start]
    inside = (begin + content)[:20] + over + (begin + content)[20:]
    ran = ends.open(in_tunnel(b"", content=inside))
    assert ran.verdict in ("pass", "drop")
    assert (ran.verdict == "drop") == (ran.reason is not None)


def test_a_fragment_stays_where_it_comes_out(ends: Ends) -> None:
    """From the server where its like meet, or because it is this one: egress knows its owner, and nobody asks twice."""
    for number in range(1, 20):
        for piece in cut(with_ip(udp(REMOTE, HERE, bytes(1400), macs=FROM_WIRE), id=number)):
            ran = ends.open(in_tunnel(piece))
            assert (ran.verdict, ran.outcome, ran.frame) == ("pass", "here", opened(piece))
        stray = cut(with_ip(udp(REMOTE, "203.0.113.50:80", bytes(1400), macs=FROM_WIRE), id=number))[1]
        assert ends.open(in_tunnel(stray)).reason == "tunnel_astray"


def test_tables_say_who_is_a_peer(world: World) -> None:
    """Read back as written; a server that becomes a neighbour again is no peer any more."""
    wanted = tunnelled()
    world.reset(wanted)
    assert world.datapath.read().tunnels == wanted.tunnels
    assert world.datapath.apply(wanted) == 0
    peers = world.datapath.map("peers")
    assert len(list(peers.items())) == 1
    index = world.datapath._tables.server_index(NEIGHBOUR)
    entry = abi.Server.unpack(world.datapath.map("servers").get(index.to_bytes(4, "little")) or b"")
    assert entry.kind == abi.ServerKind.REMOTE
    world.reset(state())
    assert world.datapath.read().tunnels == {}
    assert list(peers.items()) == []
