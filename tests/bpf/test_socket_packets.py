"""What the other programs make of the packets of sockets: replies go up to the kernel, and the guard lets nobody
begin who is in no agreement. Ports as in programs.py."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from tests.bpf import families
from tests.bpf.frames import FROM_WIRE, error, quoted, tcp, udp
from tests.bpf.programs import KINDS, PORTS, REMOTE, SLOT, Program, agreed, counted, excused, on_loopback
from tests.bpf.world import ADDRESS, World, state

FAMILIES = (4, 6)


@pytest.fixture
def small(sockets_world: World, family: int) -> Iterator[World]:
    sockets_world.reset(state(ports=PORTS, mine=(SLOT,), theirs=(SLOT + 1,), expired=()))
    with on_loopback(str(ADDRESS)):
        yield sockets_world


@pytest.fixture
def program(small: World) -> Iterator[Program]:
    with Program(f"ipv{families.chosen}") as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_goes_up_to_the_kernel(small: World, program: Program, kind: str) -> None:
    """While its claim lives and afterwards; a hop limit of 1 is enough to arrive."""
    with agreed(small):
        port = program.connect(kind)[1]
    make: Callable[..., bytes] = tcp if kind == "tcp" else udp
    for _ in range(2):
        for frame in (
            make(REMOTE, f"{ADDRESS}:{port}", macs=FROM_WIRE, ttl=1),
            error("203.0.113.9:0", f"{ADDRESS}:{port}", quoted(make(f"{ADDRESS}:{port}", REMOTE)), ttl=1),
        ):
            ran = small.back(frame)
            assert (ran.verdict, dict(ran.counted)) == ("next", {})
        small.expire()


def test_the_port_of_a_bound_socket_is_for_everybody(small: World, program: Program) -> None:
    with agreed(small):
        program.bind("udp", f"{ADDRESS}:2050")
    ran = small.back(udp("203.0.113.77:9999", f"{ADDRESS}:2050", macs=FROM_WIRE))
    assert (ran.verdict, dict(ran.counted)) == ("next", {})
    program.close()
    assert small.claims() == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("told", [True, False])
def test_the_guard_lets_no_intruder_begin(small: World, program: Program, kind: str, told: bool) -> None:
    """One that got past the hook of bind: a socket from before that was there, for example."""
    with excused(small):
        made = program.bind(kind, f"{ADDRESS}:2051")
    if not told:
        assert small.datapath.map("agreed").delete(made.fileno().to_bytes(4, "little"))
    before = small.counters()
    program.connect(kind, REMOTE, made)
    if kind == "udp":
        made.send(b"x")
    assert counted(small, before) == ({} if told else {"guard_socket": 1})


def test_the_guard_asks_the_cgroup_when_no_hook_has(small: World, program: Program) -> None:
    """Of the program that made the socket, while that is in an agreement; with the first packet it is remembered."""
    with agreed(small):
        one, other = (forgotten(small, program, f"{ADDRESS}:{port}") for port in (2051, 2052))
        before = small.counters()
        one.send(b"x")
        assert counted(small, before) == {}
    one.send(b"x")
    assert counted(small, before) == {}
    other.send(b"x")
    assert counted(small, before) == {"guard_socket": 1}


def forgotten(small: World, program: Program, local: str) -> socket.socket:
    """A socket in an agreement of which no hook has told."""
    made = program.bind("udp", local)
    program.connect("udp", REMOTE, made)
    assert small.datapath.map("agreed").delete(made.fileno().to_bytes(4, "little"))
    return made


def test_a_listener_on_any_address_may_answer(small: World, program: Program) -> None:
    """What it says is not the beginning of anything."""
    server = program.bind("tcp", "0.0.0.0:2052", reuse=True)
    server.listen()
    before = small.counters()
    ran = small.guard(tcp(f"{ADDRESS}:2052", REMOTE, "SA"))
    assert ran.verdict == "next"
    assert counted(small, before) == {}
