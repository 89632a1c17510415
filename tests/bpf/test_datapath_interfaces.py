"""Interfaces come, go, and are made anew under their old names; the data path follows."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from tests.bpf.frames import FROM_WIRE, ONRAMP_MAC, REMOTE, UPLINK_MAC, tcp, udp
from tests.bpf.kernel_objects import (
    has_xdp,
    number_of,
    numbers,
    opened,
    pins,
    running,
    wait_until_gone,
)
from tests.bpf.world import (
    ONRAMP,
    ONRAMP2,
    UPLINK,
    World,
    add_pair,
    state,
)

from softunicast.core.errors import HostError
from softunicast.kernel import abi
from softunicast.kernel.words import index_key

NOBODY = "198.51.100.10:9000"


def make_anew(name: str, mac: str, address: str) -> None:
    with IPRoute() as netlink:
        netlink.link("del", index=socket.if_nametoindex(name))
    add_pair(name, f"{name}-peer", mac, address)
    (Path("/proc/sys/net/ipv4/conf") / name / "forwarding").write_text("1")


@pytest.mark.parametrize("restarted", [False, True])
def test_an_onramp_made_anew(mount: Path, restarted: bool) -> None:
    """Under its old name it is another interface: without the program, its clients would go untranslated."""
    datapath = running(mount)
    old = World(datapath).index[ONRAMP]
    if restarted:
        datapath.close()
    make_anew(ONRAMP, ONRAMP_MAC, "10.0.0.1/24")
    if restarted:
        datapath = opened(mount)
    assert datapath.apply(state()) == (0 if restarted else 1)  # opening attaches it
    assert datapath.read() == state()
    world = World(datapath)
    assert world.index[ONRAMP] != old
    assert world.out(udp()).outcome == "out"
    assert set(datapath.map("onramps").every_key()) == {
        index_key(world.index[name]) for name in (ONRAMP, ONRAMP2)
    }
    assert datapath.apply(state()) == 0
    held = numbers(datapath)
    datapath.remove()
    wait_until_gone(held)


def test_an_onramp_that_is_gone(mount: Path) -> None:
    running(mount).close()
    with IPRoute() as netlink:
        netlink.link("del", index=socket.if_nametoindex(ONRAMP))
    datapath = opened(mount)
    with pytest.raises(HostError, match="no interface cl"):
        datapath.apply(state())
    wanted = state(onramps={ONRAMP2: "gb"})
    datapath.apply(wanted)
    assert datapath.read() == wanted
    assert {pin for pin in pins(mount) if "egress_out" in pin} == {f"links/egress_out@{ONRAMP2}"}
    datapath.remove()


def test_an_uplink_made_anew(mount: Path) -> None:
    running(mount).close()
    make_anew(UPLINK, UPLINK_MAC, "192.0.2.1/24")
    datapath = opened(mount)
    assert has_xdp(UPLINK)
    settings = abi.Settings.unpack(datapath.map("settings").get(index_key(0)) or b"")
    assert settings.uplink == socket.if_nametoindex(UPLINK)
    assert datapath.apply(state()) == 0
    assert World(datapath).director(tcp(REMOTE, NOBODY, macs=FROM_WIRE)).reason == "no_owner"
    datapath.remove()


def test_another_uplink(mount: Path) -> None:
    datapath = running(mount)
    held = numbers(datapath)
    datapath.close()
    add_pair("upl2", "upp2", "02:00:00:00:00:11", "192.0.2.5/24")
    datapath = opened(mount, "upl2")
    assert (has_xdp(UPLINK), has_xdp("upl2")) == (False, True)
    assert {pin for pin in pins(mount) if "@upl" in pin} == {
        f"links/{program}@upl2" for program in ("director", "remote", "guard", "egress_in")
    }
    assert datapath.read() == state()
    now = numbers(datapath)
    assert len(now["link"] & held["link"]) == 2  # the on-ramps
    datapath.remove()
    wait_until_gone(held)


def test_an_onramp_that_is_not_wanted_any_more(mount: Path) -> None:
    datapath = running(mount)
    held = number_of(datapath._links[f"egress_out@{ONRAMP}"].fd)
    datapath.apply(state(onramps={ONRAMP2: "gb"}))
    wait_until_gone({"prog": set(), "map": set(), "link": {held}})
    assert f"links/egress_out@{ONRAMP}" not in pins(mount)
    datapath.remove()


def test_descriptors_do_not_pile_up(mount: Path) -> None:
    """However often an on-ramp changes its pool."""
    datapath = running(mount)
    pools = {name: state().pools["gb"] for name in ("gb", "de")}

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    datapath.apply(replace(state(), pools=pools))
    before = descriptors()
    for step in range(10):
        datapath.apply(replace(state(), pools=pools, onramps={ONRAMP: ("gb", "de")[step % 2], ONRAMP2: "gb"}))
    assert descriptors() <= before  # fewer, when something else was collected meanwhile
    datapath.remove()
