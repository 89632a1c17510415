"""Packets with a source address and port of one's own choice, as root can send them past every socket rule."""

from __future__ import annotations

import socket
import struct
from typing import Final

from softunicast.core.errors import HostError

COUNT_MAX: Final = 10_000
PAYLOAD: Final = b"forged"
_SYN, _RST = 0x02, 0x04


def send(source: tuple[str, int], destination: tuple[str, int], count: int) -> None:
    """Send `count` datagrams. HostError without CAP_NET_RAW. That they were sent says nothing about the wire."""
    packet = datagram(source, destination, PAYLOAD)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for _ in range(count):
                raw.sendto(packet, (destination[0], 0))
    except PermissionError as error:
        raise HostError("cannot open a raw socket", "run as root") from error
    except OSError as error:
        raise HostError(f"cannot send to {destination[0]}: {error.strerror}") from error


def datagram(source: tuple[str, int], destination: tuple[str, int], payload: bytes) -> bytes:
    """A whole IPv4 packet with a UDP datagram (RFC 791, RFC 768), every checksum in place."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    length = 8 + len(payload)
    ports = struct.pack("!HHH", source[1], destination[1], length)
    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)
    # A sum of zero would mean that there is none: its other form in one's complement is sent instead.
    udp = ports + struct.pack("!H", _checksum(pseudo + ports + b"\0\0" + payload) or 0xFFFF) + payload
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, socket.IPPROTO_UDP)
    return head + struct.pack("!H", _checksum(head + b"\0\0" + addresses)) + addresses + udp


def reset(source: tuple[str, int], destination: tuple[str, int], sequence: int) -> bytes:
    """A TCP segment that says RST, without its IPv4 header: for a raw socket that is bound to the source (RFC 9293)."""
    return _segment(source, destination, sequence, _RST)


def syn(source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """A whole IPv4 packet that begins a TCP connection."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    head = struct.pack("!BBHHHBB", 0x45, 0, 40, 0, 0x4000, 64, socket.IPPROTO_TCP)
    return (
        head
        + struct.pack("!H", _checksum(head + b"\0\0" + addresses))
        + addresses
        + _segment(source, destination, 1, _SYN)
    )


def _segment(source: tuple[str, int], destination: tuple[str, int], sequence: int, flags: int) -> bytes:
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    head = struct.pack("!HHIIBBH", source[1], destination[1], sequence, 0, 5 << 4, flags, 65_535)
    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20)
    return head + struct.pack("!HH", _checksum(pseudo + head + b"\0\0\0\0"), 0)


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2))
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
