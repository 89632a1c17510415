"""A pool that cannot serve this host's sockets: their programs hear of it, and nothing leaves by another address."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bpf import families
from tests.bpf.far_end import (
    HOST,
    Wire,
    agreed_place,
    connecting,
    far_end,
    is_translated,
    prepare,
    to,
    udp_in,
    writable,
)
from tests.bpf.frames import (
    REMOTE,
    error,
    local_end,
    quoted,
    source_of,
)
from tests.bpf.test_mapping import MAPPING, behaving
from tests.bpf.world import DEPENDENT, World, state

from softunicast.core.pools import Behaviour, ClientLimits

FAMILIES = (4, 6)
SLICE = range(2048, 4096)


@pytest.fixture
def world(sockets_world: World, family: int) -> World:
    return prepare(sockets_world)


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    with far_end() as made:
        yield made


@pytest.fixture
def place(world: World) -> Iterator[Path]:
    with agreed_place(world) as made:
        yield made


@pytest.fixture
def full(world: World, place: Path, wire: Wire) -> World:
    """A pool whose leases have run out."""
    world.reset(state(pool=(3,)))
    return world


def test_refused_connections(full: World, place: Path, wire: Wire) -> None:
    """The kernel believes the error when the socket is its again: on the second try, a second later."""
    with connecting(place) as made:
        assert writable(made)
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH
    wire.check_silent()


def test_refused_datagrams(full: World, place: Path, wire: Wire) -> None:
    with udp_in(place) as asks:
        asks.bind((families.current(HOST), 0))
        asks.connect(to(REMOTE))
        asks.send(b"question")
        with pytest.raises(OSError, match=r"No route to host|Permission denied"):
            asks.recv(100)
    wire.check_silent()


def test_a_datagram_to_nowhere_fails_at_once(full: World, place: Path, wire: Wire) -> None:
    """Of a socket that is not connected, which would never hear of it; and of one that is bound, too."""
    for bind in (False, True):
        before = full.counters()["no_slice"]
        with udp_in(place) as asks:
            if bind:
                asks.bind((families.current(HOST), 0))
            with pytest.raises(PermissionError):
                asks.sendto(b"question", to(REMOTE))
        assert full.counters()["no_slice"] == before + 1
    wire.check_silent()


@pytest.mark.parametrize("behaviour", [DEPENDENT, MAPPING], ids=["dependent", "mapping"])
def test_a_flow_that_has_ended_is_not_believed(
    world: World, place: Path, wire: Wire, behaviour: Behaviour
) -> None:
    """Where the pool cannot serve any more, its socket hears of it at once."""
    world.reset(behaving(behaviour))
    with udp_in(place) as asks:
        for ended in (world.expire, lambda: world.change_flows(refresh_ns=0)):
            asks.sendto(b"question", to(REMOTE))
            local = local_end(wire.next())
            world.change_flows(refresh_ns=0)
            asks.sendto(b"question", to(REMOTE))
            assert local_end(wire.next()) == local
            world.datapath.apply(behaving(behaviour, mine=()))  # the lease is lost
            ended()
            with pytest.raises(PermissionError):
                asks.sendto(b"question", to(REMOTE))
            wire.check_silent()
            world.reset(behaving(behaviour))


def test_the_pool_is_full_towards_one_destination(world: World, place: Path, wire: Wire) -> None:
    """Who has a port keeps it, and others may still ask elsewhere."""
    world.reset(state(ports=16))
    before = world.counters()["slice_full"]
    with ExitStack() as stack:
        first, *others = [stack.enter_context(udp_in(place)) for _ in range(17)]
        for asks in (first, *others[:15]):
            asks.sendto(b"question", to(REMOTE))
            assert is_translated(wire.next())
        for _ in range(3):
            with pytest.raises(PermissionError):
                others[15].sendto(b"question", to(REMOTE))
            first.sendto(b"again", to(REMOTE))
            assert is_translated(wire.next())
        others[15].sendto(b"question", to("203.0.113.2:53"))
        assert is_translated(wire.next())
        assert (world.counters()["slice_full"] - before, len(world.claims())) == (3, 17)
    wire.check_silent()


def test_a_limit_of_the_host(world: World, place: Path, wire: Wire) -> None:
    before = state()
    limited = replace(before.pools["gb"], client_limits=ClientLimits(udp_max=1))
    world.reset(replace(before, pools={"gb": limited}))
    with udp_in(place) as asks:
        asks.sendto(b"question", to(REMOTE))
        assert is_translated(wire.next())
        with pytest.raises(PermissionError):
            asks.sendto(b"question", to("203.0.113.2:53"))
    wire.check_silent()


def test_other_programs_send_as_they_like(full: World, place: Path, wire: Wire) -> None:
    with udp_in(None) as asks:
        asks.sendto(b"question", to(REMOTE))
        assert source_of(wire.next()) == HOST


def test_an_error_on_the_way(world: World, place: Path, wire: Wire) -> None:
    with udp_in(place) as asks:
        asks.bind((families.current(HOST), 0))  # of its own choice
        asks.connect(to(REMOTE))
        asks.send(b"question")
        left = wire.next()
        wire.send(error("192.0.2.254:0", local_end(left), quoted(left), (3, 3)))
        with pytest.raises(ConnectionRefusedError):
            asks.recv(100)
