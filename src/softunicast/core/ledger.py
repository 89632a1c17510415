"""The ledger: the book of blocks, addresses, servers and leases. Its interface, and every backend's rules.

Rules that do not depend on how the book is kept (what an inventory may say, what may be leased) are pure
functions here, so that all backends refuse the same things with the same words. Backends live in
`softunicast.ledger`; `tests/ledger/conformance.py` is what each of them must pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from softunicast.core.errors import InputError, OverlapError, UnknownNameError
from softunicast.core.leases import Lease
from softunicast.core.plan import Plan, diff
from softunicast.core.records import (
    SLICE_PORTS_MAX,
    SLICE_PORTS_MIN,
    Address,
    Block,
    HistoryEntry,
    Inventory,
    Server,
    Snapshot,
)
from softunicast.core.slices import SYSTEM_PORTS, IPAddress, Slice, first_slice

HISTORY_LIMIT_MAX = 10_000
"""Entries that one `history` answer holds at most: renewals wait while a backend reads them."""


@dataclass(frozen=True, slots=True)
class Changes:
    """How many blocks and addresses an inventory added, changed and removed."""

    added: int
    changed: int
    removed: int


class Ledger(Protocol):
    """What a backend does. Every call is one atomic step: it happens whole or not at all.

    Calls raise InputError (and below) when asked for something wrong, LeaseError (and below) when a lease
    cannot make the step, both with nothing changed, and LedgerError when the book could not be read or
    written. After a LedgerError, and when a call was cancelled, a change may have happened all the same: read
    again. A lease taken that way shows in the snapshot under this server's name, and `renew` takes it up.
    """

    def now(self) -> float:
        """The clock that lease times are counted in, in seconds. Not the wall clock, and not of this call's
        caller: compare `expires_at` and `quarantined_until` with nothing else."""

    async def apply_inventory(self, inventory: Inventory) -> Changes:
        """Make blocks and addresses exactly these. OverlapError when blocks overlap, or when an address with
        a live lease would go, move to another site, or be cut differently; InputError when the inventory
        contradicts itself (an address in no block or there twice, slices of a wrong size)."""

    async def register_server(self, server: Server) -> None:
        """Add the server, or change what is known under its name."""

    async def snapshot(self) -> Snapshot:
        """Everything at one version, leases that are not free included. Time alone changes nothing here: an
        expired lease shows as it was until `lapse` or `acquire` moves it on."""

    async def version(self) -> int:
        """A number that grows with every change. Cheap: meant to be asked several times a second."""

    async def acquire(self, server: str, slice: Slice, ttl_s: float) -> Lease:
        """A new lease under an epoch above all earlier ones. SliceTakenError when the slice overlaps one that
        is live or quarantined; UnknownNameError for a server or address that is not in the book; InputError
        unless the slice is a unit of an address at the server's site (`check_unit`, `check_site`)."""

    async def renew(self, lease: Lease, ttl_s: float) -> Lease:
        """The lease with a later expiry. LeaseError when it was lost. The same holds for the next two."""

    async def drain(self, lease: Lease) -> Lease:
        """Held to draining."""

    async def release(self, lease: Lease, clean: bool) -> None:
        """Give it back, after the data path has let go. `clean`: no live flow, so no quarantine."""

    async def lapse(self) -> int:
        """Move on the leases whose time is over; returns how many."""

    async def history(self, slice: Slice | None, at: float | None, limit: int) -> list[HistoryEntry]:
        """The last `limit` entries, latest first: of slices that overlap `slice`, not later than unix time
        `at`. Renewals are not entered: the expiry that follows the last one says all there is to know."""

    async def holder(self, address: IPAddress, port: int, at: float) -> HistoryEntry | None:
        """The entry under which the port was taken by whoever could send from it at unix time `at`."""

    async def close(self) -> None:
        """Let go of the book. Leases stay as they are. Closing twice is no error."""


# -- rules ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InventoryPlan:
    """What an inventory changes, keyed by the block or address as a slice."""

    blocks: Plan[Slice, Block]
    addresses: Plan[Slice, Address]

    @property
    def changes(self) -> Changes:
        plans = (self.blocks, self.addresses)
        return Changes(
            added=sum(len(plan.add) for plan in plans),
            changed=sum(len(plan.change) for plan in plans),
            removed=sum(len(plan.remove) for plan in plans),
        )


def plan_inventory(wanted: Inventory, actual: Inventory, leases: Iterable[Lease]) -> InventoryPlan:
    """The way from the `actual` inventory to the `wanted` one; raises what `Ledger.apply_inventory` does."""
    _check_blocks(wanted.blocks)
    _check_addresses(wanted)
    plan = InventoryPlan(
        blocks=diff(_blocks_by_slice(wanted), _blocks_by_slice(actual)),
        addresses=diff(_addresses_by_slice(wanted), _addresses_by_slice(actual)),
    )
    before = _addresses_by_slice(actual)
    for lease in leases:
        if lease.live:
            _check_leased(lease, lease.slice.parent(lease.slice.bits - 16), plan.addresses, before)
    return plan


def check_unit(slice: Slice, address: Address) -> None:
    """Raises InputError unless the slice is one that `address` is cut into, and above the system ports."""
    whole = Slice.of(address.address)
    if not whole.contains(slice) or slice.ports != address.slice_ports:
        raise InputError(
            f"{slice} is not a slice of {address.address}, which is cut by {address.slice_ports} ports",
            f"ask for one like {first_slice(address.address, address.slice_ports)}",
        )
    if slice.port_first < SYSTEM_PORTS and not slice.is_address:
        raise InputError(
            f"{slice} has ports below {SYSTEM_PORTS}, which are never given out",
            f"start with {first_slice(address.address, address.slice_ports)}",
        )


def check_site(server: Server, address: Address) -> None:
    """Raises InputError unless the server is at the site where the address is announced."""
    if server.site != address.site:
        raise InputError(
            f"{server.name} is at site {server.site}, {address.address} at site {address.site}",
            "ask for an address of the server's own site",
        )


def check_history_limit(limit: int) -> None:
    """Raises InputError unless an answer may have this many entries."""
    if not 1 <= limit <= HISTORY_LIMIT_MAX:
        raise InputError(f"a limit of {limit} history entries", f"ask for 1 to {HISTORY_LIMIT_MAX}")


def unknown(what: str, name: object) -> UnknownNameError:
    """The error for a server or address that the book does not have."""
    fix = "start its agent once" if what == "server" else "add it with `softunicast ledger apply FILE`"
    return UnknownNameError(f"the ledger knows no {what} {name}", fix)


def _blocks_by_slice(inventory: Inventory) -> dict[Slice, Block]:
    return {block.prefix: block for block in inventory.blocks}


def _addresses_by_slice(inventory: Inventory) -> dict[Slice, Address]:
    return {Slice.of(address.address): address for address in inventory.addresses}


def _check_blocks(blocks: Iterable[Block]) -> None:
    # Sorted, a prefix comes right before the ones inside it, so neighbours are all there is to compare.
    ordered = sorted(block.prefix for block in blocks)
    for prefix in ordered:
        if prefix.is_port_slice:
            raise InputError(f"block {prefix} is not a block of whole addresses", "leave the ports out")
    for one, other in itertools.pairwise(ordered):
        if one.overlaps(other):
            raise OverlapError(f"blocks {one} and {other} overlap", "keep one of them")


def _check_addresses(inventory: Inventory) -> None:
    seen: set[IPAddress] = set()
    prefixes = {block.prefix for block in inventory.blocks}
    lengths = sorted({prefix.length for prefix in prefixes})
    for address in inventory.addresses:
        ports = address.slice_ports
        most = SLICE_PORTS_MAX[address.address.version]
        if not SLICE_PORTS_MIN <= ports <= most or ports & (ports - 1):
            raise InputError(
                f"address {address.address} cannot be cut into slices of {ports} ports",
                f"use a power of two from {SLICE_PORTS_MIN} to {most}",
            )
        if address.address in seen:
            raise InputError(f"address {address.address} is there twice", "keep one of them")
        seen.add(address.address)
        whole = Slice.of(address.address)
        if not any(whole.parent(length) in prefixes for length in lengths if length <= whole.length):
            raise InputError(
                f"address {address.address} lies in no block", "add its block, or remove the address"
            )


def _check_leased(
    lease: Lease, whole: Slice, plan: Plan[Slice, Address], before: Mapping[Slice, Address]
) -> None:
    changed = plan.change.get(whole)
    keeps = changed is None or (changed.site, changed.slice_ports) == (
        before[whole].site,
        before[whole].slice_ports,
    )
    if whole in plan.remove or not keeps:
        doing = "removed" if whole in plan.remove else "moved to another site or cut differently"
        raise OverlapError(
            f"address {whole.address} cannot be {doing}: {lease.server} has a live lease on {lease.slice}",
            "stop its holders first, or wait until their leases are over",
        )
