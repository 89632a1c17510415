"""The hooks as they are attached: with the data path, found by the next one, gone with it; beside programs of others;
and what the numbers of cgroups stand for."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bpf.kernel_objects import numbers, pins, wait_until_gone
from tests.bpf.programs import (
    PORTS,
    REMOTE,
    SLICE,
    SLOT,
    Program,
    agreed,
    cgroup,
    cgroup_root,
    inside,
    on_loopback,
    refusal_of,
)
from tests.bpf.world import ADDRESS, ATTACH, LIMITS, ME, UPLINK, World, state

from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.errors import HostError, UnknownNameError
from softunicast.kernel import cgroups, socket_hooks, strays
from softunicast.kernel.agreements import Agreement, Agreements
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.libbpf import check, ffi, load_library
from softunicast.kernel.objects import BpfObject

LINKS = {f"links/{program}" for _, program, *_ in (*socket_hooks.HOOKS, socket_hooks.REMADE)}
WANTED = state(ports=PORTS, mine=(SLOT,), theirs=(), expired=())


def opened(mount: Path, sockets: SocketsConfig | None) -> Datapath:
    return Datapath.open(mount, UPLINK, ME, LIMITS, ATTACH, sockets=sockets)


@pytest.fixture
def small(sockets_world: World) -> Iterator[World]:
    sockets_world.reset(WANTED)
    with on_loopback(str(ADDRESS)):
        yield sockets_world


# -- with the data path


def test_they_come_and_go_with_it(mount: Path) -> None:
    datapath = opened(mount, SocketsConfig())
    held = numbers(datapath)
    assert pins(mount) >= LINKS
    datapath.remove()
    wait_until_gone(held)
    assert not pins(mount)


def test_the_next_one_takes_them_over(mount: Path) -> None:
    """The links stay, the agreements, what sockets have claimed and what they are in; only the programs are new."""
    first = opened(mount, SocketsConfig())
    first.apply(WANTED)
    with (
        cgroup() as made,
        Agreements.open(mount) as agreements,
        on_loopback(str(ADDRESS)),
        Program("ipv4") as one,
    ):
        agreements.set(cgroups.number(made), "gb")
        with inside(made):
            bound = one.bind("udp", f"{ADDRESS}:0")
            first.close()
            assert one.connect("udp")[0] == str(ADDRESS)  # nobody is there
            before = pins(mount)
            second = opened(mount, SocketsConfig())
            assert second.adopted
            number = cgroups.number(made)
            assert pins(mount) - before == {f"links/{strays.PROGRAM}-{number}"}
            port = one.local(bound)[1]
            assert {one.connect("udp")[1] for _ in range(PORTS - 2)} | {port} < SLICE
            with refusal_of(errno.EADDRNOTAVAIL):
                one.connect("udp")
            bound.close()
            assert one.connect("udp")[1] == port
    second.remove()


def test_they_go_when_they_are_not_wanted_any_more(mount: Path) -> None:
    opened(mount, SocketsConfig()).close()
    second = opened(mount, SocketsConfig(enabled=False))
    assert not pins(mount) & LINKS
    second.remove()


def test_without_them_nothing_is_looked_after(world: World) -> None:
    """The guard's question, too: other worlds have no cgroup2."""
    with on_loopback(str(ADDRESS)), Program("ipv4") as program:
        before = world.counters()
        made = program.bind("udp", f"{ADDRESS}:2049")
        program.connect("udp", REMOTE, made)
        made.send(b"x")
        assert world.counters() == before


def test_cgroup2_cannot_be_found(mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "find_root", lambda: None)
    with pytest.raises(HostError, match=r"^no cgroup2 is mounted, .* fix: mount one: "):
        opened(mount, SocketsConfig(enabled=True))
    with pytest.raises(HostError, match=r"^/sys is no cgroup of cgroup2; fix: "):
        opened(mount, SocketsConfig(cgroup="/sys"))
    assert not pins(mount)
    datapath = opened(mount, SocketsConfig())
    assert not pins(mount) & LINKS
    datapath.remove()


def test_only_a_part_of_the_programs(mount: Path) -> None:
    """Where another cgroup than the root is named, what is outside of it is not seen."""
    with cgroup() as part, on_loopback(str(ADDRESS)):
        datapath = opened(mount, SocketsConfig(cgroup=str(part)))
        datapath.apply(WANTED)
        with Program("ipv4") as program:
            program.bind("tcp", f"{ADDRESS}:2050")
            with inside(part), refusal_of(errno.EPERM):
                program.bind("tcp", f"{ADDRESS}:2051")
        datapath.remove()


def test_excused_cgroups_are_found_when_they_come(mount: Path) -> None:
    name = f"sutest-{os.getpid()}-late"
    folder = cgroup_root() / name
    datapath = opened(mount, SocketsConfig(excused=(f"/{name}",)))
    datapath.apply(WANTED)
    folder.mkdir()
    try:
        with on_loopback(str(ADDRESS)), Program("ipv4") as program, inside(folder):
            with refusal_of(errno.EPERM):
                program.bind("tcp", f"{ADDRESS}:2050")
            datapath.apply(WANTED)
            program.bind("tcp", f"{ADDRESS}:2050")
        with Agreements.open(mount) as agreements:
            assert agreements.list() == (Agreement(cgroups.number(folder), None),)
            datapath.close()
            datapath = opened(mount, SocketsConfig())
            assert agreements.list() == ()
    finally:
        folder.rmdir()
        datapath.remove()


def descriptors() -> Counter[str]:
    """Of this process: how many of what."""
    found = Counter[str]()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the folder itself
            found[descriptor.readlink().name] += 1
    return found


def test_one_descriptor_of_each_map_and_program(mount: Path) -> None:
    """However many objects name the map; and none is left."""
    kinds = ("anon_inode:bpf-map", "anon_inode:bpf-prog", "anon_inode:bpf_link")
    before = descriptors()
    datapath = opened(mount, SocketsConfig())
    more = descriptors() - before
    found = numbers(datapath)
    assert [more[kind] for kind in kinds] == [len(found[kind]) for kind in ("map", "prog", "link")]
    datapath.remove()
    assert not [kind for kind in kinds if (descriptors() - before)[kind]]


# -- beside others


@contextmanager
def attached(folder: Path, program: int, kind: int) -> Iterator[None]:
    """A program of somebody else, on a cgroup."""
    target = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    options = ffi.new("struct bpf_link_create_opts *")
    options.sz = ffi.sizeof(options[0])
    link = check(load_library().bpf_link_create(program, target, kind, options), "attaching")
    os.close(target)
    try:
        yield
    finally:
        os.close(link)


@pytest.mark.parametrize("where", ["below", "at the root"])
def test_a_program_of_somebody_else(small: World, where: str) -> None:
    """Both say yes; and when that one says no, it is no, and nothing is claimed for long."""
    others = BpfObject.load("sockets")  # knows no tables of anybody, so it lets everything pass
    try:
        with agreed(small) as folder, Program("ipv4") as program:
            target = folder if where == "below" else cgroup_root()
            with attached(target, others.programs["socket_connect"], 10):
                assert program.fill("tcp", PORTS) == SLICE
                with refusal_of(errno.EADDRNOTAVAIL):
                    program.connect("tcp")
    finally:
        others.close()


# -- agreements and cgroups


def test_agreements_without_an_agent(small: World) -> None:
    small.datapath.apply(replace(small.datapath.state, pools={**WANTED.pools, "de": WANTED.pools["gb"]}))
    with Agreements.open(small.datapath.folder) as agreements:
        assert set(agreements.pools()) == {"gb", "de"}
        agreements.set(7, "de")
        agreements.set(5, "gb")
        agreements.excuse(9)
        assert agreements.list() == (Agreement(5, "gb"), Agreement(7, "de"), Agreement(9, None))
        with pytest.raises(UnknownNameError, match=r"^no pool 'fr'; fix: name one of: de, gb$"):
            agreements.set(5, "fr")
        number = agreements.pools()["de"]
        small.datapath.apply(WANTED)  # without that pool
        assert agreements.list() == (Agreement(5, "gb"), Agreement(7, f"#{number}"), Agreement(9, None))
        assert [agreements.remove(number) for number in (5, 7, 9, 5)] == [True, True, True, False]
        assert agreements.list() == ()


def test_an_agreement_never_comes_to_mean_another_pool(small: World) -> None:
    """Its pool goes, another one comes: sockets are refused, and served again when it is back."""
    with agreed(small), Program("ipv4") as program:
        program.connect("udp")
        pool = WANTED.pools["gb"]
        small.datapath.apply(replace(WANTED, pools={}, onramps={}))
        small.datapath.apply(replace(WANTED, pools={"other": pool}, onramps={}))
        with refusal_of(errno.EADDRNOTAVAIL):
            program.connect("udp")
        small.datapath.apply(WANTED)
        assert program.connect("udp")[0] == str(ADDRESS)


def test_where_no_data_path_is(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"^there is no .*/maps/agreements: .* fix: start the agent$"):
        Agreements.open(tmp_path)


def test_the_cookie_is_the_namespaces(small: World) -> None:
    mine = socket_hooks.netns_cookie()
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as other:
        assert int.from_bytes(other.getsockopt(socket.SOL_SOCKET, 71, 8), "little") == mine != 0
