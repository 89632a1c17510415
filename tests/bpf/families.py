"""The packet tables are written for IPv4, and run for IPv6 too: while `chosen` is 6, everything that has an address
in it (frames, tables, claims, flows) is made the one of the other family on its way into the kernel, and back.

A test that is about IPv4 alone says so (`ipv4_only`), or uses what only IPv4 has, and is skipped.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NoReturn

import pytest

from softunicast.core.desired import KernelState
from softunicast.core.slices import IPAddress, Slice
from softunicast.kernel import abi
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.flows import Drop, Flow, Sample
from softunicast.kernel.maps import Map
from softunicast.kernel.words import address_word, word_address

PUBLIC, PRIVATE = int(IPv6Address("2001:db8::")), int(IPv6Address("fd00::"))
MULTICAST = int(IPv6Address("ff0e::"))
# Type and code of ICMP errors, and what ICMPv6 has in their place.
KINDS = {(3, 0): (1, 0), (3, 1): (1, 3), (3, 3): (1, 4), (3, 4): (2, 0), (3, 13): (1, 1)}
KINDS |= {(11, 0): (3, 0), (11, 1): (3, 1), (12, 0): (4, 0)}
FAMILY_MAPS = (
    "blocks",
    "addresses",
    "pools",
    "onramps",
    "flows",
    "claims",
    "clients",
    "exhausted",
    "datagrams",
    "held",
)

chosen = 4


@contextmanager
def family(version: int) -> Iterator[None]:
    """Everything in it is of that family."""
    global chosen
    before, chosen = chosen, version
    try:
        yield
    finally:
        chosen = before


def ipv4_only(why: str) -> NoReturn:
    pytest.skip(f"of IPv4 only: {why}")


def six(address: str | IPv4Address) -> IPv6Address:
    """The IPv6 address that stands for it: its last four bytes."""
    value = int(IPv4Address(address))
    if not value:
        return IPv6Address(0)
    start = MULTICAST if value >> 28 == 14 else PRIVATE if value >> 24 == 10 else PUBLIC
    return IPv6Address(start + value)


def four(address: IPAddress) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)


def current(address: str) -> str:
    """As it is written in a packet of the chosen family."""
    return address if chosen == 4 or ":" in address else str(six(address))


def socket_family() -> int:
    return socket.AF_INET if chosen == 4 else socket.AF_INET6


def socket_end(text: str) -> tuple[str, int]:
    """An end as a socket wants it."""
    address, _, port = text.rpartition(":")
    return current(address), int(port)


def kind(of_ipv4: tuple[int, int]) -> tuple[int, int]:
    """An ICMP error's type and code."""
    return of_ipv4 if chosen == 4 else KINDS[of_ipv4]


def _slice(part: Slice, version: int) -> Slice:
    if part.version == version:
        return part
    address = part.address
    moved = int(six(str(address)) if version == 6 else four(address)) << 16 | part.port_first
    return Slice(version, moved, part.length + (96 if version == 6 else -96))


def _state(state: KernelState, version: int) -> KernelState:
    def other(address: IPAddress) -> IPAddress:
        if address.version == version:
            return address
        return six(str(address)) if version == 6 else four(address)

    return replace(
        state,
        blocks=frozenset(_slice(block, version) for block in state.blocks),
        addresses={other(address): table for address, table in state.addresses.items()},
        pools={
            name: replace(
                pool,
                slices=tuple(_slice(part, version) for part in pool.slices),
                families=frozenset({version}),
            )
            for name, pool in state.pools.items()
        },
    )


# Of the maps that tests read and write: the structs of key and value, for each family; None: no address in it.
RECORDS: Mapping[str, tuple[tuple[Any, Any] | None, tuple[Any, Any] | None]] = {
    "claims": ((abi.ClaimKey, abi.ClaimKey6), (abi.Claim, abi.Claim6)),
    "flows": ((abi.FlowKey, abi.FlowKey6), (abi.Flow, abi.Flow6)),
    "clients": ((abi.ClientKey, abi.ClientKey6), None),
    "onramps": (None, (abi.Onramp, abi.Onramp6)),
}
ICMP = {6: {1: 58}, 4: {58: 1}}  # the protocol that ICMP echo is
_FLOW_KEYS = (abi.FlowKey, abi.FlowKey6)


def _record(pair: tuple[Any, Any] | None, data: bytes, version: int) -> bytes:
    """The struct in the layout of that family."""
    if pair is None:
        return data
    source, target = pair if version == 6 else pair[::-1]
    values = source.unpack(data)._asdict()
    for name in ("client", "remote", "local", "address"):
        if name in values:
            word = values[name]
            values[name] = (
                six(str(word_address(word))).packed if version == 6 else address_word(four(IPv6Address(word)))
            )
    if "protocol" in values:
        values["protocol"] = ICMP[version].get(values["protocol"], values["protocol"])
    if isinstance(values.get("flow"), bytes):
        values["flow"] = _record(_FLOW_KEYS, values["flow"], version)
    packed: bytes = target(**values).pack()
    return packed


class OtherMap:
    """A map of IPv6, with keys and values in the layout of IPv4."""

    def __init__(self, real: Map, name: str) -> None:
        self.real = real
        self._key, self._value = RECORDS.get(name, (None, None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self.real.items():
            yield _record(self._key, key, 4), _record(self._value, value, 4)

    def get(self, key: bytes) -> bytes | None:
        value = self.real.get(_record(self._key, key, 6))
        return None if value is None else _record(self._value, value, 4)

    def set(self, key: bytes, value: bytes, flags: int = 0) -> None:
        self.real.set(_record(self._key, key, 6), _record(self._value, value, 6), flags)

    def delete(self, key: bytes) -> bool:
        return self.real.delete(_record(self._key, key, 6))


def as_ipv4(text: str) -> str:
    """ "[2001:db8::c633:640a]:2049" as "198.51.100.10:2049"."""
    if not text.startswith("["):
        return text
    address, _, port = text[1:].partition("]")
    return f"{four(IPv6Address(address))}{port}"


class OtherFamily:
    """A data path that tests of IPv4 can use for IPv6."""

    def __init__(self, datapath: Datapath) -> None:
        self.real = datapath

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def apply(self, wanted: KernelState) -> int:
        return self.real.apply(_state(wanted, 6))

    @property
    def state(self) -> KernelState:
        return _state(self.real.state, 4)

    def read(self) -> KernelState:
        return _state(self.real.read(), 4)

    def map(self, name: str) -> Any:
        return OtherMap(self.real.map(f"{name}6"), name) if name in FAMILY_MAPS else self.real.map(name)

    def flows(self, limit: int, wanted: Any = None) -> tuple[int, list[Flow]]:
        total, found = self.real.flows(limit, wanted)
        ends = ("client", "local", "remote")
        return total, [
            replace(flow, **{name: as_ipv4(getattr(flow, name)) for name in ends}) for flow in found
        ]

    def drops(self) -> list[Drop]:
        return [replace(drop, last=drop.last and _sample(drop.last)) for drop in self.real.drops()]


def _sample(last: Sample) -> Sample:
    return replace(last, source=as_ipv4(last.source), destination=as_ipv4(last.destination))
