"""What the ledger keeps, as plain records: blocks, addresses, servers, history, and a snapshot of it all.

Records hold data and nothing else: no rules, no defaults that depend on anything, no I/O. Rules about leases
live in `leases.py`, about tags and pools in `pools.py`, about slices in `slices.py`. Whoever reads text (the
configuration, the command line) checks it before a record is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from softunicast.core.slices import IPAddress, Slice

if TYPE_CHECKING:
    from softunicast.core.leases import Lease

# A slice of an address is a power of two of ports between these. Fewer than 16 would spend more on
# bookkeeping than on traffic; 65536 would leave only the first slice, whose first ports are the system's. Of IPv6,
# of which there is enough, a server may have a whole address; the data path leaves its system ports out.
SLICE_PORTS_MIN = 16
SLICE_PORTS_MAX = {4: 32768, 6: 65536}
SLICE_PORTS_DEFAULT = 2048


@dataclass(frozen=True, slots=True)
class Block:
    """A prefix of whole addresses that the site's routers deliver to the servers."""

    prefix: Slice


@dataclass(frozen=True, slots=True)
class Address:
    """One shared address: where it is homed, what it may be chosen by, and how its ports are cut."""

    address: IPAddress
    site: str
    tags: Mapping[str, str]
    slice_ports: int = SLICE_PORTS_DEFAULT


@dataclass(frozen=True, slots=True)
class Server:
    """One server: `address` and `mac` ("02:00:00:00:00:01") are how its site neighbours reach its uplink."""

    name: str
    site: str
    address: IPv4Address
    mac: str


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line of the ledger's book. `id` only grows; `at` is unix time in seconds (UTC), for people."""

    id: int
    at: float
    event: str
    slice: Slice | None
    server: str | None
    epoch: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """What an operator declares: the blocks, and the addresses inside them."""

    blocks: tuple[Block, ...]
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole ledger at one version. Two snapshots of one ledger with equal `version` are equal."""

    version: int
    blocks: tuple[Block, ...]
    addresses: tuple[Address, ...]
    servers: tuple[Server, ...]
    leases: tuple[Lease, ...]
