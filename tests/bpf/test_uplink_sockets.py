"""This host's sockets at the uplink: real ones, of a program in a cgroup, with the test at the far end of the wire.
Checksums are computed behind the hook, as everywhere: what arrives here has to be right.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bpf import families, frames
from tests.bpf.agreements import agreed
from tests.bpf.frames import (
    FROM_WIRE,
    REMOTE,
    checksums_right,
    echo,
    end,
    error,
    local_end,
    quoted,
    source_of,
    tcp,
    udp,
)
from tests.bpf.pieces import joined, port_of_id
from tests.bpf.programs import cgroup, inside
from tests.bpf.world import ADDRESS, ME, UPLINK, World, slot_changed, state

from softunicast.core.desired import SlotOwner
from softunicast.core.pools import ClientLimits
from softunicast.kernel import abi
from softunicast.kernel.offload import set_tx_checksum

FAMILIES = (4, 6)
DEADLINE_S = 5.0
HOST = "192.0.2.1"
SLICE = range(2048, 4096)
OUTGOING = 4  # PACKET_OUTGOING
DISCOVERY = range(133, 138)


@pytest.fixture
def world(sockets_world: World, family: int) -> World:
    set_tx_checksum(UPLINK, False)
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    sockets_world.reset()
    return sockets_world


class Wire:
    """The far end of the uplink."""

    def __init__(self, end_of: socket.socket) -> None:
        self._socket = end_of

    def next(self) -> bytes:
        """The next packet of the chosen family that the host has sent, but for what is of the link alone."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            frame, address = self._socket.recvfrom(1 << 16)
            if address[2] == OUTGOING or not self._is_ours(frame):
                continue
            assert checksums_right(frame)[0]
            return frame

    @staticmethod
    def _is_ours(frame: bytes) -> bool:
        if families.chosen == 4:
            return frame[12:14] == b"\x08\x00"
        return (
            frame[12:14] == b"\x86\xdd"
            and frame[38] != 0xFF
            and not (frame[20] == 58 and frame[54] in DISCOVERY)
        )

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def check_silent(self) -> None:
        """Nothing has come that was not read. Sending is done when a system call returns."""
        self._socket.settimeout(0.0)
        with suppress(BlockingIOError):
            while True:
                frame, address = self._socket.recvfrom(1 << 16)
                assert address[2] == OUTGOING or not self._is_ours(frame), frame


@pytest.fixture
def wire(world: World) -> Iterator[Wire]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as made:
        made.bind(("upp", 0))
        yield Wire(made)


@pytest.fixture
def place(world: World) -> Iterator[Path]:
    """A cgroup in an agreement."""
    with cgroup() as made, agreed(world, made):
        yield made


def made_in(place: Path | None, kind: int, protocol: int = 0) -> socket.socket:
    with ExitStack() as stack:
        if place:
            stack.enter_context(inside(place))
        number = socket.AF_INET if families.chosen == 4 else socket.AF_INET6
        made = socket.socket(number, kind, protocol)
        made.settimeout(DEADLINE_S)
        return made


def to(text: str) -> tuple[str, int]:
    address, port = end(text)
    return families.current(address), port


@contextmanager
def udp_in(place: Path | None) -> Iterator[socket.socket]:
    """A socket; this process is in the cgroup meanwhile."""
    with ExitStack() as stack:
        if place:
            stack.enter_context(inside(place))
        yield stack.enter_context(made_in(None, socket.SOCK_DGRAM))


def is_translated(frame: bytes) -> bool:
    return source_of(frame) == str(ADDRESS)


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


def connecting(place: Path | None, port: int = 0) -> socket.socket:
    """A socket that is bound to the host's own address, on its way to REMOTE."""
    made = made_in(place, socket.SOCK_STREAM)
    made.bind((families.current(HOST), port))
    made.setblocking(False)
    made.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )  # nothing comes after its end
    assert made.connect_ex(to(REMOTE)) == errno.EINPROGRESS
    return made


def established(place: Path | None, wire: Wire) -> tuple[socket.socket, str, int]:
    """The socket, where it leaves from, and the number of its first byte."""
    made = connecting(place)
    syn = wire.next()
    at = frames.transport_at()
    [sequence] = struct.unpack("!I", syn[at + 4 : at + 8])
    local = local_end(syn)
    wire.send(tcp(REMOTE, local, "SA", macs=FROM_WIRE, sequence=100, acknowledgement=sequence + 1))
    assert local_end(wire.next()) == local
    assert select.select([], [made], [], DEADLINE_S)[1]
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


# -- refused


@pytest.fixture
def full(world: World, place: Path, wire: Wire) -> World:
    """A pool whose leases have run out."""
    world.reset(state(pool=(3,)))
    return world


def test_refused_connections(full: World, place: Path, wire: Wire) -> None:
    """The kernel believes the error when the socket is its again: on the second try, a second later."""
    with connecting(place) as made:
        assert select.select([], [made], [], DEADLINE_S)[1]
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
