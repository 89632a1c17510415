"""Cgroups that were found to be in no agreement are remembered, and an agreement that begins is seen at once even so:
of the cgroup or of one above, by the hooks of sockets and by the programs that look at packets.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.bpf.agreements import agreed
from tests.bpf.programs import REMOTE, Program, cgroup, counted, inside
from tests.bpf.test_connect_agreements import local_of
from tests.bpf.world import ADDRESS, World

from softunicast.kernel import cgroups
from softunicast.kernel.agreements import TAG
from softunicast.kernel.words import index_key

HOST = "192.0.2.1"
MOVING_S = 2.0
ENTRIES = 4096  # OUTSIDERS in bpf/agreement.h


@pytest.fixture
def program(small: World, how: str) -> Iterator[Program]:
    """Of this process, which is where a test puts it."""
    with Program(how) as made:
        yield made


@contextmanager
def below(depth: int) -> Iterator[tuple[Path, Path]]:
    """This process is in a cgroup that far below another: that one and its own."""
    with ExitStack() as stack:
        top = place = stack.enter_context(cgroup())
        for _ in range(depth):
            place = stack.enter_context(cgroup(place))
        stack.enter_context(inside(place))
        yield top, place


def is_noted(world: World, place: Path) -> bool:
    number = cgroups.number(place)
    known, tag = (
        int.from_bytes(world.datapath.map("outsiders").get(key) or b"", "little")
        for key in (index_key(1 + number % ENTRIES), TAG)
    )
    return tag != 0 and known == number ^ tag


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_an_agreement_that_begins(small: World, program: Program, depth: int) -> None:
    with below(depth) as (top, place):
        for _ in range(3):
            assert local_of(program) == HOST
            assert is_noted(small, place)
            with agreed(small, top):
                assert not is_noted(small, place)
                assert local_of(program) == str(ADDRESS)
                assert not is_noted(small, place)


def test_an_excuse_that_begins(small: World, program: Program) -> None:
    with below(1) as (top, _):
        with pytest.raises(PermissionError):
            program.bind("udp", f"{ADDRESS}:2050")
        with agreed(small, top, None):
            program.bind("udp", f"{ADDRESS}:2050")


def test_packets(small: World, program: Program) -> None:
    """What the guard has noted is the cgroup of the socket, whoever sends."""
    with below(2) as (top, place):
        with agreed(small, top):
            made = program.bind("udp", f"{ADDRESS}:2051")
            program.connect("udp", REMOTE, made)
            assert small.datapath.map("agreed").delete(made.fileno().to_bytes(4, "little"))
        before = small.counters()
        made.send(b"x")
        assert counted(small, before) == {"guard_socket": 1}
        assert is_noted(small, place)
        with agreed(small, top):
            made.send(b"x")
        assert counted(small, before) == {"guard_socket": 1}


def test_somebody_died_while_an_agreement_began(small: World, program: Program) -> None:
    """Nothing is known from then on, until the next one begins."""
    with below(1) as (top, place):
        assert local_of(program) == HOST
        small.datapath.map("outsiders").set(TAG, bytes(8))
        assert local_of(program) == HOST
        assert not is_noted(small, place)
        with cgroup() as other, agreed(small, other):
            assert local_of(program) == HOST
            assert is_noted(small, place)
        with agreed(small, top):
            assert local_of(program) == str(ADDRESS)


def test_somebody_died_and_another_one_ended(small: World, program: Program) -> None:
    """What was found out between the two is believed until the agent next writes its tables."""
    with below(0) as (_, place), cgroup() as other:
        number = cgroups.number(place).to_bytes(8, "little")
        small.datapath.map("outsiders").set(TAG, bytes(8))  # one begins
        with agreed(small, other):  # another one, all of it
            assert local_of(program) == HOST
            entry = small.datapath.map("agreements").get(cgroups.number(other).to_bytes(8, "little"))
            assert entry is not None
            small.datapath.map("agreements").set(number, entry)  # the first goes on, and dies
        small.datapath.apply(small.datapath.state)
        try:
            assert local_of(program) == str(ADDRESS)
        finally:
            small.datapath.map("agreements").delete(number)


def test_a_program_that_is_moved_while_it_connects(small: World, program: Program) -> None:
    """The cgroup that it was in is not taken for an outsider because the one that it comes to is."""
    with ExitStack() as stack:
        top, aside = stack.enter_context(cgroup()), stack.enter_context(cgroup())
        deep = top
        for _ in range(24):  # so that looking at all those above takes a while
            deep = stack.enter_context(cgroup(deep))
        stack.enter_context(agreed(small, top))
        child = os.fork()
        if child == 0:
            while True:
                Program(program.how).connect("udp")
        stack.callback(os.waitpid, child, 0)
        stack.callback(os.kill, child, signal.SIGKILL)
        deadline = time.monotonic() + MOVING_S
        while time.monotonic() < deadline:
            for to in (deep, aside):
                (to / "cgroup.procs").write_text(str(child))
            assert not is_noted(small, deep)


def test_two_that_share_an_entry(small: World, program: Program) -> None:
    with below(0) as (top, place), agreed(small, top):
        at = index_key(1 + cgroups.number(place) % ENTRIES)
        tag = int.from_bytes(small.datapath.map("outsiders").get(TAG) or b"", "little")
        other = cgroups.number(place) + ENTRIES
        small.datapath.map("outsiders").set(at, (other ^ tag).to_bytes(8, "little"))
        assert local_of(program) == str(ADDRESS)


def test_agreements_begin_while_programs_connect(small: World, program: Program) -> None:
    """Whoever connects after it began is in it, whatever others find out meanwhile."""
    stop = threading.Event()

    def connect_always() -> None:
        with Program(program.how) as busy:
            while not stop.is_set():
                local_of(busy)
                busy.close()

    with below(2) as (top, _):
        others = [threading.Thread(target=connect_always) for _ in range(2)]
        for one in others:
            one.start()
        try:
            for _ in range(150):
                with agreed(small, top):
                    assert local_of(program) == str(ADDRESS)
                program.close()
        finally:
            stop.set()
            for one in others:
                one.join()
