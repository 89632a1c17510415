"""The director at tc: chosen for a veth, first at its hook, exchanged for the one in XDP and back without a gap; and
what it sends on really leaves. What it decides is in test_director.py.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bpf.frames import (
    FROM_WIRE,
    GATEWAY_MAC,
    NEIGHBOUR_MAC,
    REMOTE,
    UPLINK_MAC,
    error,
    tagged,
    tcp,
    udp,
)
from tests.bpf.kernel_objects import has_xdp, pins
from tests.bpf.world import LIMITS, ME, UPLINK, World, make_server, state

from softunicast.kernel.attached import Attached, attached
from softunicast.kernel.attachment import suits_xdp
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.links import interface

HERE, THERE, NOBODY = (f"198.51.100.10:{port}" for port in (2049, 4097, 9000))
PEER = "upp"
NEIGHBOURS_CLIENT = (
    "198.51.100.10:5000"  # a packet between two clients of the neighbour, come to the wrong server
)
ETH_P_ALL, SOL_PACKET, PACKET_IGNORE_OUTGOING = 3, 263, 23


def opened(mount: Path, attach: str | None) -> Datapath:
    datapath = Datapath.open(mount, UPLINK, ME, LIMITS, {UPLINK: attach} if attach else {})
    datapath.apply(state())
    return datapath


@contextmanager
def wire() -> Iterator[socket.socket]:
    """The far end of the uplink."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as made:
        made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        made.bind((PEER, 0))
        made.settimeout(5)
        yield made


@pytest.fixture(scope="module")
def at_tc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with make_server(tmp_path_factory.mktemp("tc")) as mount:
        datapath = opened(mount, None)
        try:
            yield World(datapath)
        finally:
            datapath.remove()


def counted(world: World, frame: bytes) -> dict[str, int]:
    """What the programs at the uplink count for a frame that comes in by it."""
    before = world.counters()
    with wire() as far:
        far.send(frame)
        far.send(tcp(REMOTE, NOBODY, macs=FROM_WIRE))  # comes after it, and is counted
    deadline = time.monotonic() + 5
    while world.counters()["no_owner"] == before["no_owner"]:
        assert time.monotonic() < deadline
    now = {**world.counters(), "no_owner": before["no_owner"]}
    return {name: value - before[name] for name, value in now.items() if value != before[name]}


def test_a_veth_gets_tc(at_tc: World) -> None:
    """XDP on a veth would have its peer cut large packets."""
    assert at_tc.datapath.director == "director_tc"
    assert not has_xdp(UPLINK)
    assert [one.program for one in attached(UPLINK)] == [
        "director_tc",
        "egress_in",
        "guard",
    ]


def test_a_card_gets_xdp() -> None:
    """Not a virtual device, and a driver that runs it; nothing here is one."""
    device = replace(interface("lo"), kind=None)
    assert not suits_xdp(device)  # no driver
    assert not suits_xdp(replace(device, kind="veth"))


@pytest.mark.parametrize(
    "frame",
    [
        tcp(REMOTE, THERE, macs=FROM_WIRE),
        udp(REMOTE, THERE, bytes(1400), macs=FROM_WIRE),
        udp(NEIGHBOURS_CLIENT, THERE, macs=FROM_WIRE),
        error("203.0.113.9:0", "198.51.100.10:0", udp(THERE, REMOTE)[14:]),
        error("198.51.100.10:0", "198.51.100.10:0", udp(THERE, NEIGHBOURS_CLIENT)[14:]),
    ],
)
def test_what_is_steered_leaves(at_tc: World, frame: bytes) -> None:
    """By the guard, too, although its source may be another server's."""
    with wire() as far:
        far.send(frame)
        arrived = far.recv(2048)
    assert arrived == at_tc.director_tc(frame).frame
    macs = ":".join(f"{byte:02x}" for byte in arrived[:6]), ":".join(f"{byte:02x}" for byte in arrived[6:12])
    assert macs == (NEIGHBOUR_MAC, UPLINK_MAC)


def test_only_what_came_in_by_the_uplink_is_handed_over(at_tc: World) -> None:
    frame = udp(NEIGHBOURS_CLIENT, THERE, macs=(UPLINK_MAC, NEIGHBOUR_MAC))
    assert at_tc.guard(frame, came_by=UPLINK).verdict == "next"
    assert at_tc.guard(frame, came_by="cl").reason == "guard_foreign"
    assert at_tc.guard(frame).reason == "guard_foreign"
    for to in (HERE, NOBODY, "203.0.113.9:80"):
        other = udp(NEIGHBOURS_CLIENT, to, macs=(UPLINK_MAC, NEIGHBOUR_MAC))
        assert at_tc.guard(other, came_by=UPLINK).reason == "guard_foreign"


def test_a_tag_that_the_kernel_took_off_is_still_a_tag(at_tc: World) -> None:
    """Another network's packet, whatever its addresses."""
    frame = tcp(REMOTE, THERE, macs=FROM_WIRE)
    assert counted(at_tc, frame) == {"steered": 1}
    assert counted(at_tc, tagged(frame)) == {}


def test_a_frame_for_another_address_is_left_alone(at_tc: World) -> None:
    """A switch floods what it does not know: the server that it is for gets it as well."""
    for to in (THERE, HERE, NOBODY):
        assert counted(at_tc, tcp(REMOTE, to, macs=(GATEWAY_MAC, NEIGHBOUR_MAC))) == {}


def hooks() -> list[Attached]:
    """Those that replies meet."""
    return [one for one in attached(UPLINK) if one.hook != "tcx egress"]


def names_at_tc(*programs: str) -> list[Attached]:
    return [Attached(UPLINK, "tcx ingress", name) for name in programs]


def test_exchanged_while_it_runs(mount: Path) -> None:
    """An agent that is told otherwise takes over: the tables stay, the other director goes."""
    at_tc = names_at_tc("director_tc", "egress_in")
    behind = names_at_tc("remote", "egress_in")
    in_xdp = [Attached(UPLINK, "xdp", "director"), *behind]
    steps = (("tc", at_tc), ("xdp", in_xdp), ("auto", at_tc), (None, at_tc), ("xdp", in_xdp))
    for attach, expected in steps:
        datapath = opened(mount, attach)
        assert sorted(hooks(), key=str) == sorted(expected, key=str)
        order = [one.program for one in hooks()]
        assert order[-1] == "egress_in"
        frame = tcp(REMOTE, THERE, macs=FROM_WIRE)
        assert World(datapath).director_tc(frame).outcome == "steered"
        directors = {one.program for one in hooks() if one.program.startswith("director")}
        assert {pin for pin in pins(mount) if "director" in pin} == {
            f"links/{name}@{UPLINK}" for name in directors
        }
        datapath.close()
    opened(mount, "tc").remove()
    assert hooks() == []


def test_the_last_packet_dropped_is_the_directors(at_tc: World) -> None:
    at_tc.director_tc(tcp(REMOTE, NOBODY, macs=FROM_WIRE))
    drop = next(drop for drop in at_tc.datapath.drops() if drop.reason.name == "NO_OWNER")
    assert drop.last
    assert (drop.last.hook, drop.last.interface) == ("director", UPLINK)
