"""The life of a data path: opened, adopted, moved, removed; refused when it does not fit what is there."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bpf.frames import FROM_WIRE, REMOTE, local_end, tcp, udp
from tests.bpf.kernel_objects import (
    Numbers,
    has_xdp,
    left_of,
    number_of,
    numbers,
    opened,
    pins,
    running,
    wait_until_gone,
)
from tests.bpf.world import (
    LIMITS,
    ME,
    NEIGHBOUR,
    UPLINK,
    World,
    state,
)

from softunicast.core.config import Limits
from softunicast.core.errors import HostError, KernelError
from softunicast.core.slices import Slice
from softunicast.kernel import abi
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.libbpf import load_library
from softunicast.kernel.objects import Link, map_of_fd
from softunicast.kernel.passing import attach_pass
from softunicast.kernel.words import index_key

NOBODY = "198.51.100.10:9000"


def test_removed_leaves_nothing(mount: Path) -> None:
    datapath = running(mount)
    held = numbers(datapath)
    assert [len(held[kind]) for kind in ("prog", "link")] == [17, 6]
    assert left_of(held) == held
    datapath.remove()
    wait_until_gone(held)
    assert pins(mount) == set()
    assert not has_xdp(UPLINK)
    datapath.remove()  # nothing left to do


def test_the_kernel_carries_on_without_a_process(mount: Path) -> None:
    """A frame that arrives while nobody has the data path open is dropped and counted all the same."""
    datapath = running(mount)
    held = numbers(datapath)
    before = World(datapath).counters()
    datapath.close()
    assert left_of(held)["link"] == held["link"]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("upp", 0))
        wire.send(tcp(REMOTE, NOBODY, macs=FROM_WIRE))
    again = opened(mount)
    counted = World(again).counters()
    assert counted["no_owner"] == before["no_owner"] + 1
    again.remove()
    wait_until_gone(held)


def test_adopted_with_tables_and_flows(mount: Path) -> None:
    datapath = running(mount)
    held = numbers(datapath)
    local = local_end(World(datapath).out(tcp()).frame)
    before, counters = World(datapath).claims(), World(datapath).counters()
    datapath.close()

    again = opened(mount)
    assert (datapath.adopted, again.adopted) == (False, True)
    assert again.state == again.read() == state()
    assert again.apply(state()) == 0
    assert World(again).claims() == before
    assert World(again).counters() == counters
    ran = World(again).out(tcp(flags="A"))
    assert (dict(ran.counted), local_end(ran.frame)) == ({"out": 1}, local)
    now = numbers(again)
    assert now["link"] == held["link"]  # the attachments never went away
    assert now["map"] & held["map"] >= {
        number_of(again.map(name).fd) for name in ("claims", "flows", "slots")
    }
    wait_until_gone({"prog": held["prog"], "map": set(), "link": set()})
    again.remove()
    wait_until_gone(now)


@pytest.mark.parametrize(
    "limits", [replace(LIMITS, flows_max=8), replace(LIMITS, slots_max=8), replace(LIMITS, addresses_max=8)]
)
def test_maps_of_another_size_are_refused(mount: Path, limits: Limits) -> None:
    datapath = running(mount)
    held, kept = numbers(datapath), pins(mount)
    datapath.close()
    with pytest.raises(
        KernelError, match=r"is pinned with \d+ entries, the configuration asks for \d+; fix: "
    ):
        Datapath.open(mount, UPLINK, ME, limits)
    check_unharmed(mount, held, kept)


def test_maps_of_another_layout_are_refused(mount: Path) -> None:
    datapath = running(mount)
    held, kept = numbers(datapath), pins(mount)
    settings = abi.Settings.unpack(datapath.map("settings").get(index_key(0)) or b"")
    datapath.map("settings").set(index_key(0), settings._replace(abi_version=99).pack())
    datapath.close()
    with pytest.raises(KernelError, match="has layout 99, this version of softunicast layout 4; fix: "):
        opened(mount)
    table = map_of_fd(load_library().bpf_obj_get(str(mount / "maps" / "settings").encode()), "settings")
    assert abi.Settings.unpack(table.get(index_key(0)) or b"").abi_version == 99
    table.set(index_key(0), settings.pack())
    os.close(table.fd)
    check_unharmed(mount, held, kept)


def check_unharmed(mount: Path, held: Numbers, kept: set[str]) -> None:
    """What was refused has changed nothing: the same attachments, pins and tables."""
    assert left_of(held)["link"] == held["link"]
    assert pins(mount) == kept
    again = opened(mount)
    assert again.adopted
    assert again.read() == state()
    again.remove()


def test_an_uplink_that_is_not_there(mount: Path) -> None:
    with pytest.raises(HostError, match="no interface nothere"):
        opened(mount, "nothere")
    assert pins(mount) == set()
    datapath = running(mount)
    held, kept = numbers(datapath), pins(mount)
    datapath.close()
    with pytest.raises(HostError, match="no interface nothere"):
        opened(mount, "nothere")
    check_unharmed(mount, held, kept)


def test_an_uplink_that_somebody_else_has_a_program_on(mount: Path) -> None:
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", mount], check=True)
    attach_pass(UPLINK, mount / "theirs")
    with pytest.raises(KernelError, match=r"attaching director@upl: .*; fix: .*another XDP program"):
        opened(mount)
    assert pins(mount) == {"theirs"}
    (mount / "theirs").unlink()


@pytest.mark.parametrize("attachments", range(3))
def test_opening_that_breaks_off(mount: Path, monkeypatch: pytest.MonkeyPatch, attachments: int) -> None:
    """At any attachment: what was made is undone; what was adopted goes on."""
    real, allowed = Link.attach, [attachments]

    def attach(*arguments: Any) -> Link:
        allowed[0] -= 1
        if allowed[0] < 0:
            raise KernelError("no more attachments")
        return real(*arguments)

    def open_until_it_breaks() -> None:
        allowed[0] = attachments
        with monkeypatch.context() as patch:
            patch.setattr(Link, "attach", attach)
            opened(mount)

    with pytest.raises(KernelError, match="no more attachments"):
        open_until_it_breaks()
    assert pins(mount) == set()
    assert not has_xdp(UPLINK)
    datapath = running(mount)
    held, kept = numbers(datapath), pins(mount)
    datapath.close()
    with pytest.raises(KernelError, match="no more attachments"):
        open_until_it_breaks()
    check_unharmed(mount, held, kept)


def test_flows_are_listed_and_counted_by_slice(mount: Path) -> None:
    datapath = running(mount)
    world = World(datapath)
    for client in range(2, 12):
        world.out(udp(f"10.0.0.{client}:5000"))
    world.out(tcp())
    total, shown = datapath.flows(3)
    assert (total, len(shown)) == (11, 3)
    total, shown = datapath.flows(3, lambda flow: flow.protocol == "tcp")
    assert (total, [flow.client for flow in shown]) == (1, ["10.0.0.2:40000"])
    mine, other = Slice.parse("198.51.100.10:2048-4095"), Slice.parse("198.51.100.10:4096-6143")
    assert datapath.count_flows([mine, other]) == {mine: 11, other: 0}
    world.expire()
    assert datapath.flows(3) == (0, [])
    assert datapath.count_flows([mine]) == {mine: 0}
    datapath.remove()


def test_opened_under_another_name_it_stays_whose_it_was(mount: Path) -> None:
    """An agent looks at what runs before it knows whether it may take it over; until `apply` nothing changes."""
    datapath = running(mount)
    ours = World(datapath).out(tcp()).frame
    datapath.close()
    other = Datapath.open(mount, UPLINK, NEIGHBOUR, LIMITS)
    assert World(other).guard(ours).verdict == "next"
    other.remove()
