"""Ethernet frames to ask the data path about: made from a person's words, and read back into them.

TCP, UDP or ICMP echo, checksums right, no payload: what `explain` needs, not a packet library.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from softunicast.core.endpoints import endpoint_text, parse_endpoint
from softunicast.core.errors import InputError
from softunicast.core.slices import IPAddress

NUMBERS: Final = {"icmp": 1, "tcp": 6, "udp": 17}
ICMP6: Final = 58
TCP_FLAGS: Final = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16}
UNREACHABLE: Final = {0: "network unreachable", 1: "host unreachable", 13: "administratively prohibited"}

UNREACHABLE6: Final = {0: "no route", 1: "administratively prohibited", 3: "address unreachable"}

_HEADER: Final = struct.Struct("!BBHHHBBH4s4s")
_HEADER6: Final = struct.Struct("!IHBB16s16s")
_EXTENSIONS: Final = (0, 43, 60)


@dataclass(frozen=True, slots=True)
class End:
    """An address and a port (ICMP echo: the identifier)."""

    address: IPAddress
    port: int

    @classmethod
    def parse(cls, text: str) -> End:
        """ "198.51.100.10:2049", "[2001:db8:64::10]:2049"; raises InputError."""
        address, port = parse_endpoint(text)
        if port is None:
            raise InputError(f"{text!r} has no port", "write it like 203.0.113.1:443 or [2001:db8::1]:443")
        return cls(address, port)

    def __str__(self) -> str:
        return endpoint_text(self.address, self.port)


def build(
    protocol: str, source: End, destination: End, flags: tuple[str, ...] = (), hop_limit: int = 64
) -> bytes:
    """A frame between two made-up MAC addresses. ICMP: an echo request whose identifier is `source.port`."""
    if protocol not in NUMBERS:
        raise InputError(f"{protocol!r} cannot be explained", f"use one of {', '.join(sorted(NUMBERS))}")
    unknown = set(flags) - set(TCP_FLAGS)
    if unknown:
        raise InputError(f"{', '.join(sorted(unknown))}: no TCP flag", f"use {', '.join(TCP_FLAGS)}")
    version = source.address.version
    if version != destination.address.version:
        raise InputError(f"{source} and {destination} are not of one family", "give two of IPv4 or of IPv6")
    segment = bytearray(_segment(protocol, source, destination, flags))
    addresses = source.address.packed + destination.address.packed
    number = ICMP6 if protocol == "icmp" and version == 6 else NUMBERS[protocol]
    pseudo = b"" if number == NUMBERS["icmp"] else addresses + struct.pack("!HH", number, len(segment))
    at = {"icmp": 2, "tcp": 16, "udp": 6}[protocol]
    segment[at : at + 2] = _checksum(pseudo + segment).to_bytes(2, "big")
    macs = bytes.fromhex("020000000001020000000002")
    if version == 6:
        header6 = struct.pack("!IHBB", 6 << 28, len(segment), number, hop_limit)
        return macs + b"\x86\xdd" + header6 + addresses + bytes(segment)
    header = bytearray(
        _HEADER.pack(
            0x45,
            0,
            20 + len(segment),
            0,
            0x4000,
            hop_limit,
            number,
            0,
            addresses[:4],
            addresses[4:],
        )
    )
    header[10:12] = _checksum(header).to_bytes(2, "big")
    return macs + b"\x08\x00" + bytes(header + segment)


def _segment(protocol: str, source: End, destination: End, flags: tuple[str, ...]) -> bytes:
    if protocol == "tcp":
        bits = sum(TCP_FLAGS[flag] for flag in flags or ("ack",))
        return struct.pack("!HHIIBBHHH", source.port, destination.port, 1, 0, 5 << 4, bits, 65535, 0, 0)
    if protocol == "udp":
        return struct.pack("!HHHH", source.port, destination.port, 8, 0)
    return struct.pack("!BBHHH", 8 if source.address.version == 4 else 128, 0, 0, source.port, 1)


def _checksum(data: bytes | bytearray) -> int:
    padded = bytes(data) + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def describe(frame: bytes) -> str:
    """One line: protocol, ends, flags, hop limit; what an ICMP error says."""
    found = _headers(frame)
    if found is None:
        return "not an IP frame"
    source, destination, number, hop_limit, segment = found
    names = {number: name for name, number in NUMBERS.items()} | {ICMP6: "icmp"}
    protocol = names.get(number, f"protocol {number}")
    if len(segment) < (14 if protocol == "tcp" else 8):  # as far as its flags
        return f"{protocol} {source} > {destination} (truncated)"
    if protocol == "icmp":
        said = _icmp_text(segment) if number != ICMP6 else _icmp6_text(segment)
        return f"icmp {said} {source} > {destination}, hop limit {hop_limit}"
    first, second = struct.unpack_from("!HH", segment)
    flags = [name for name, bit in TCP_FLAGS.items() if protocol == "tcp" and segment[13] & bit]
    ends = f"{endpoint_text(source, first)} > {endpoint_text(destination, second)}"
    return f"{protocol} {ends}{_bracketed(flags)}, hop limit {hop_limit}"


def _headers(frame: bytes) -> tuple[IPAddress, IPAddress, int, int, bytes] | None:
    """Source, destination, transport protocol, hop limit and what follows the IP headers."""
    if frame[12:14] == b"\x08\x00" and len(frame) >= 34:
        fields = _HEADER.unpack_from(frame, 14)
        segment = frame[14 + (fields[0] & 15) * 4 :]
        return ip_address(fields[8]), ip_address(fields[9]), fields[6], fields[5], segment
    if frame[12:14] == b"\x86\xdd" and len(frame) >= 54:
        _, _, number, hop_limit, source, destination = _HEADER6.unpack_from(frame, 14)
        segment = frame[54:]
        while number in _EXTENSIONS and len(segment) >= 8:
            number, segment = segment[0], segment[(segment[1] + 1) * 8 :]
        return ip_address(source), ip_address(destination), number, hop_limit, segment
    return None


def _icmp_text(segment: bytes) -> str:
    kind, code = segment[0], segment[1]
    if kind in (0, 8):
        return _echo_text(kind == 0, segment)
    if kind == 3:
        return UNREACHABLE.get(code, f"unreachable code {code}")
    return "time exceeded" if kind == 11 else f"type {kind} code {code}"


def _icmp6_text(segment: bytes) -> str:
    kind, code = segment[0], segment[1]
    if kind in (128, 129):
        return _echo_text(kind == 129, segment)
    if kind == 1:
        return UNREACHABLE6.get(code, f"unreachable code {code}")
    return {2: "packet too big", 3: "time exceeded"}.get(kind, f"type {kind} code {code}")


def _echo_text(reply: bool, segment: bytes) -> str:
    return f"echo {'reply' if reply else 'request'} id {int.from_bytes(segment[4:6], 'big')}"


def _bracketed(flags: list[str]) -> str:
    return f" [{' '.join(flags)}]" if flags else ""


def mac_text(frame: bytes) -> str:
    """The destination MAC address."""
    return frame[:6].hex(":")
