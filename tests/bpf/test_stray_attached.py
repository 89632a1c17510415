"""Where the programs are attached that refuse strays (test_stray.py): to the cgroups of agreements, for as long."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cffi import FFI
from tests.bpf.far_end import Wire, far_end, made_in, prepare, to
from tests.bpf.programs import cgroup, cgroup_root, inside
from tests.bpf.second_card import OTHER_END, THERE, refused, second_card
from tests.bpf.world import ATTACH, LIMITS, ME, UPLINK, World, state

from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.errors import HostError
from softunicast.kernel import cgroups, strays
from softunicast.kernel.agreements import Agreements
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.joining import Joining

FAMILIES = (4, 6)
_ffi = FFI()
_ffi.cdef("int bpf_prog_attach(int prog, int target, int kind, unsigned flags);")
_ffi.cdef("int bpf_prog_detach2(int prog, int target, int kind);")
ALONE = _ffi.dlopen("libbpf.so.1")


@pytest.fixture(scope="module")
def other(sockets_world: World) -> Iterator[World]:
    with second_card():
        yield sockets_world


@pytest.fixture
def world(other: World, family: int) -> World:
    return prepare(other)


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    with far_end(OTHER_END) as made:
        yield made


def links(world: World) -> set[str]:
    return {pin.name for pin in (world.of_both.folder / "links").glob("socket_packet*-*")}


def check_refused(world: World, wire: Wire) -> None:
    with made_in(None, socket.SOCK_DGRAM) as asks, refused(world, wire):
        asks.sendto(b"question", to(THERE))


def test_they_come_and_go_with_an_agreement(world: World, wire: Wire) -> None:
    """Of `attach` and of `run`; other programs meet none."""
    with cgroup() as there, Agreements.open(world.of_both.folder) as table:
        joining = Joining(table, cgroup_root())
        assert joining.attach(there, "gb", lasts=False)
        number = cgroups.number(there)
        assert links(world) == {f"socket_packet-{number}"}
        with inside(there):
            check_refused(world, wire)
        joining.detach(there)
        assert not links(world)
        with inside(there):
            joined = joining.join("gb")
            assert len(links(world)) == 1
            check_refused(world, wire)
            joining.leave(joined)
            assert not links(world)


def test_who_takes_the_place_of_what_was_attached_meets_them_at_once(world: World, wire: Wire) -> None:
    """They are at the cgroup above, for as long as one that lasts is below it; what is beside it sends as ever."""
    with (
        cgroup() as above,
        cgroup(above) as there,
        cgroup(above) as beside,
        Agreements.open(world.of_both.folder) as table,
    ):
        joining = Joining(table, cgroup_root())
        attached = {f"socket_packet-{cgroups.number(above)}"}
        joining.attach(there, "gb")
        joining.attach(beside, "gb")
        assert links(world) == attached
        joining.detach(beside)
        there.rmdir()
        joining.tidy()
        assert links(world) == attached
        there.mkdir()
        with inside(there):
            check_refused(world, wire)
        with inside(beside), made_in(None, socket.SOCK_DGRAM) as asks:
            asks.sendto(b"question", to(THERE))
        joining.attach(there, "gb", lasts=False)
        assert links(world) == {
            name.replace(str(cgroups.number(above)), str(cgroups.number(there))) for name in attached
        }
        joining.detach(there)
        assert not links(world)


def test_detached_is_detached_at_once(world: World, wire: Wire) -> None:
    """Not when the kernel comes to it: or what is refused a moment later further down is counted twice."""
    with cgroup() as there, Agreements.open(world.of_both.folder) as table, inside(there):
        joining = Joining(table, cgroup_root())
        for _ in range(10):
            joining.attach(there, "gb", lasts=False)
            joining.detach(there)
            joined = joining.join("gb")
            try:
                check_refused(world, wire)
            finally:
                joining.leave(joined)


def test_one_that_begins_while_another_is_tidied_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes the programs away looks again."""
    with cgroup() as there, Agreements.open(world.of_both.folder) as table:
        number, real = cgroups.number(there), strays.detach

        def detached(folder: Path, gone: int) -> None:
            real(folder, gone)
            table.set(number, "gb")

        strays.attach(table.folder, there)
        monkeypatch.setattr(strays, "detach", detached)
        Joining(table, cgroup_root()).tidy()
        assert len(links(world)) == 1
        monkeypatch.undo()
        Joining(table, cgroup_root()).detach(there)
        assert not links(world)


def test_a_cgroup_that_is_gone(world: World) -> None:
    with Agreements.open(world.of_both.folder) as table:
        joining = Joining(table, cgroup_root())
        with cgroup() as there:
            joining.attach(there, "gb", lasts=False)
        assert len(links(world)) == 1
        joining.tidy()
        assert not links(world)


def test_an_agent_that_starts_attaches_them(mount: Path, family: int) -> None:
    """Also for agreements that another version has made; and lets go of those that are over."""
    first = Datapath.open(mount, UPLINK, ME, LIMITS, ATTACH, sockets=SocketsConfig())
    first.apply(state())
    with cgroup() as old, cgroup() as there, Agreements.open(mount) as table:
        strays.attach(mount, old)
        table.set(cgroups.number(there), "gb")
        first.close()
        second = Datapath.open(mount, UPLINK, ME, LIMITS, ATTACH, sockets=SocketsConfig())
        world = World(second)
        number = cgroups.number(there)
        assert links(world) == {f"socket_packet-{number}"}
        second.close()
        third = Datapath.open(mount, UPLINK, ME, LIMITS, ATTACH, sockets=SocketsConfig(enabled=False))
        assert not links(world)
        third.remove()


def test_a_program_of_somebody_else_that_wants_to_be_alone(world: World) -> None:
    """One clear error, and nothing is changed."""
    stray = world.of_both._objects["stray"].programs["socket_packet"]
    with cgroup() as above, cgroup(above) as there, Agreements.open(world.of_both.folder) as table:
        target = os.open(above, os.O_RDONLY | os.O_DIRECTORY)
        try:
            assert ALONE.bpf_prog_attach(stray, target, 1, 0) == 0
            with pytest.raises(HostError, match=r"^another BPF program at .* fix: find it with bpftool"):
                Joining(table, cgroup_root()).attach(there, "gb")
            assert (table.list(), links(world)) == ((), set())
        finally:
            ALONE.bpf_prog_detach2(stray, target, 1)
            os.close(target)
