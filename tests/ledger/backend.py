"""What the ledger tests stand on: a clock that moves only when told, what a backend gives to be tested, an
inventory to play with, and the check that a refused call has changed nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol

import pytest

from softunicast.core.ledger import Ledger
from softunicast.core.records import Address, Block, Inventory, Server
from softunicast.core.slices import Slice

TTL_S = 300.0
QUARANTINE_S = 120.0


class FakeClock:
    """A host's clocks that move only when told. `wall` may be set to anything."""

    def __init__(self) -> None:
        self.boot = "boot-1"
        self.up_s = 1000.0
        self.wall = 1_800_000_000.0

    def boot_id(self) -> str:
        return self.boot

    def uptime_s(self) -> float:
        return self.up_s

    def wall_s(self) -> float:
        return self.wall

    def advance(self, seconds: float) -> None:
        self.up_s += seconds
        self.wall += seconds

    def reboot(self, down_s: float = 60.0) -> None:
        """A new boot that has only just begun."""
        self.boot = f"boot-{int(self.boot.removeprefix('boot-')) + 1}"
        self.up_s = 0.0
        self.wall += down_s


class Backend(Protocol):
    """One empty ledger. Leases are quarantined for QUARANTINE_S; handles are closed with the backend."""

    clock: FakeClock

    async def open(self) -> Ledger: ...


SHARED = IPv4Address("198.51.100.10")
BLOCKS = (Block(Slice.parse("198.51.100.0/24")), Block(Slice.parse("2001:db8::/64")))
INVENTORY = Inventory(
    BLOCKS,
    (
        Address(SHARED, "lab", {"country": "gb", "product": "demo"}, 2048),
        Address(IPv4Address("198.51.100.11"), "lab", {"country": "fr"}, 64),
        Address(IPv6Address("2001:db8::10"), "lab", {"country": "gb"}, 2048),
        Address(IPv4Address("198.51.100.20"), "far", {"country": "gb"}, 2048),
    ),
)
SERVER1 = Server("server1", "lab", IPv4Address("192.0.2.1"), "02:00:00:00:00:01")
SERVER2 = Server("server2", "lab", IPv4Address("192.0.2.2"), "02:00:00:00:00:02")
SLICE = Slice.parse("198.51.100.10:2048-4095")
OTHER = Slice.parse("198.51.100.10:4096-6143")


async def furnish(ledger: Ledger) -> Ledger:
    await ledger.apply_inventory(INVENTORY)
    await ledger.register_server(SERVER1)
    await ledger.register_server(SERVER2)
    return ledger


@asynccontextmanager
async def refused(ledger: Ledger, error: type[Exception], text: str) -> AsyncIterator[None]:
    """The block raises `error` in one line that has `text`, and the ledger is as it was."""
    before = await ledger.snapshot(), await ledger.history(None, None, 100)
    with pytest.raises(error, match=text) as caught:
        yield
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert (await ledger.snapshot(), await ledger.history(None, None, 100)) == before
