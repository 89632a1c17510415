"""The far end of a `World`'s uplink, and sockets of programs in a cgroup. Checksums are computed behind the hooks, as
everywhere: what arrives at the far end has to be right.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.bpf import families
from tests.bpf.agreements import agreed
from tests.bpf.frames import REMOTE, checksums_right, end, source_of
from tests.bpf.programs import cgroup, inside
from tests.bpf.world import ADDRESS, UPLINK, World

from softunicast.kernel.offload import set_tx_checksum

DEADLINE_S = 5.0
HOST = "192.0.2.1"
OUTGOING = 4  # PACKET_OUTGOING
DISCOVERY = range(133, 138)


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


@contextmanager
def far_end(interface: str = "upp") -> Iterator[Wire]:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as made:
        made.bind((interface, 0))
        yield Wire(made)


def prepare(world: World) -> World:
    """As it is with a card that does not sum up, and where anybody may ping."""
    set_tx_checksum(UPLINK, False)
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    world.reset()
    return world


@contextmanager
def agreed_place(world: World) -> Iterator[Path]:
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


def writable(made: socket.socket) -> bool:
    """It is, in time: connected, or refused."""
    waiting = select.poll()
    waiting.register(made, select.POLLOUT)
    return bool(waiting.poll(DEADLINE_S * 1000))
