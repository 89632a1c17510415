"""Binding a shared address: for programs in an agreement, in the slices of their pool; for excused ones; and for nobody
else. The slice has 16 ports, 2048-2063; the next one is a neighbour's.
"""

from __future__ import annotations

import errno

import pytest
from tests.bpf.programs import (
    ELSEWHERE,
    KINDS,
    PORTS,
    REMOTE,
    SLICE,
    SLOT,
    Program,
    agreed,
    counted,
    excused,
    refusal_of,
)
from tests.bpf.test_search import Opener
from tests.bpf.world import ADDRESS, World, state

from softunicast.kernel.words import be16

FIRST = SLOT * PORTS
OURS, THEIRS, NOBODYS = (f"{ADDRESS}:{FIRST + offset}" for offset in (3, 16, 40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("local", [OURS, THEIRS, NOBODYS, f"{ADDRESS}:0"])
def test_a_program_in_no_agreement_is_refused(small: World, how: str, kind: str, local: str) -> None:
    before = small.counters()
    with Program(how) as program:
        program.bind_refused(errno.EPERM, kind, local)
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
    program.bind_refused(errno.EADDRNOTAVAIL, kind, local)
    assert counted(small, before) == {"bind_outside": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_whose_lease_has_run_out(small: World, program: Program, kind: str) -> None:
    small.datapath.apply(state(ports=PORTS, mine=(), theirs=(), expired=(SLOT,), pool=(SLOT,)))
    program.bind_refused(errno.EADDRNOTAVAIL, kind, OURS)
    program.bind_refused(errno.EADDRNOTAVAIL, kind, f"{ADDRESS}:0")


@pytest.mark.parametrize("kind", KINDS)
def test_a_bound_port_is_chosen_in_the_slice(small: World, program: Program, kind: str) -> None:
    """All of them, one after the other; and none after the last."""
    ports = {program.local(program.bind(kind, f"{ADDRESS}:0"))[1] for _ in range(PORTS)}
    assert ports == SLICE
    program.bind_refused(errno.EADDRNOTAVAIL, kind, f"{ADDRESS}:0")
    port = program.local(program.made[0])[1]
    program.made.pop(0).close()
    assert program.local(program.bind(kind, f"{ADDRESS}:0"))[1] == port


def test_a_udp_port_is_chosen_where_others_are_connected(small: World, program: Program) -> None:
    """They talk to one each; what is bound, to everybody else. The kernel's table shows them to nobody who asks for the
    port alone, and would refuse it."""
    program.fill("udp", PORTS - 1)
    small.expire()
    bound = [program.bind("udp", f"{ADDRESS}:0") for _ in range(PORTS)]
    assert {program.local(one)[1] for one in bound} == SLICE
    program.bind_refused(errno.EADDRNOTAVAIL, "udp", f"{ADDRESS}:0")
    for one in bound:
        one.sendto(b"words", program.end(ELSEWHERE))


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_is_bound_once(small: World, program: Program, kind: str) -> None:
    """And keeps what it has, when it asks again."""
    made = program.bind(kind, f"{ADDRESS}:0")
    before = small.claims()
    for local in (f"{ADDRESS}:0", OURS, THEIRS):
        with refusal_of(errno.EINVAL):
            made.bind(program.end(local))
    assert small.claims() == before
    made.close()
    assert small.claims() == {}


def test_nothing_is_left_of_a_port_that_the_kernel_refused(small: World, program: Program, how: str) -> None:
    """A socket is there of which the search cannot know: connected, by a program that does not share."""
    with excused(small), Program(how) as outside:
        outside.connect("udp", REMOTE, outside.bind("udp", OURS))
        with agreed(small):
            made = program.socket("udp")
            with refusal_of(errno.EADDRINUSE):
                made.bind(program.end(OURS))
            made.bind(program.end(f"{ADDRESS}:{FIRST + 4}"))
            assert [be16(key.local_port) for key in small.claims()] == [FIRST + 4]
            made.close()
            assert small.claims() == {}


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
    program.bind_refused(errno.EADDRNOTAVAIL, "udp", OURS, reuse=True)
    assert program.fill("udp", PORTS - 1) == SLICE - {FIRST + 3}
    program.refused(errno.EADDRNOTAVAIL, "udp")
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


def test_a_listener_keeps_its_port(small: World, program: Program) -> None:
    listener = program.bind("tcp", OURS)
    listener.listen()
    assert program.fill("tcp", PORTS - 1) == SLICE - {FIRST + 3}
    program.refused(errno.EADDRNOTAVAIL, "tcp")


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
