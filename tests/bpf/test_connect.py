"""Sockets of programs in an agreement: every port of the slice towards every destination, none outside, none twice.

Real sockets, by the real hooks; this process is in the cgroup. The slice has 16 ports, 2048-2063.
"""

from __future__ import annotations

import errno
import itertools
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

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
    on_loopback,
)
from tests.bpf.test_search import Opener, check_full
from tests.bpf.world import ADDRESS, DEPENDENT, World, state

from softunicast.core.desired import PoolSlices
from softunicast.core.pools import Timers


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_is_filled_to_the_last_port(small: World, program: Program, kind: str) -> None:
    before = small.counters()
    assert program.fill(kind, PORTS) == SLICE
    for _ in range(3):
        program.refused(errno.EADDRNOTAVAIL, kind)
    assert program.fill(kind, PORTS, ELSEWHERE) == SLICE
    program.refused(errno.EADDRNOTAVAIL, kind, ELSEWHERE)
    found = counted(small, before)
    assert (found["sockets"], found["slice_full"]) == (2 * PORTS, 4)
    assert len(small.flows()) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_port_that_is_closed_is_free_at_once(program: Program, kind: str) -> None:
    program.fill(kind, PORTS)
    program.refused(errno.EADDRNOTAVAIL, kind)
    for _ in range(5):
        gone = program.made.pop(0)
        port = program.local(gone)[1]
        gone.close()
        assert program.connect(kind) == (str(ADDRESS), port)
        program.refused(errno.EADDRNOTAVAIL, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_forwarded_flows_use_the_same_ports(small: World, program: Program, kind: str) -> None:
    opener = Opener(small, kind)
    theirs = {port for _, port in opener.fill(5)}
    ours = program.fill(kind, 6)
    theirs |= {port for _, port in opener.fill(5, 5)}
    assert ours | theirs == SLICE
    assert not ours & theirs
    program.refused(errno.EADDRNOTAVAIL, kind)
    check_full(small, kind, 10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_table_answers_when_the_claims_are_over(
    small: World, program: Program, kind: str
) -> None:
    ours = program.fill(kind, 6)
    assert len(small.claims()) == 6
    small.expire()
    theirs = {port for _, port in Opener(small, kind).fill(10)}
    assert ours | theirs == SLICE
    check_full(small, kind, 10)
    small.expire()
    assert program.fill(kind, 10) == theirs


@pytest.mark.parametrize("kind", KINDS)
def test_sockets_and_flows_race_for_a_slice(small: World, how: str, kind: str) -> None:
    """Two threads, as fast as they can, until nothing is free: no port has two owners, and none is left over."""
    for round_number in range(5):
        small.reset(state(ports=PORTS, mine=(SLOT,), theirs=(), expired=()))
        opener, theirs = Opener(small, kind), set[int]()

        def forward(
            opener: Opener = opener, theirs: set[int] = theirs, first: int = round_number * 100
        ) -> None:
            for number in range(PORTS):
                if (found := opener.open(first + number)) is None:
                    break
                theirs.add(found[1])

        with agreed(small), Program(how) as program:
            other = threading.Thread(target=forward)
            other.start()
            ours = set[int]()
            for _ in range(PORTS):
                made = program.socket(kind)
                if made.connect_ex(program.end(REMOTE)) == errno.EADDRNOTAVAIL:
                    break
                ours.add(program.local(made)[1])
            other.join()
            assert not ours & theirs
            assert ours | theirs == SLICE


def test_a_connection_is_made_and_ends(small: World, program: Program) -> None:
    """All the way, to a server on this host."""
    with on_loopback("203.0.113.1"):
        server = program.bind("tcp", REMOTE, reuse=True)
        server.listen()
        server.setblocking(True)
        made = program.socket("tcp")
        made.setblocking(True)
        made.connect(program.end(REMOTE))
        other, address = server.accept()
        with other:
            assert address[:2] == made.getsockname()[:2]
            assert program.local(made)[1] in SLICE
            made.sendall(b"hello")
            assert other.recv(5) == b"hello"


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("how_closed", ["at once", "with something unread", "in order"])
def test_nobody_overtakes_a_reset(small: World, program: Program, how_closed: str, swept: bool) -> None:
    """The kernel forgets the socket before it sends the RST: until then the tuple has its claim."""
    with on_loopback("203.0.113.1"):
        server = program.bind("tcp", REMOTE, reuse=True)
        server.listen()
        server.setblocking(True)
        made = program.socket("tcp")
        made.setblocking(True)
        made.connect(program.end(REMOTE))
        other, _ = server.accept()
        if how_closed == "with something unread":
            other.send(b"words")
            made.recv(1)
        if how_closed == "at once":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if swept:
            small.expire()
            small.datapath.sweep()
            assert small.claims() == {}
        before_ns = time.monotonic_ns()
        made.close()
        claims = [claim for claim in small.claims().values() if claim.expires_ns != 1]
        if how_closed == "in order":
            assert claims == []
        else:
            [claim] = claims
            assert before_ns < claim.expires_ns < time.monotonic_ns() + 1_000_000_000
        other.close()
        server.close()


def test_a_refused_connection_holds_nothing(small: World, program: Program) -> None:
    """The peer has reset it, and the kernel has no RST of its own to send: whatever the program asked for."""
    with on_loopback("203.0.113.1"):
        made = program.socket("tcp")
        made.setblocking(True)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with pytest.raises(ConnectionRefusedError):
            made.connect(program.end(REMOTE))
        assert small.claims()
        made.close()
        assert small.claims() == {}


def wait_for_end(made: socket.socket) -> None:
    made.settimeout(10)
    assert made.recv(1) == b""


time_wait_ports = itertools.count(5000)


@pytest.mark.parametrize("timestamps", [True, False])
def test_time_wait_is_used_again_where_the_kernel_would(
    small: World, program: Program, timestamps: bool
) -> None:
    """Last of all, and only after a conversation with timestamps."""
    remote = f"203.0.113.1:{next(time_wait_ports)}"  # they last for a minute
    Path("/proc/sys/net/ipv4/tcp_timestamps").write_text("1" if timestamps else "0")
    try:
        with on_loopback("203.0.113.1"):
            server = program.bind("tcp", remote, reuse=True)
            server.listen()
            server.setblocking(True)
            waiting = set()
            for _ in range(3):
                made = program.socket("tcp")
                made.setblocking(True)
                made.connect(program.end(remote))
                other, _ = server.accept()
                waiting.add(program.local(made)[1])
                made.shutdown(socket.SHUT_WR)
                wait_for_end(other)
                other.close()
                wait_for_end(made)
                made.close()
            server.close()
        small.expire()
        assert program.fill("tcp", PORTS - 3, remote) == SLICE - waiting
        if timestamps:
            assert program.fill("tcp", 3, remote) == waiting
        program.refused(errno.EADDRNOTAVAIL, "tcp", remote)
    finally:
        Path("/proc/sys/net/ipv4/tcp_timestamps").write_text("1")


def test_a_conversation_that_the_peer_has_not_ended_is_not_followed(small: World, program: Program) -> None:
    """The kernel keeps it in the same small form as TIME_WAIT, and would let another begin: in the peer's face."""
    remote = f"203.0.113.1:{next(time_wait_ports)}"
    with on_loopback("203.0.113.1"):
        server = program.bind("tcp", remote, reuse=True)
        server.listen()
        server.setblocking(True)
        made = program.socket("tcp")
        made.setblocking(True)
        made.connect(program.end(remote))
        other, _ = server.accept()
        half_open = {program.local(made)[1]}
        made.close()
        wait_for_end(other)
        server.close()
    small.expire()
    assert program.fill("tcp", PORTS - 1, remote) == SLICE - half_open
    program.refused(errno.EADDRNOTAVAIL, "tcp", remote)
    other.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lease_that_has_run_out(small: World, program: Program, kind: str) -> None:
    small.datapath.apply(state(ports=PORTS, mine=(), theirs=(), expired=(SLOT,), pool=(SLOT,)))
    before = small.counters()
    program.refused(errno.EADDRNOTAVAIL, kind)
    found = counted(small, before)
    found.pop("guard_expired", None)  # what the kernel still sends for sockets of other tests
    assert found == {"no_slice": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_that_is_gone(small: World, program: Program, kind: str) -> None:
    small.datapath.apply(state(ports=PORTS, mine=(SLOT,), theirs=(), expired=(), onramps={}))
    small.datapath.apply(replace(small.datapath.state, pools={}))
    before = small.counters()
    program.refused(errno.EADDRNOTAVAIL, kind)
    assert counted(small, before) == {"no_pool": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pool_of_the_other_family(small: World, program: Program, how: str, kind: str) -> None:
    other = PoolSlices(Timers(), (), DEPENDENT, families=frozenset({4 if how == "ipv6" else 6}))
    datapath = small.of_both
    datapath.apply(replace(datapath.state, pools={"gb": other}, onramps={}))
    before = small.counters()
    program.refused(errno.EADDRNOTAVAIL, kind)
    assert counted(small, before) == {"family": 1}


def test_the_address_is_not_on_the_host(sockets_world: World, how: str) -> None:
    sockets_world.reset(state(ports=PORTS, mine=(SLOT,), theirs=(), expired=()))
    before = sockets_world.counters()
    with agreed(sockets_world), Program(how) as program:
        program.refused(errno.EADDRNOTAVAIL, "tcp")
    assert counted(sockets_world, before) == {"no_address": 1}
    assert sockets_world.claims() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_loopback_and_the_own_link_are_none_of_ours(
    small: World, program: Program, how: str, kind: str
) -> None:
    there = "[::1]:9" if how == "ipv6" else "127.0.0.1:9"
    made = program.socket(kind)
    before = small.counters()
    made.connect_ex(("::1", 9) if how == "ipv6" else program.end(there))
    assert small.claims() == {}
    assert counted(small, before) == {}
