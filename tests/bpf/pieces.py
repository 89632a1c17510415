"""Cutting frames into fragments and putting fragments together again, as two honest ends would; and a server's two
sides as wires: frames put on one come out of the other through everything that is attached between.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.bpf import families
from tests.bpf.frames import FRAGMENT, changed, with_ip

OUTGOING = 4  # PACKET_OUTGOING: what this socket itself has sent
PEERS = ("clp", "upp")  # of the on-ramp and the uplink: see tests/bpf/world.py
DEADLINE_S = 5.0
HEADERS, HEADERS6 = 34, 62  # of a fragment, without options or extensions


def content_at() -> int:
    """Where the content of a fragment begins."""
    return HEADERS6 if families.chosen == 6 else HEADERS


def _piece(headers: bytes, content: bytes, offset: int, more: bool) -> bytes:
    """A fragment, with the other fields of `headers`."""
    flags = "MF" if more else ""
    if families.chosen == 6:
        long = changed(headers, 18, (8 + len(content)).to_bytes(2, "big"))
        return with_ip(long, frag=offset // 8, flags=flags) + content
    return with_ip(headers, len=20 + len(content), frag=offset // 8, flags=flags) + content


def _content(frame: bytes) -> bytes:
    if families.chosen == 6:
        return frame[HEADERS6 : 54 + int.from_bytes(frame[18:20], "big")]
    return frame[HEADERS : 14 + int.from_bytes(frame[16:18], "big")]


def cut(frame: bytes, content_bytes: int = 1000) -> list[bytes]:
    """The fragments of a frame without IP options, `content_bytes` (of eights) in each but the last."""
    if families.chosen == 6:
        frame = with_ip(frame, flags="")  # has a fragment header then
    content = _content(frame)
    made = []
    for at in range(0, len(content), content_bytes):
        part = content[at : at + content_bytes]
        more = at + len(part) < len(content) or more_of(frame)
        made.append(_piece(frame[: content_at()], part, offset_of(frame) + at, more))
    return made


def joined(fragments: Sequence[bytes]) -> bytes:
    """The datagram that these fragments, in any order, make; they have to be its and all of it, once. Of IPv6 with the
    fragment header of a whole packet."""
    headers = {_without_place(piece) for piece in fragments}
    assert len(headers) == 1, headers
    content = b""
    for piece in sorted(fragments, key=offset_of):
        assert offset_of(piece) == len(content)
        assert with_ip(piece) == piece  # the IPv4 checksum is right
        content += _content(piece)
        assert more_of(piece) == (offset_of(piece) != max(map(offset_of, fragments)))
    return _piece(fragments[0][: content_at()], content, 0, False)


def _without_place(piece: bytes) -> bytes:
    """The headers but for length, offset and checksum."""
    if families.chosen == 6:
        return piece[:18] + piece[20:56] + piece[58:HEADERS6]
    return piece[:14] + piece[18:20] + piece[22:24] + piece[26:HEADERS]


def offset_of(frame: bytes) -> int:
    if families.chosen == 6:
        return int.from_bytes(frame[56:58], "big") & 0xFFF8
    return (int.from_bytes(frame[20:22], "big") & 0x1FFF) * 8


def more_of(frame: bytes) -> bool:
    return bool(frame[57] & 1) if families.chosen == 6 else bool(frame[20] & 0x20)


def id_of(frame: bytes) -> int:
    return int.from_bytes(frame[58:62] if families.chosen == 6 else frame[18:20], "big")


def id_in(port: int) -> int:
    """An identification out of the slice that has this port."""
    return port << 16 | 9 if families.chosen == 6 else port


def port_of_id(frame: bytes) -> int:
    """Which says whose slice its identification is out of."""
    return id_of(frame) >> 16 if families.chosen == 6 else id_of(frame)


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
        if families.chosen == 6:
            wanted = (
                frame[12:14] == b"\x86\xdd" and frame[20] == FRAGMENT
            )  # and not what the link itself says
        else:
            wanted = frame[12:14] == b"\x08\x00"
        return [frame] if wanted and address[2] != OUTGOING else []


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
