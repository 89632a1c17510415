"""Cutting frames into fragments and putting fragments together again, as two honest ends would; and a server's two
sides as wires: frames put on one come out of the other through everything that is attached between.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from scapy.layers.inet import IP
from tests.bpf.frames import with_ip

OUTGOING = 4  # PACKET_OUTGOING: what this socket itself has sent
PEERS = ("clp", "upp")  # of the on-ramp and the uplink: see tests/bpf/world.py
DEADLINE_S = 5.0
HEADERS = 34


def cut(frame: bytes, content_bytes: int = 1000) -> list[bytes]:
    """The fragments of a frame without IP options, `content_bytes` (of eights) in each but the last."""
    content = frame[HEADERS : 14 + int.from_bytes(frame[16:18], "big")]
    found = IP(frame[14:HEADERS])
    made = []
    for at in range(0, len(content), content_bytes):
        part = content[at : at + content_bytes]
        more = at + len(part) < len(content) or bool(found.flags.MF)
        header = with_ip(
            frame[:HEADERS], len=20 + len(part), frag=found.frag + at // 8, flags="MF" if more else 0
        )
        made.append(header + part)
    return made


def joined(fragments: Sequence[bytes]) -> bytes:
    """The datagram that these fragments, in any order, make; they have to be its and all of it, once."""
    headers = {piece[:14] + piece[18:20] + piece[22:24] + piece[26:HEADERS] for piece in fragments}
    assert len(headers) == 1, headers  # but for length, offset and checksum
    content = b""
    for piece in sorted(fragments, key=offset_of):
        assert offset_of(piece) == len(content)
        assert with_ip(piece) == piece  # the IPv4 checksum is right
        content += piece[HEADERS : 14 + int.from_bytes(piece[16:18], "big")]
        assert more_of(piece) == (offset_of(piece) != max(map(offset_of, fragments)))
    return with_ip(fragments[0][:HEADERS], len=20 + len(content), frag=0, flags=0) + content


def offset_of(frame: bytes) -> int:
    return (int.from_bytes(frame[20:22], "big") & 0x1FFF) * 8


def more_of(frame: bytes) -> bool:
    return bool(frame[20] & 0x20)


def id_of(frame: bytes) -> int:
    return int.from_bytes(frame[18:20], "big")


class Wires:
    """What is at the far ends of the on-ramp and the uplink of a `World`."""

    def __init__(self, client: socket.socket, wire: socket.socket) -> None:
        self._client, self._wire = client, wire

    def out(self, frames: Sequence[bytes], expected: int) -> list[bytes]:
        """The frames that leave by the uplink when the client sends these, one after the other."""
        return self._through(self._client, self._wire, frames, expected)

    def back(self, frames: Sequence[bytes], expected: int) -> list[bytes]:
        """The frames that the client gets when these come by the uplink."""
        return self._through(self._wire, self._client, frames, expected)

    def _through(
        self, source: socket.socket, sink: socket.socket, frames: Sequence[bytes], expected: int
    ) -> list[bytes]:
        for frame in frames:
            source.send(frame)
        found: list[bytes] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(found) < expected:
            sink.settimeout(max(deadline - time.monotonic(), 0.001))
            found += self._next(sink)
        sink.settimeout(0.0)
        while True:  # and not one more
            try:
                found += self._next(sink)
            except BlockingIOError:
                return found

    @staticmethod
    def _next(sink: socket.socket) -> list[bytes]:
        frame, address = sink.recvfrom(1 << 16)
        return [] if address[2] == OUTGOING or frame[12:14] != b"\x08\x00" else [frame]


@contextmanager
def wires() -> Iterator[Wires]:
    """In the namespace of a `World`."""
    found = []
    try:
        for name in PEERS:
            found.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
            found[-1].bind((name, 0))
        yield Wires(*found)
    finally:
        for each in found:
            each.close()
