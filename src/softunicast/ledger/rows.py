"""Records to rows of the SQLite ledger and back; the column lists that go with them.

Only shapes: no decisions, no SQL beyond the names of columns. A slice becomes two texts of 19 bytes (version,
16 bytes of address, 2 of port), so that byte order is numeric order and IPv4 never meets IPv6.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from ipaddress import IPv4Address, ip_address
from typing import Any

from softunicast.core.leases import Lease, LeaseState
from softunicast.core.records import Address, HistoryEntry, Server
from softunicast.core.slices import Slice

Row = tuple[Any, ...]

ADDRESS = "address, site, tags, slice_ports"
SERVER = "name, site, address, mac"
LEASE = "first, last, server, epoch, state, expires_at, quarantined_until"
HISTORY = "id, at, event, first, last, server, epoch, detail"

_NUMBER_BYTES = 18


def key(version: int, number: int) -> bytes:
    """The sortable form of an (address << 16 | port)."""
    return bytes([version]) + number.to_bytes(_NUMBER_BYTES, "big")


def ends(slice: Slice) -> tuple[bytes, bytes]:
    return key(slice.version, slice.first), key(slice.version, slice.last)


def slice_between(first: bytes, last: bytes) -> Slice:
    version = first[0]
    low, high = int.from_bytes(first[1:], "big"), int.from_bytes(last[1:], "big")
    bits = 48 if version == 4 else 144
    return Slice(version, low, bits - (high - low).bit_length())


def address_row(address: Address) -> Row:
    tags = json.dumps(dict(address.tags), sort_keys=True)
    return str(address.address), address.site, tags, address.slice_ports


def addresses_of(rows: Iterable[Row]) -> tuple[Address, ...]:
    """In numeric order, which the text column does not have."""
    addresses = [Address(ip_address(row[0]), row[1], json.loads(row[2]), row[3]) for row in rows]
    return tuple(sorted(addresses, key=lambda item: Slice.of(item.address)))


def server_row(server: Server) -> Row:
    return server.name, server.site, str(server.address), server.mac


def server_of(row: Row) -> Server:
    return Server(row[0], row[1], IPv4Address(row[2]), row[3])


def lease_row(lease: Lease) -> Row:
    return (
        *ends(lease.slice),
        lease.server,
        lease.epoch,
        lease.state.value,
        lease.expires_at,
        lease.quarantined_until,
    )


def lease_of(row: Row) -> Lease:
    first, last, server, epoch, state, expires_at, quarantined_until = row
    return Lease(slice_between(first, last), server, epoch, LeaseState(state), expires_at, quarantined_until)


def history_of(row: Row) -> HistoryEntry:
    number, at, event, first, last, server, epoch, detail = row
    slice = None if first is None else slice_between(first, last)
    return HistoryEntry(number, at, event, slice, server, epoch, detail)
