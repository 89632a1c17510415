"""One end of a conversation as text: `10.0.0.2:40000`, `[2001:db8::2]:40000`, or the address alone.

IPv6 wants brackets before a port, and is written in its short form (RFC 5952), so that equal ends are equal texts.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final

from softunicast.core.errors import InputError
from softunicast.core.slices import PORTS, IPAddress

EXAMPLES: Final = "write it like 10.0.0.2:40000 or [2001:db8::2]:40000"


def endpoint_text(address: IPAddress, port: int | None) -> str:
    """The way back of `parse_endpoint`."""
    if port is None:
        return str(address)
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"


def parse_endpoint(text: str) -> tuple[IPAddress, int | None]:
    """Address and port; the port is None when there is none. Raises InputError."""
    shown = text[:60]
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not closed or colon not in ("", ":"):
            raise InputError(f"{shown!r} is not an address", EXAMPLES)
        address = _address(shown, host, 6)
    elif text.count(":") > 1:
        address, colon, port = _address(shown, text, 6), "", ""
    else:
        host, colon, port = text.partition(":")
        address = _address(shown, host, 4)
    if not colon:
        return address, None
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) < PORTS):
        raise InputError(f"{shown} has no valid port", f"use one of 0-{PORTS - 1}")
    return address, int(port)


def address_order(address: IPAddress) -> tuple[int, int]:
    """To sort addresses of both families by: IPv4 first."""
    return address.version, int(address)


def _address(text: str, host: str, version: int) -> IPAddress:
    try:
        if "%" in host:  # a zone: of one interface only
            raise ValueError(host)
        return IPv4Address(host) if version == 4 else IPv6Address(host)
    except ValueError as error:
        raise InputError(f"{text!r} is not an IPv{version} address", EXAMPLES) from error
