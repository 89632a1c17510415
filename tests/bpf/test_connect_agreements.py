"""Which sockets are in an agreement when they connect, and stay in it: by cgroups, whoever uses them later.

Real sockets, by the real hooks; this process is in the cgroup. The slice has 16 ports, 2048-2063.
"""

from __future__ import annotations

import errno
import os

import pytest
from tests.bpf.frames import end
from tests.bpf.programs import PORTS, REMOTE, SLICE, Program, agreed, cgroup, counted, inside, refusal_of
from tests.bpf.test_search import Opener
from tests.bpf.world import ADDRESS, World, namespace

from softunicast.kernel import cgroups
from softunicast.kernel.agreements import Agreements

OTHER_PORT = "203.0.113.1:444"


def local_of(program: Program, kind: str = "udp") -> str:
    return program.connect(kind)[0]


def test_a_program_in_no_agreement(small: World, how: str) -> None:
    before = small.counters()
    with Program(how) as program:
        assert local_of(program) == "192.0.2.1"
    assert counted(small, before) == {}
    assert small.claims() == {}


def test_the_innermost_cgroup_decides(small: World, how: str) -> None:
    with agreed(small) as outer, cgroup(outer) as between, cgroup(between) as inner, Program(how) as program:
        with inside(inner):
            assert local_of(program) == str(ADDRESS)
        with Agreements.open(small.datapath.folder) as agreements:
            agreements.excuse(cgroups.number(between))
            with inside(inner):
                assert local_of(program) == "192.0.2.1"
            assert local_of(program) == str(ADDRESS)
            assert agreements.remove(cgroups.number(between))
            with inside(inner):
                assert local_of(program) == str(ADDRESS)


def test_a_socket_keeps_its_agreement(small: World, how: str) -> None:
    """Wherever its program moves, once it has sent something. Until then nothing is stored with it."""
    with Program(how) as program:
        with agreed(small):
            made = program.socket("udp")
            program.connect("udp", REMOTE, made)
            key = made.fileno().to_bytes(4, "little")
            assert small.datapath.map("agreed").get(key) is None
            made.send(b"x")
            assert small.datapath.map("agreed").get(key) is not None
        port = program.connect("udp", OTHER_PORT, made)[1]
        assert towards(small, OTHER_PORT) == {port}
        made.send(b"x")


@pytest.mark.parametrize("again", ["connect", "sendto"])
def test_nobody_else_uses_the_port_of_a_socket_that_has_sent_nothing(
    small: World, how: str, again: str
) -> None:
    """It is in the agreement of the program that made it, whoever has it now, and a client's flow is in the way."""
    with agreed(small), cgroup() as other, Program(how) as program:
        made = program.socket("udp")
        port = program.connect("udp", REMOTE, made)[1]
        assert port in {local for _, local in Opener(small, "udp", OTHER_PORT).fill(PORTS)}
        before = small.counters()
        with inside(other):
            if again == "connect":
                with refusal_of(errno.EADDRNOTAVAIL):
                    made.connect(program.end(OTHER_PORT))
            else:
                with refusal_of(errno.EPERM):
                    made.sendto(b"x", program.end(OTHER_PORT))
        assert counted(small, before) == {"socket_taken": 1}


def test_an_excuse_that_ends_within_an_agreement(small: World, how: str) -> None:
    """The conversation goes on as it began."""
    with agreed(small) as outer, cgroup(outer) as inner, Program(how) as program:
        with Agreements.open(small.datapath.folder) as agreements, inside(inner):
            agreements.excuse(cgroups.number(inner))
            made = program.socket("udp")
            program.connect("udp", REMOTE, made)
            made.send(b"x")
            agreements.remove(cgroups.number(inner))
            made.send(b"x")
        assert small.claims() == {}


def towards(small: World, remote: str) -> set[int]:
    """The ports that are claimed towards it."""
    return {
        int.from_bytes(key.local_port.to_bytes(2, "little"), "big")
        for key in small.claims()
        if int.from_bytes(key.remote_port.to_bytes(2, "little"), "big") == end(remote)[1]
    }


def test_another_network_namespace_is_untouched(small: World, how: str) -> None:
    if how != "ipv4":
        pytest.skip("the same question")
    before = small.counters()
    with namespace(), Program(how) as program:
        program.bind("udp", "127.0.0.1:5000").connect(("127.0.0.1", 9))
        with refusal_of(errno.ENETUNREACH):
            program.connect("udp")
        assert counted(small, before) == {}
        with agreed(small), refusal_of(errno.EPERM):
            program.connect("udp")
    assert counted(small, before) == {"namespace": 1}


def test_children_are_in_it(small: World, program: Program) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, repr(program.connect("tcp")).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 100).decode() in {repr((str(ADDRESS), port)) for port in SLICE}
    os.close(reading)
    os.close(writing)
