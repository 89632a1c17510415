"""Ethernet frames to ask the data path about: made from a person's words, and read back into them.

IPv4 with TCP, UDP or ICMP echo, checksums right, no payload: what `explain` needs, not a packet library.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Final

from softunicast.core.errors import InputError

NUMBERS: Final = {"icmp": 1, "tcp": 6, "udp": 17}
TCP_FLAGS: Final = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16}
UNREACHABLE: Final = {0: "network unreachable", 1: "host unreachable", 13: "administratively prohibited"}

_HEADER: Final = struct.Struct("!BBHHHBBH4s4s")


@dataclass(frozen=True, slots=True)
class End:
    """An address and a port (ICMP echo: the identifier)."""

    address: IPv4Address
    port: int

    @classmethod
    def parse(cls, text: str) -> End:
        """ "198.51.100.10:2049"; raises InputError."""
        address, colon, port = text.rpartition(":")
        try:
            if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
                raise ValueError(text)
            return cls(IPv4Address(address), int(port))
        except (AddressValueError, ValueError) as error:
            raise InputError(f"{text!r} is not ADDRESS:PORT", "write it like 203.0.113.1:443") from error

    def __str__(self) -> str:
        return f"{self.address}:{self.port}"


def build(
    protocol: str, source: End, destination: End, flags: tuple[str, ...] = (), hop_limit: int = 64
) -> bytes:
    """A frame between two made-up MAC addresses. ICMP: an echo request whose identifier is `source.port`."""
    if protocol not in NUMBERS:
        raise InputError(f"{protocol!r} cannot be explained", f"use one of {', '.join(sorted(NUMBERS))}")
    unknown = set(flags) - set(TCP_FLAGS)
    if unknown:
        raise InputError(f"{', '.join(sorted(unknown))}: no TCP flag", f"use {', '.join(TCP_FLAGS)}")
    segment = bytearray(_segment(protocol, source, destination, flags))
    addresses = source.address.packed + destination.address.packed
    pseudo = b"" if protocol == "icmp" else addresses + struct.pack("!HH", NUMBERS[protocol], len(segment))
    at = {"icmp": 2, "tcp": 16, "udp": 6}[protocol]
    segment[at : at + 2] = _checksum(pseudo + segment).to_bytes(2, "big")
    header = bytearray(
        _HEADER.pack(
            0x45,
            0,
            20 + len(segment),
            0,
            0x4000,
            hop_limit,
            NUMBERS[protocol],
            0,
            addresses[:4],
            addresses[4:],
        )
    )
    header[10:12] = _checksum(header).to_bytes(2, "big")
    return bytes.fromhex("020000000001020000000002") + b"\x08\x00" + bytes(header + segment)


def _segment(protocol: str, source: End, destination: End, flags: tuple[str, ...]) -> bytes:
    if protocol == "tcp":
        bits = sum(TCP_FLAGS[flag] for flag in flags or ("ack",))
        return struct.pack("!HHIIBBHHH", source.port, destination.port, 1, 0, 5 << 4, bits, 65535, 0, 0)
    if protocol == "udp":
        return struct.pack("!HHHH", source.port, destination.port, 8, 0)
    return struct.pack("!BBHHH", 8, 0, 0, source.port, 1)


def _checksum(data: bytes | bytearray) -> int:
    padded = bytes(data) + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def describe(frame: bytes) -> str:
    """One line: protocol, ends, flags, hop limit; what an ICMP error says."""
    if len(frame) < 34 or frame[12:14] != b"\x08\x00":
        return "not an IPv4 frame"
    fields = _HEADER.unpack_from(frame, 14)
    source, destination = IPv4Address(fields[8]), IPv4Address(fields[9])
    names = {number: name for name, number in NUMBERS.items()}
    segment = frame[14 + (fields[0] & 15) * 4 :]
    protocol = names.get(fields[6], f"protocol {fields[6]}")
    if len(segment) < (14 if protocol == "tcp" else 8):  # as far as its flags
        return f"{protocol} {source} > {destination} (truncated)"
    first, second = struct.unpack_from("!HH", segment)
    if protocol == "icmp":
        return f"icmp {_icmp_text(segment)} {source} > {destination}, hop limit {fields[5]}"
    flags = [name for name, bit in TCP_FLAGS.items() if protocol == "tcp" and segment[13] & bit]
    return f"{protocol} {source}:{first} > {destination}:{second}{_bracketed(flags)}, hop limit {fields[5]}"


def _icmp_text(segment: bytes) -> str:
    kind, code = segment[0], segment[1]
    if kind in (0, 8):
        return f"echo {'reply' if kind == 0 else 'request'} id {int.from_bytes(segment[4:6], 'big')}"
    if kind == 3:
        return UNREACHABLE.get(code, f"unreachable code {code}")
    return "time exceeded" if kind == 11 else f"type {kind} code {code}"


def _bracketed(flags: list[str]) -> str:
    return f" [{' '.join(flags)}]" if flags else ""


def mac_text(frame: bytes) -> str:
    """The destination MAC address."""
    return frame[:6].hex(":")
