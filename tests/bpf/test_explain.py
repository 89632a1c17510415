"""`explain`: what would happen to a packet, said by the real programs, with nothing changed by the asking."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bpf import families, frames
from tests.bpf.frames import CLIENT, FROM_WIRE, REMOTE, TO_WIRE, arp, echo, local_end, tcp, udp
from tests.bpf.test_mapping import OPEN, behaving
from tests.bpf.test_search import Opener
from tests.bpf.test_too_big import mtu
from tests.bpf.tunnels import set_up
from tests.bpf.world import ONRAMP, UPLINK, World, make_world, state

from softunicast.core.config import Limits
from softunicast.core.errors import InputError
from softunicast.kernel.abi import Reason
from softunicast.kernel.explain import Explanation, explain
from softunicast.kernel.frames import End, build, describe

HERE, THERE, NOBODY = (f"198.51.100.10:{port}" for port in (2049, 4097, 9000))


def asked(world: World, frame: bytes, interface: str, leaving: bool = False) -> Explanation:
    """Asks, and checks that nothing is different afterwards."""
    before = world.claims(), world.flows(), world.counters(), world.datapath.read()
    found = explain(world.datapath, frame, interface, leaving)
    assert (world.claims(), world.flows(), world.counters(), world.datapath.read()) == before
    assert found.packet_in == describe(frame)
    assert found.steps
    assert bool(found.meaning) == bool(found.reason)
    return found


@pytest.mark.parametrize(
    ("interface", "frame", "verdict", "reason"),
    [
        (ONRAMP, tcp(), "sent out of upl", None),
        (ONRAMP, udp(), "sent out of upl", None),
        (ONRAMP, echo(), "sent out of upl", None),
        (ONRAMP, tcp(flags="A"), "dropped", Reason.NO_FLOW),
        (ONRAMP, tcp(ttl=1), "refused with ICMP", Reason.HOP_LIMIT),
        (ONRAMP, tcp(destination="10.0.0.1:22"), "passed to this server", None),
        (ONRAMP, tcp(destination=HERE), "dropped", Reason.UNSOLICITED),
        (ONRAMP, tcp(destination=HERE, flags="A"), "dropped", Reason.NO_FLOW),
        (ONRAMP, udp(destination=HERE), "passed to this server", None),
        (ONRAMP, tcp(destination=THERE), "sent out of upl", None),
        (ONRAMP, tcp(destination=NOBODY), "refused with ICMP", Reason.NO_ROUTE),
        (ONRAMP, arp(), "passed to this server", None),
        (UPLINK, tcp(REMOTE, HERE, "SA", macs=FROM_WIRE), "passed to this server", None),
        (UPLINK, tcp(REMOTE, THERE, "SA", macs=FROM_WIRE), "steered to server2", None),
        (UPLINK, tcp(REMOTE, NOBODY, "SA", macs=FROM_WIRE), "dropped", Reason.NO_OWNER),
        (UPLINK, tcp(REMOTE, "192.0.2.1:22", "S", macs=FROM_WIRE), "passed to this server", None),
    ],
)
def test_arriving(world: World, interface: str, frame: bytes, verdict: str, reason: Reason | None) -> None:
    found = asked(world, frame, interface)
    assert (found.verdict, found.reason) == (verdict, reason)
    assert (found.packet_out is None) == (verdict in ("dropped", "passed to this server"))


@pytest.mark.parametrize(
    ("to", "verdict", "reason"),
    [
        (HERE, "passed to this server", None),
        (THERE, "steered to server2", None),
        (NOBODY, "dropped", Reason.NO_OWNER),
        ("192.0.2.1:22", "passed to this server", None),
    ],
)
def test_ipv6_in_xdp(world: World, to: str, verdict: str, reason: Reason | None) -> None:
    with families.family(6):
        world.reset()
        found = asked(world, tcp(REMOTE, to, "SA", macs=FROM_WIRE), UPLINK)
    assert (world.datapath.director, found.verdict, found.reason) == ("director", verdict, reason)


@pytest.mark.parametrize(
    ("source", "verdict", "reason"),
    [
        (HERE, "sent out of upl", None),
        ("192.0.2.1:2049", "sent out of upl", None),
        (THERE, "dropped by the guard", Reason.GUARD_FOREIGN),
        (NOBODY, "dropped by the guard", Reason.GUARD_NOBODY),
    ],
)
def test_leaving(world: World, source: str, verdict: str, reason: Reason | None) -> None:
    found = asked(world, udp(source, REMOTE, macs=TO_WIRE), UPLINK, leaving=True)
    assert (found.verdict, found.reason) == (verdict, reason)


def test_a_known_flow_and_its_reply(world: World) -> None:
    local = local_end(world.out(tcp()).frame)
    found = asked(world, tcp(flags="A"), ONRAMP)
    assert found.packet_out == f"tcp {local} > {REMOTE} [ack], hop limit 63"
    found = asked(world, tcp(REMOTE, local, "SA", macs=FROM_WIRE), UPLINK)
    assert found.verdict == "given to the client"
    assert found.packet_out == f"tcp {REMOTE} > {CLIENT} [syn ack], hop limit 63"
    asked(world, tcp(flags="R"), ONRAMP)  # as it says: nothing happened
    (_, (flow,)) = world.datapath.flows(1)
    assert flow.state == "opening"


def test_one_client_to_another(world: World) -> None:
    """Turned round here; what would be done at the other end is said, too."""
    world.reset(behaving(OPEN))
    other = local_end(world.out(udp("10.0.0.9:9")).frame)
    found = asked(world, udp(CLIENT, other), ONRAMP)
    assert found.verdict == "given to the client"
    assert found.packet_out is not None
    assert found.packet_out.endswith("> 10.0.0.9:9, hop limit 62")
    found = asked(world, udp(CLIENT, THERE), ONRAMP)
    assert found.verdict == "sent out of upl"


def test_a_reply_too_large_for_its_client(world: World) -> None:
    local = local_end(world.out(udp()).frame)
    with mtu(world, ONRAMP):
        found = asked(world, udp(REMOTE, local, b"x" * 1400, macs=FROM_WIRE), UPLINK)
    assert (found.verdict, found.reason) == ("refused with ICMP", Reason.TOO_BIG)


@pytest.mark.parametrize("fields", [{}, {"flags": "MF"}, {"frag": 5}, {"flags": "MF", "frag": 5}])
def test_nothing_is_cut_or_kept_for_an_answer(world: World, fields: dict[str, object]) -> None:
    """Pieces of a packet would be sent for real: it is explained as one that is whole and must stay so."""
    world.out(udp())
    with mtu(world, UPLINK):
        world.change_flows(hop_ns=0)
        found = asked(world, udp(payload=b"x" * 1400, **fields), ONRAMP)
    assert (found.verdict, found.reason) == ("refused with ICMP", Reason.TOO_BIG)
    assert not list(world.datapath.map("datagrams").items())


def test_a_full_slice_and_one_that_is_not(world: World) -> None:
    """The copy of the claims is complete: full here is full there, and the last free port is found."""
    world.reset(state(ports=16))
    opener = Opener(world, "udp")
    opener.fill(15)
    (free,) = set(range(16, 32)) - set(world.local_ports())
    found = asked(world, udp(), ONRAMP)
    assert found.packet_out == f"udp 198.51.100.10:{free} > {REMOTE}, hop limit 63"
    opener.fill(1, 15)
    found = asked(world, udp(), ONRAMP)
    assert (found.verdict, found.reason) == ("refused with ICMP", Reason.SLICE_FULL)
    assert found.packet_out == "icmp administratively prohibited 10.0.0.1 > 10.0.0.2, hop limit 64"
    world.expire()
    assert "taken over" in " ".join(asked(world, udp("10.0.0.9:9"), ONRAMP).steps)


def test_nothing_is_left_open(world: World) -> None:
    """The copies of programs and maps go with their last descriptor."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    asked(world, tcp(), ONRAMP)
    assert descriptors() <= before  # fewer, when something else was collected meanwhile


def test_an_interface_that_is_none_of_ours(world: World) -> None:
    with pytest.raises(
        InputError, match="lo is neither the uplink nor an on-ramp; fix: use one of: upl, cl, cm"
    ):
        explain(world.datapath, tcp(), "lo")


@pytest.mark.parametrize("kind", ["tcp", "reply", "udp", "echo", "arp"])
def test_a_frame_cut_anywhere(world: World, kind: str) -> None:
    """Whatever somebody pastes gets an answer."""
    reply = tcp(REMOTE, HERE, "SA", macs=FROM_WIRE)
    frame = {"tcp": tcp(), "reply": reply, "udp": udp(), "echo": echo(), "arp": arp()}[kind]
    for length in (
        34,
        37,
        len(frame) - 1,
    ):  # each question loads the programs anew; any bytes: test_any_bytes.py
        assert explain(world.datapath, frame[:length], UPLINK).verdict
        assert explain(world.datapath, frame[:length], ONRAMP).verdict


@given(st.binary(max_size=80), st.sampled_from([b"", tcp()[:14], tcp()[:34], udp()[:34], echo()[:34]]))
def test_any_bytes_can_be_described(data: bytes, start: bytes) -> None:
    assert "\n" not in describe(start + data)


@pytest.mark.parametrize(
    ("protocol", "flags", "expected"),
    [
        ("tcp", (), "tcp 10.0.0.2:40000 > 203.0.113.1:443 [ack], hop limit 64"),
        ("tcp", ("syn",), "tcp 10.0.0.2:40000 > 203.0.113.1:443 [syn], hop limit 64"),
        ("udp", (), "udp 10.0.0.2:40000 > 203.0.113.1:443, hop limit 64"),
        ("icmp", (), "icmp echo request id 40000 10.0.0.2 > 203.0.113.1, hop limit 64"),
    ],
)
def test_frames_made_from_words(world: World, protocol: str, flags: tuple[str, ...], expected: str) -> None:
    frame = build(protocol, End.parse(CLIENT), End.parse(REMOTE), flags)
    assert describe(frame) == expected
    assert frames.checksums_right(frame) == (True, True)
    assert asked(world, frame, ONRAMP).packet_in == expected


def test_a_full_table_is_full(tmp_path: Path) -> None:
    """The copies that are worked on are no larger than need be, and have no room where there is none."""
    with make_world(tmp_path, Limits(flows_max=8, addresses_max=4, slots_max=64)) as small:
        small.reset()
        opener = Opener(small, "tcp")
        opener.fill(7)
        assert asked(small, udp(), ONRAMP).verdict == f"sent out of {UPLINK}"
        opener.fill(8)
        assert asked(small, udp(), ONRAMP).reason == Reason.TABLE_FULL


def test_through_a_tunnel(world: World) -> None:
    """To a server behind a router; from a client of this one, too; and what does not fit."""
    set_up(world)
    found = asked(world, tcp(REMOTE, THERE, "A", macs=FROM_WIRE), UPLINK)
    assert found.verdict == "steered to server2"
    assert "through the tunnel to server2 (192.0.3.2)" in found.steps[-1]
    found = asked(world, udp(CLIENT, THERE), ONRAMP)
    assert found.verdict == "steered to server2"
    found = asked(world, udp(REMOTE, THERE, bytes(1460), macs=FROM_WIRE), UPLINK)
    assert (found.verdict, found.reason) == ("refused with ICMP", Reason.TOO_BIG)
