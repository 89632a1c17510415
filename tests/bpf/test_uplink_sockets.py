"""This host's sockets at the uplink: real ones, of a program in a cgroup, with the test at the far end of the wire."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.bpf import families, frames
from tests.bpf.agreements import agreed
from tests.bpf.far_end import (
    DEADLINE_S,
    HOST,
    Wire,
    agreed_place,
    connecting,
    far_end,
    is_translated,
    made_in,
    prepare,
    to,
    udp_in,
    writable,
)
from tests.bpf.frames import (
    FROM_WIRE,
    REMOTE,
    checksums_right,
    echo,
    end,
    local_end,
    quoted,
    source_of,
    tcp,
    udp,
)
from tests.bpf.pieces import joined, port_of_id
from tests.bpf.programs import cgroup, inside
from tests.bpf.world import ADDRESS, ME, World, slot_changed, state

from softunicast.core.desired import SlotOwner
from softunicast.kernel import abi

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


# -- UDP


def test_a_question_and_its_answer(world: World, place: Path, wire: Wire) -> None:
    with udp_in(place) as asks:
        asks.sendto(b"question", to(REMOTE))
        left = wire.next()
        local = local_end(left)
        assert end(local)[0] == str(ADDRESS)
        assert end(local)[1] in SLICE
        assert checksums_right(left) == (True, True)
        wire.send(udp(REMOTE, local, b"answer", macs=FROM_WIRE))
        assert asks.recvfrom(100)[0] == b"answer"
        assert asks.getsockname()[1] == end(world.datapath.flows(9)[1][0].client)[1]


def test_many_destinations_of_one_socket(world: World, place: Path, wire: Wire) -> None:
    with udp_in(place) as asks:
        for number in range(1, 9):
            remote = f"203.0.113.{number}:53"
            asks.sendto(b"question", to(remote))
            wire.send(udp(remote, local_end(wire.next()), bytes([number]), macs=FROM_WIRE))
            assert asks.recvfrom(100) == (
                bytes([number]),
                (*to(remote), 0, 0)[: 2 if families.chosen == 4 else 4],
            )


@pytest.mark.parametrize("size", [1473, 4000, 20000])
def test_datagrams_that_the_stack_cuts(world: World, place: Path, wire: Wire, size: int) -> None:
    with udp_in(place) as asks:
        asks.sendto(b"\xa5" * size, to(REMOTE))
        pieces = [
            wire.next()
            for _ in range(-(-(size + 8) // 1480) if families.chosen == 4 else -(-(size + 8) // 1448))
        ]
        assert all(is_translated(piece) and port_of_id(piece) in SLICE for piece in pieces)
        assert checksums_right(joined(pieces))[1] or families.chosen == 6
        wire.check_silent()


def test_a_socket_of_another_cgroup(world: World, place: Path, wire: Wire) -> None:
    with cgroup() as other, udp_in(other) as asks:
        asks.sendto(b"question", to(REMOTE))
        assert source_of(wire.next()) == HOST


def test_the_nearest_cgroup_decides(world: World, place: Path, wire: Wire) -> None:
    with (
        cgroup(place) as middle,
        agreed(world, middle, pool=None),
        cgroup(middle) as below,
        udp_in(below) as excused,
    ):
        excused.sendto(b"question", to(REMOTE))
        assert source_of(wire.next()) == HOST
    with cgroup(place) as beside, udp_in(beside) as asks:
        asks.sendto(b"question", to(REMOTE))
        assert is_translated(wire.next())


def test_a_socket_that_another_program_made(world: World, place: Path, wire: Wire) -> None:
    """It is in the agreement of who made it, or of who uses it."""
    with made_in(place, socket.SOCK_DGRAM) as asks:
        asks.sendto(b"question", to(REMOTE))
        assert is_translated(wire.next())
    with made_in(None, socket.SOCK_DGRAM) as asks:
        with inside(place):
            asks.sendto(b"question", to(REMOTE))
        assert is_translated(wire.next())


def test_a_socket_that_is_in_an_agreement_itself(world: World, wire: Wire) -> None:
    with udp_in(None) as asks:
        pool = world.datapath._tables.pool_numbers()["gb"]
        key = asks.fileno().to_bytes(4, "little")
        world.datapath.map("agreed").set(key, abi.Agreement(abi.AgreementKind.POOL, pool).pack())
        asks.sendto(b"question", to(REMOTE))
        assert is_translated(wire.next())


def test_a_closed_socket_is_answered_for_by_the_pool(world: World, place: Path, wire: Wire) -> None:
    """The kernel says port unreachable, about a packet to the shared address."""
    with udp_in(place) as asks:
        asks.sendto(b"question", to(REMOTE))
        local = local_end(wire.next())
    answer = udp(REMOTE, local, b"answer", macs=FROM_WIRE)
    wire.send(answer)
    said = wire.next()
    assert is_translated(said)
    assert quoted(answer)[-20:] in said


# -- ping


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_RAW], ids=["ping", "raw"])
def test_echo(world: World, place: Path, wire: Wire, kind: int) -> None:
    protocol = socket.IPPROTO_ICMP if families.chosen == 4 else socket.IPPROTO_ICMPV6
    with made_in(place, kind, protocol) as pings:
        sent = echo("192.0.2.1:77", REMOTE, 77)[frames.transport_at() :]
        pings.sendto(sent, (to(REMOTE)[0], 0))
        left = wire.next()
        local = local_end(left)
        assert is_translated(left)
        assert end(local)[1] in SLICE
        assert checksums_right(left) == (True, True)
        wire.send(echo(REMOTE, local, end(local)[1], True, macs=FROM_WIRE))
        got = pings.recv(100)
        got = got[20:] if kind == socket.SOCK_RAW and families.chosen == 4 else got
        assert (got[0], got[-4:]) == (0 if families.chosen == 4 else 129, b"ping")


# -- TCP


def established(place: Path | None, wire: Wire) -> tuple[socket.socket, str, int]:
    """The socket, where it leaves from, and the number of its first byte."""
    made = connecting(place)
    syn = wire.next()
    at = frames.transport_at()
    [sequence] = struct.unpack("!I", syn[at + 4 : at + 8])
    local = local_end(syn)
    wire.send(tcp(REMOTE, local, "SA", macs=FROM_WIRE, sequence=100, acknowledgement=sequence + 1))
    assert local_end(wire.next()) == local
    assert writable(made)
    assert made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    return made, local, sequence + 1


def test_a_connection(world: World, place: Path, wire: Wire) -> None:
    """With data that leaves the stack as one buffer of many segments."""
    made, local, first = established(place, wire)
    with made:
        data = b"x" * 5000  # within the first window
        assert made.send(data) == len(data)
        received = 0
        while received < len(data):
            frame = wire.next()
            assert local_end(frame) == local
            assert checksums_right(frame) == (True, True)
            received += len(frame) - frames.transport_at() - (frame[frames.transport_at() + 12] >> 4) * 4
        acknowledged = (first + received) % 2**32
        wire.send(tcp(REMOTE, local, "PA", b"hi", macs=FROM_WIRE, sequence=101, acknowledgement=acknowledged))
        made.settimeout(DEADLINE_S)
        assert made.recv(100) == b"hi"


def test_the_kernels_reset_leaves_from_the_pool(world: World, place: Path, wire: Wire) -> None:
    made, local, first = established(place, wire)
    made.close()
    assert local_end(wire.next()) == local  # its own reset
    wire.send(tcp(REMOTE, local, "PA", b"late", macs=FROM_WIRE, sequence=101, acknowledgement=first))
    assert local_end(wire.next()) == local  # nobody is there any more


def test_a_connection_from_before_the_agreement(world: World, wire: Wire) -> None:
    """Goes on as it began."""
    with cgroup() as place:
        made, local, _ = established(place, wire)
        assert end(local)[0] == HOST
        with made, agreed(world, place):
            made.send(b"more")
            assert local_end(wire.next()) == local


def test_a_connection_that_lost_its_flow_stays_in(world: World, place: Path, wire: Wire) -> None:
    """It does not go on under the host's own address."""
    made, _, _ = established(place, wire)
    with made:
        for name in ("flows", "claims"):
            world._empty(name)
        before = world.counters()["no_flow"]
        made.send(b"more")
        wire.check_silent()
        assert world.counters()["no_flow"] == before + 1


def test_the_guard_sees_what_leaves(world: World, place: Path, wire: Wire) -> None:
    """A connection whose slice was lost meanwhile ends there."""
    made, _, _ = established(place, wire)
    with made:
        world.datapath.apply(slot_changed(state(), 1, SlotOwner(ME, 1, 1)))
        before = world.counters()["guard_expired"]
        made.send(b"more")
        wire.check_silent()
        assert world.counters()["guard_expired"] == before + 1


def test_a_service_of_the_host_answers_as_it_is_asked(world: World, place: Path, wire: Wire) -> None:
    with made_in(place, socket.SOCK_STREAM) as service:
        service.bind((families.current(HOST), 8080))
        service.listen()
        wire.send(tcp(REMOTE, f"{HOST}:8080", "S", macs=FROM_WIRE))
        assert local_end(wire.next()) == f"{HOST}:8080"
