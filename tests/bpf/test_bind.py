"""Binding a shared address: for programs in an agreement, in the slices of their pool; for excused ones; and for nobody
else. The slice has 16 ports, 2048-2063; the next one is a neighbour's.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest
from tests.bpf import families
from tests.bpf.programs import HOWS, REMOTE, Program, agreed, excused, on_loopback, refusal_of
from tests.bpf.test_connect import ELSEWHERE, KINDS, PORTS, SLICE, SLOT, counted, refused
from tests.bpf.test_search import Opener
from tests.bpf.world import ADDRESS, World, state

FIRST = SLOT * PORTS
IP_BIND_ADDRESS_NO_PORT = 24
OURS, THEIRS, NOBODYS = (f"{ADDRESS}:{FIRST + offset}" for offset in (3, 16, 40))


@pytest.fixture(params=HOWS)
def how(request: pytest.FixtureRequest) -> Iterator[str]:
    chosen: str = request.param
    with families.family(6 if chosen == "ipv6" else 4):
        yield chosen


@pytest.fixture
def small(sockets_world: World, how: str) -> Iterator[World]:
    sockets_world.reset(state(ports=PORTS, mine=(SLOT,), theirs=(SLOT + 1,), expired=()))
    with on_loopback(str(ADDRESS)):
        yield sockets_world


@pytest.fixture
def program(small: World, how: str) -> Iterator[Program]:
    with agreed(small), Program(how) as made:
        yield made


def bind_refused(code: int, program: Program, kind: str, local: str, reuse: bool = False) -> None:
    with refusal_of(code):
        program.bind(kind, local, reuse)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("local", [OURS, THEIRS, NOBODYS, f"{ADDRESS}:0"])
def test_a_program_in_no_agreement_is_refused(small: World, how: str, kind: str, local: str) -> None:
    before = small.counters()
    with Program(how) as program:
        bind_refused(errno.EPERM, program, kind, local)
    assert counted(small, before) == {"bind_refused": 1}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("local", ["192.0.2.1:0", "127.0.0.1:2050", "0.0.0.0:0", f"0.0.0.0:{FIRST}"])
def test_other_addresses_are_not_ours_to_decide(small: World, how: str, kind: str, local: str) -> None:
    if how == "ipv6":
        local = local.replace("127.0.0.1", "::1")
    before = small.counters()
    with Program(how) as outside:
        outside.bind(kind, local)
    with agreed(small), Program(how) as program:
        program.bind(kind, local)
    assert counted(small, before) == {}
    assert small.claims() == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("local", [OURS, THEIRS, f"{ADDRESS}:0"])
def test_an_excused_program_binds_as_it_likes(small: World, how: str, kind: str, local: str) -> None:
    before = small.counters()
    with excused(small), Program(how) as program:
        program.connect(kind, REMOTE, program.bind(kind, local))
        assert program.connect(kind)[0] == "192.0.2.1"
    assert not [
        name for name in counted(small, before) if not name.startswith("guard")
    ]  # which watches even so


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_of_the_slice(small: World, program: Program, kind: str) -> None:
    made = program.bind(kind, OURS)
    assert program.local(made) == (str(ADDRESS), FIRST + 3)
    assert program.connect(kind, REMOTE, made) == (str(ADDRESS), FIRST + 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("local", [THEIRS, NOBODYS, f"{ADDRESS}:80", "198.51.100.77:3000"])
def test_a_port_of_others(small: World, program: Program, kind: str, local: str) -> None:
    before = small.counters()
    bind_refused(errno.EADDRNOTAVAIL, program, kind, local)
    assert counted(small, before) == {"bind_outside": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_whose_lease_has_run_out(small: World, program: Program, kind: str) -> None:
    small.datapath.apply(state(ports=PORTS, mine=(), theirs=(), expired=(SLOT,), pool=(SLOT,)))
    bind_refused(errno.EADDRNOTAVAIL, program, kind, OURS)
    bind_refused(errno.EADDRNOTAVAIL, program, kind, f"{ADDRESS}:0")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_port_is_chosen_in_the_slice(small: World, program: Program, kind: str) -> None:
    """All of them, one after the other; and none after the last."""
    ports = {program.local(program.bind(kind, f"{ADDRESS}:0"))[1] for _ in range(PORTS)}
    assert ports == SLICE
    bind_refused(errno.EADDRNOTAVAIL, program, kind, f"{ADDRESS}:0")
    port = program.local(program.made[0])[1]
    program.made.pop(0).close()
    assert program.local(program.bind(kind, f"{ADDRESS}:0"))[1] == port


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_socket_claims_its_tuple(small: World, program: Program, kind: str) -> None:
    opener = Opener(small, kind)
    theirs = sorted(port for _, port in opener.fill(8))
    made = program.bind(kind, f"{ADDRESS}:{theirs[0]}")
    before = small.counters()
    with refusal_of(errno.EADDRNOTAVAIL):
        program.connect(kind, REMOTE, made)
    assert counted(small, before) == {"socket_taken": 1}
    assert program.connect(kind, ELSEWHERE, made) == (str(ADDRESS), theirs[0])
    free = min(SLICE - set(theirs))
    assert program.connect(kind, REMOTE, program.bind(kind, f"{ADDRESS}:{free}"))[1] == free
    assert {port for _, port in opener.fill(7, 100)} == SLICE - set(theirs) - {free}


def test_a_udp_port_is_one_sockets(small: World, program: Program) -> None:
    """Bound, it may send to anybody: nobody else gets the port, whatever both say about sharing."""
    program.bind("udp", OURS, reuse=True)
    bind_refused(errno.EADDRNOTAVAIL, program, "udp", OURS, reuse=True)
    assert program.fill("udp", PORTS - 1) == SLICE - {FIRST + 3}
    refused(errno.EADDRNOTAVAIL, program, "udp")
    assert {port for _, port in Opener(small, "udp", ELSEWHERE).fill(PORTS - 1)} == SLICE - {FIRST + 3}


def test_a_udp_socket_goes_from_one_peer_to_another(small: World, program: Program) -> None:
    """And asks for the same once more; leaves nothing behind; and takes nothing from another that is there."""
    one = program.socket("udp")
    port = program.connect("udp", REMOTE, one)[1]
    for remote in (ELSEWHERE, REMOTE, REMOTE):
        assert program.connect("udp", remote, one)[1] == port
    assert program.fill("udp", PORTS, ELSEWHERE) == SLICE
    small.expire()
    with refusal_of(errno.EADDRNOTAVAIL):
        program.connect("udp", ELSEWHERE, one)


def test_several_sockets_connect_from_one_tcp_port(program: Program) -> None:
    first, second = program.bind("tcp", OURS, reuse=True), program.bind("tcp", OURS, reuse=True)
    assert program.connect("tcp", REMOTE, first)[1] == FIRST + 3
    with refusal_of(errno.EADDRNOTAVAIL):
        program.connect("tcp", REMOTE, second)
    assert program.connect("tcp", ELSEWHERE, second)[1] == FIRST + 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("local", ["192.0.2.1:0", "0.0.0.0:5001"])
def test_a_socket_that_is_bound_elsewhere_is_left_to_the_uplink(
    small: World, program: Program, kind: str, local: str
) -> None:
    assert program.connect(kind, REMOTE, program.bind(kind, local))[0] == "192.0.2.1"
    assert [flow for flow in small.datapath.flows(9)[1] if flow.onramp != "host"] == []


def bind_late(program: Program, kind: str = "tcp") -> socket.socket:
    made = program.socket(kind)
    made.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    made.bind(program.end(f"{ADDRESS}:0"))
    return made


def test_a_port_that_is_wanted_late_is_chosen_for_the_destination(small: World, program: Program) -> None:
    """As nginx, HAProxy and Envoy bind: every port serves every destination."""
    for remote in (REMOTE, ELSEWHERE):
        ends = [program.connect("tcp", remote, bind_late(program)) for _ in range(PORTS)]
        assert set(ends) == {(str(ADDRESS), port) for port in SLICE}
        with refusal_of(errno.EADDRNOTAVAIL):
            program.connect("tcp", remote, bind_late(program))
    port = program.local(program.made[0])[1]
    program.made.pop(0).close()
    assert program.connect("tcp", REMOTE, bind_late(program))[1] == port


def test_a_port_that_is_wanted_late_and_nobody_agreed(small: World, how: str) -> None:
    with Program(how) as program, refusal_of(errno.EPERM):
        bind_late(program)


def test_a_listener_keeps_its_port(small: World, program: Program) -> None:
    listener = program.bind("tcp", OURS)
    listener.listen()
    assert program.fill("tcp", PORTS - 1) == SLICE - {FIRST + 3}
    refused(errno.EADDRNOTAVAIL, program, "tcp")


def test_a_bound_socket_does_not_talk_into_a_flow(small: World, program: Program) -> None:
    """Its port was a client's towards somebody, and still is; towards others it may send."""
    [(_, port)] = Opener(small, "udp").fill(1)
    made = program.bind("udp", f"{ADDRESS}:{port}")
    before = small.counters()
    with refusal_of(errno.EPERM):
        made.sendto(b"words", program.end(REMOTE))
    assert counted(small, before) == {"socket_taken": 1}
    made.sendto(b"words", program.end(ELSEWHERE))
    small.expire()
    made.sendto(b"words", program.end(REMOTE))


def test_a_bound_socket_does_not_talk_into_another_socket(small: World, program: Program) -> None:
    port = program.connect("udp")[1]
    small.expire()
    made = program.bind("udp", f"{ADDRESS}:{port}", reuse=True)
    with refusal_of(errno.EPERM):
        made.sendto(b"words", program.end(REMOTE))
    made.sendto(b"words", program.end(ELSEWHERE))
