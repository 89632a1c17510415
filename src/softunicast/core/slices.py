"""The slice: one prefix over address and port together, for IPv4 (48 bits) and IPv6 (144 bits).

Write the 16 port bits after the address bits; a slice is then (version, first value, prefix length), and to
contain, overlap, split and aggregate work on ports exactly as CIDR works on addresses. A fleet has a million
of these, so a slice holds three integers; addresses and texts are made only when someone asks for them.

Texts: `198.51.100.0/24` (block), `198.51.100.10` or `198.51.100.10/32` (address), and for ports both
`198.51.100.10:2048/37` (prefix) and `198.51.100.10:2048-4095` (range); IPv6 wants brackets before a port.
A `Slice` that exists is valid: no host bits, no length out of range. Nothing here knows of leases or servers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final

from softunicast.core.errors import InputError, SliceSyntaxError

IPAddress = IPv4Address | IPv6Address

PORT_BITS: Final = 16
PORTS: Final = 1 << PORT_BITS
SYSTEM_PORTS: Final = 1024  # RFC 6335: those below are for servers, and never given out
_PORT_MASK: Final = PORTS - 1
_ADDRESS_BITS: Final = {4: 32, 6: 128}


@dataclass(frozen=True, slots=True, order=True, repr=False)
class Slice:
    """A prefix over address and port. Ordered by version, first value, length: what contains comes first.

    `first` is the smallest (address << 16 | port) in the slice, `length` the number of fixed leading bits,
    0-48 for IPv4 and 0-144 for IPv6. Raises InputError when they do not make a prefix.
    """

    version: int
    first: int
    length: int

    def __post_init__(self) -> None:
        if self.version not in _ADDRESS_BITS or not 0 <= self.length <= self.bits:
            raise InputError(
                f"no slice has version {self.version} and length {self.length}",
                "use version 4 with a length of 0-48, or 6 with 0-144",
            )
        if self.first >> self.bits or self.first & ((1 << (self.bits - self.length)) - 1):
            raise InputError(
                f"{self.first:#x} does not start an IPv{self.version} slice of length {self.length}",
                "clear the bits after the prefix",
            )

    @classmethod
    def parse(cls, text: str) -> Slice:
        """The slice that a text (either form, see the module) stands for; raises SliceSyntaxError."""
        return _parse(text)

    @classmethod
    def of(cls, address: IPAddress, port_first: int = 0, ports: int = PORTS) -> Slice:
        """`ports` ports of one address from `port_first` on; the whole address unless told.

        Raises InputError unless `ports` is a power of two up to 65536 and `port_first` a multiple of it.
        """
        if not (0 <= port_first < PORTS and 1 <= ports <= PORTS):
            raise InputError(f"ports {port_first}+{ports} are out of range", "stay within 0-65535")
        if ports & (ports - 1):
            raise InputError(f"{ports} ports are not a power of two", f"use {1 << ports.bit_length() - 1}")
        if port_first & (ports - 1):
            raise InputError(
                f"{ports} ports cannot start at {port_first}",
                f"start at {port_first & -ports}, a multiple of {ports}",
            )
        length = address.max_prefixlen + PORT_BITS + 1 - ports.bit_length()
        return cls(address.version, int(address) << PORT_BITS | port_first, length)

    @property
    def bits(self) -> int:
        """Bits of an address and a port: 48 for IPv4, 144 for IPv6. A slice this long is a single port."""
        return _ADDRESS_BITS[self.version] + PORT_BITS

    @property
    def last(self) -> int:
        """The largest (address << 16 | port) in the slice."""
        return self.first | ((1 << (self.bits - self.length)) - 1)

    @property
    def address(self) -> IPAddress:
        """The first address."""
        value = self.first >> PORT_BITS
        return IPv4Address(value) if self.version == 4 else IPv6Address(value)

    @property
    def addresses(self) -> int:
        """How many addresses the slice touches: one, unless it is a block."""
        return 1 << max(0, _ADDRESS_BITS[self.version] - self.length)

    @property
    def port_first(self) -> int:
        """The first port (0 for whole addresses)."""
        return self.first & _PORT_MASK

    @property
    def port_last(self) -> int:
        """The last port (65535 for whole addresses)."""
        return self.last & _PORT_MASK

    @property
    def ports(self) -> int:
        """Number of ports of each address in the slice: 65536 for whole addresses."""
        return 1 << min(PORT_BITS, self.bits - self.length)

    @property
    def is_block(self) -> bool:
        """Several whole addresses."""
        return self.length < _ADDRESS_BITS[self.version]

    @property
    def is_address(self) -> bool:
        """Exactly one whole address."""
        return self.length == _ADDRESS_BITS[self.version]

    @property
    def is_port_slice(self) -> bool:
        """Some, not all, ports of one address."""
        return self.length > _ADDRESS_BITS[self.version]

    @property
    def prefix_text(self) -> str:
        """`198.51.100.10:2048/37`; CIDR for whole addresses."""
        return f"{self._endpoint_text()}/{self.length}"

    @property
    def range_text(self) -> str:
        """`198.51.100.10:2048-4095`, the form for people; CIDR for whole addresses."""
        return f"{self._endpoint_text()}-{self.port_last}" if self.is_port_slice else self.prefix_text

    def _endpoint_text(self) -> str:
        if not self.is_port_slice:
            return str(self.address)
        return (
            f"[{self.address}]:{self.port_first}"
            if self.version == 6
            else f"{self.address}:{self.port_first}"
        )

    def __str__(self) -> str:
        return self.range_text

    def __repr__(self) -> str:
        return f"Slice({self.range_text!r})"

    def contains(self, other: Slice) -> bool:
        """Whether every port of `other` is in this slice (a slice contains itself)."""
        return (
            self.version == other.version
            and self.length <= other.length
            and (self.first ^ other.first) >> (self.bits - self.length) == 0
        )

    def overlaps(self, other: Slice) -> bool:
        """Whether they share a port. Prefixes never overlap in part: one contains the other."""
        return self.contains(other) if self.length <= other.length else other.contains(self)

    def split(self, length: int) -> Iterator[Slice]:
        """All slices of `length` in this one, in order, made as they are asked for.

        Raises InputError, at once, when `length` is shorter than this slice's or longer than a single port's.
        """
        if not self.length <= length <= self.bits:
            raise InputError(f"{self} cannot be split into /{length}", f"use /{self.length} to /{self.bits}")
        step = 1 << (self.bits - length)
        return (Slice(self.version, first, length) for first in range(self.first, self.last + 1, step))

    def parent(self, length: int) -> Slice:
        """The slice of `length` that contains this one; raises InputError when `length` is longer."""
        if not 0 <= length <= self.length:
            raise InputError(f"{self} has no parent /{length}", f"use /0 to /{self.length}")
        shift = self.bits - length
        return Slice(self.version, self.first >> shift << shift, length)


def aggregate(slices: Iterable[Slice]) -> tuple[Slice, ...]:
    """The fewest slices that hold exactly the same addresses and ports, in order."""
    merged: list[Slice] = []
    for new in sorted(slices, key=lambda item: (item.version, item.first, item.length)):
        if merged and merged[-1].contains(new):
            continue
        # Two siblings become their parent, which may be the sibling of the one before it, and so on up.
        while merged and new.length > 0 and merged[-1].length == new.length:
            parent = new.parent(new.length - 1)
            if not parent.contains(merged[-1]):
                break
            merged.pop()
            new = parent
        merged.append(new)
    return tuple(merged)


def slice_of_port(address: IPAddress, port: int, ports: int) -> Slice:
    """The slice of `ports` ports (a power of two) that `port` of `address` falls into; raises InputError."""
    if not 0 <= port < PORTS:
        raise InputError(f"port {port} is out of range", "stay within 0-65535")
    return Slice.of(address, port & -ports, ports)


def first_slice(address: IPAddress, ports: int) -> Slice:
    """The lowest slice of `ports` ports of an address that may be given out: above the system ports, or all of it."""
    return Slice.of(address, max(SYSTEM_PORTS, ports) % PORTS, ports)


def slices_of(address: IPAddress, ports: int) -> tuple[Slice, ...]:
    """Every slice of `ports` ports (a power of two) of one address, in order; raises InputError."""
    return tuple(Slice.of(address).split(Slice.of(address, 0, ports).length))


# -- text ----------------------------------------------------------------------------------------------------

_NUMBER = "(0|[1-9][0-9]{0,4})"
_WHOLE: Final = re.compile(rf"([0-9A-Fa-f.:]+)(?:/{_NUMBER})?")
_PORTS: Final = re.compile(rf"(\[[0-9A-Fa-f.:]+\]|[0-9.]+):{_NUMBER}(?:/{_NUMBER}|-{_NUMBER})?")
_FORMS: Final = "write 198.51.100.0/24, 198.51.100.10, 198.51.100.10:2048-4095 or [2001:db8::1]:2048/133"
_SHOWN_MAX: Final = 60  # characters of a wrong text that an error repeats: it has to stay one readable line


def _parse(text: str) -> Slice:
    if match := _PORTS.fullmatch(text):
        host, port, length, port_last = match.groups()
        address = _address(text, host.strip("[]"), version=6 if host[0] == "[" else 4)
        if int(port) >= PORTS:
            raise _wrong(text, f"port {port} is out of range", "use ports 0-65535")
        if length is not None:
            return _of_prefix(text, address, int(port), int(length))
        if port_last is not None:
            return _of_range(text, address, int(port), int(port_last))
        raise _wrong(text, "a port alone is not a slice", f"for that one port write {text}-{port}")
    if match := _WHOLE.fullmatch(text):
        host, length = match.groups()
        address = _address(text, host, version=6 if ":" in host else 4)
        return _of_cidr(text, address, address.max_prefixlen if length is None else int(length))
    raise _wrong(text, "neither a prefix nor a port range", _FORMS)


def _wrong(text: str, why: str, fix: str) -> SliceSyntaxError:
    shown = text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "..."
    return SliceSyntaxError(f"slice {shown!r}: {why}", fix)


def _address(text: str, host: str, version: int) -> IPAddress:
    try:
        return IPv6Address(host) if version == 6 else IPv4Address(host)
    except AddressValueError:
        raise _wrong(text, f"not an IPv{version} address", _FORMS) from None


def _of_cidr(text: str, address: IPAddress, length: int) -> Slice:
    if length > address.max_prefixlen:
        endpoint = f"[{address}]" if address.version == 6 else str(address)
        raise _wrong(
            text,
            f"length {length} is past the address",
            f"use /0 to /{address.max_prefixlen}, or name the first port: {endpoint}:PORT/{length}",
        )
    shift = address.max_prefixlen - length + PORT_BITS
    value = int(address) << PORT_BITS
    return _aligned(text, address, value, shift)


def _of_prefix(text: str, address: IPAddress, port: int, length: int) -> Slice:
    bits = address.max_prefixlen + PORT_BITS
    if not address.max_prefixlen <= length <= bits:
        raise _wrong(
            text,
            f"length {length} does not fit an address with a port",
            f"use /{address.max_prefixlen} (all ports) to /{bits} (one port)",
        )
    return _aligned(text, address, int(address) << PORT_BITS | port, bits - length)


def _aligned(text: str, address: IPAddress, value: int, shift: int) -> Slice:
    length = address.max_prefixlen + PORT_BITS - shift
    nearest = Slice(address.version, value >> shift << shift, length)
    if nearest.first != value:
        raise _wrong(text, f"bits after the /{length} prefix are set", f"write {nearest.prefix_text}")
    return nearest


def _of_range(text: str, address: IPAddress, port_first: int, port_last: int) -> Slice:
    if not port_first <= port_last < PORTS:
        raise _wrong(
            text, f"{port_first}-{port_last} is not a range of ports", "use FIRST-LAST within 0-65535"
        )
    ports = port_last - port_first + 1
    if ports & (ports - 1):
        fewer = 1 << ports.bit_length() - 1
        nearest = Slice.of(address, port_first & -fewer, fewer)
        raise _wrong(text, f"{ports} ports are not a power of two", f"write {nearest} or several slices")
    if port_first & (ports - 1):
        nearest = Slice.of(address, port_first & -ports, ports)
        raise _wrong(text, f"{ports} ports must start at a multiple of {ports}", f"write {nearest}")
    return Slice.of(address, port_first, ports)
