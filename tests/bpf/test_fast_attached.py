"""By what on-ramps are attached, and the programs of IPv6, which are not attached but handed frames (bpf/handed.h)."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bpf import families
from tests.bpf.frames import FROM_WIRE, REMOTE, udp
from tests.bpf.kernel_objects import opened, running
from tests.bpf.short_way import attached, check_passed_in, established
from tests.bpf.world import LIMITS, ME, ONRAMP, ONRAMP2, UPLINK, World, state

from softunicast.core.errors import HostError
from softunicast.kernel import abi
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.handed import HANDED
from softunicast.kernel.objects import ATTACH_TCX_EGRESS, ATTACH_TCX_INGRESS
from softunicast.kernel.words import index_key

FAMILIES = (4, 6)
NOBODY = "198.51.100.10:9000"


def attachment(world: World, interface: str = ONRAMP) -> tuple[bool, int]:
    """Whether XDP is attached, and the size of replies of either family up to which it may hand them over."""
    found = set()
    for version in FAMILIES:
        with families.family(version):
            entry = world.datapath.map("onramps").get(world.index[interface].to_bytes(4, "little"))
        assert entry
        found.add(abi.Onramp.unpack(entry).xdp_mtu)
    [mtu] = found
    pinned = (world.datapath.folder / "links" / f"fast@{interface}").exists()
    return pinned, mtu


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
        world.datapath.close()


def test_replies_that_xdp_could_not_hand_over(tmp_path: Path, family: int) -> None:
    """The clients' end takes nothing from XDP: replies go by tc, or they would be lost without a word."""
    with attached(tmp_path, {ONRAMP: "xdp"}, UPLINK) as world:
        world.reset()
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


# -- handed on


def in_ipv6(world: World) -> bytes:
    """With tables of IPv6: a packet that the director of IPv6 drops, and nobody else cares about."""
    world.reset()
    return udp(REMOTE, NOBODY, macs=FROM_WIRE)


def test_what_nobody_takes_goes_on_to_tc(mount: Path) -> None:
    """Nothing is lost when the kernel finds no program to hand a frame to."""
    datapath = running(mount)
    world = World(datapath)
    with families.family(6):
        frame = in_ipv6(world)
        assert world.director(frame).reason == "no_owner"
        for place in range(len(HANDED["handed"])):
            assert datapath.map("handed").delete(index_key(place))
        for run in (world.director, world.fast):
            ran = run(frame)
            assert (ran.verdict, ran.counted, ran.frame) == ("pass", {}, frame)
    datapath.remove()


def test_no_frame_is_without_its_program(mount: Path) -> None:
    """While one agent after the other takes over, the director that was attached first is asked all the time."""
    first = running(mount)
    world = World(first)
    with families.family(6):
        frame = in_ipv6(world)
        stop, verdicts = threading.Event(), list[str]()

        def ask() -> None:
            while not stop.is_set():
                verdicts.append(world.run("director", frame, UPLINK).verdict)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(3):
                before = len(verdicts)
                opened(mount).close()
                assert len(verdicts) > before
        finally:
            stop.set()
            asking.join()
    assert set(verdicts) == {"drop"}
    first.close()
    opened(mount).remove()


def test_without_a_process_the_pin_keeps_the_programs(mount: Path) -> None:
    datapath = running(mount)
    with families.family(6):
        frame = in_ipv6(World(datapath))
    before = World(datapath).counters()["no_owner"]
    datapath.close()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("upp", 0))
        wire.send(frame)
    again = opened(mount)
    deadline = time.monotonic() + 5
    while World(again).counters()["no_owner"] == before:
        assert time.monotonic() < deadline
    again.remove()


def test_what_an_agent_before_attached_beside_goes(mount: Path) -> None:
    """It attached the programs of both families. Each packet meets those of IPv6 at least once meanwhile."""
    first = running(mount)
    first.apply(state())
    wanted = {pin.name for pin in (mount / "links").iterdir()}
    beside = (
        ("director_tc6", "remote6", UPLINK, ATTACH_TCX_INGRESS),
        ("egress6", "egress_in6", UPLINK, ATTACH_TCX_INGRESS),
        ("guard6", "guard6", UPLINK, ATTACH_TCX_EGRESS),
        ("egress6", "egress_out6", ONRAMP, ATTACH_TCX_INGRESS),
    )
    for name, program, interface, kind in beside:
        index = socket.if_nametoindex(interface)
        first._attach(name, program, interface, index, kind)
    first.close()
    second = opened(mount)
    second.apply(state())
    assert {pin.name for pin in (mount / "links").iterdir()} == wanted
    world = World(second)
    with families.family(6):
        world.reset()
        assert world.out(udp()).outcome == "out"
    second.remove()
