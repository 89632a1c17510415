"""What is read and written inside one transaction on a ledger's SQLite file.

Decisions come from `softunicast.core`; here they become rows, each change with its entry in the history.
Nothing here begins or ends a transaction, waits, or reads the time that decides: `now` (seconds of the boot
clock) is passed in by `sqlite.py`, which runs every method between BEGIN and COMMIT.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from softunicast.core.errors import LeaseError
from softunicast.core.leases import (
    ENDS,
    Lease,
    LeaseEvent,
    LeaseState,
    drain,
    lapses,
    release,
    renew,
    take,
)
from softunicast.core.ledger import Changes, check_site, check_unit, plan_inventory, unknown
from softunicast.core.plan import Action
from softunicast.core.records import Address, Block, HistoryEntry, Inventory, Server, Snapshot
from softunicast.core.slices import IPAddress, Slice, slice_of_port
from softunicast.ledger import rows

_PAST = {Action.ADD: "added", Action.CHANGE: "changed", Action.REMOVE: "removed"}


class Book:
    """The tables behind one connection. `wall_at` gives the unix time of a moment of the boot clock.

    `quarantine_s` is for the leases that are taken here and goes with them: whoever sees one expire, with
    whatever setting of its own, quarantines it for as long as its holder wanted.
    """

    def __init__(
        self, connection: sqlite3.Connection, wall_at: Callable[[float], float], quarantine_s: float
    ) -> None:
        self._connection = connection
        self._wall_at = wall_at
        self._quarantine_s = quarantine_s

    # -- reading ---------------------------------------------------------------------------------------------

    def boot_id(self) -> str:
        return str(self._one("SELECT boot_id FROM book")[0])

    def version(self) -> int:
        return int(self._one("SELECT version FROM book")[0])

    def snapshot(self) -> Snapshot:
        inventory = self._inventory()
        servers = self._connection.execute(f"SELECT {rows.SERVER} FROM servers ORDER BY name")
        return Snapshot(
            version=self.version(),
            blocks=inventory.blocks,
            addresses=inventory.addresses,
            servers=tuple(rows.server_of(row) for row in servers),
            leases=self._leases(),
        )

    def history(self, slice: Slice | None, at: float | None, limit: int) -> list[HistoryEntry]:
        first, last = (None, None) if slice is None else rows.ends(slice)
        found = self._connection.execute(
            f"SELECT {rows.HISTORY} FROM history WHERE (:first IS NULL OR first <= :last AND last >= :first)"
            " AND (:at IS NULL OR at <= :at) ORDER BY id DESC LIMIT :limit",
            {"first": first, "last": last, "at": at, "limit": limit},
        )
        return [rows.history_of(row) for row in found]

    def holder(self, address: IPAddress, port: int, at: float, now: float) -> HistoryEntry | None:
        self.lapse(now)  # so that an end that nobody has entered yet is in the book
        port_key = rows.ends(slice_of_port(address, port, 1))[0]
        address_key = rows.ends(Slice.of(address))[0]  # no lease starts before its address
        marks = ", ".join("?" * len(ENDS))
        row = self._maybe(
            f"SELECT {rows.HISTORY} FROM history AS tenure"
            " WHERE event = ? AND at <= ? AND first BETWEEN ? AND ? AND last >= ?"
            " AND NOT EXISTS (SELECT 1 FROM history AS later WHERE later.epoch = tenure.epoch"
            f" AND later.at <= ? AND later.event IN ({marks})) ORDER BY id DESC LIMIT 1",
            (LeaseEvent.TAKEN, at, address_key, port_key, port_key, at, *ENDS),
        )
        return None if row is None else rows.history_of(row)

    def due(self, now: float, limit: int = -1) -> list[tuple[Lease, float]]:
        """The leases whose time is over, with their `quarantine_s`; all of them unless there is a limit."""
        found = self._connection.execute(
            f"SELECT quarantine_s, {rows.LEASE} FROM leases"
            " WHERE coalesce(quarantined_until, expires_at) <= ? LIMIT ?",
            (now, limit),
        )
        return [(rows.lease_of(row[1:]), row[0]) for row in found]

    # -- inventory and servers -------------------------------------------------------------------------------

    def apply_inventory(self, inventory: Inventory, now: float) -> Changes:
        self.lapse(now)
        plan = plan_inventory(inventory, self._inventory(), self._leases())
        for block in plan.blocks.steps():
            self._store_block(block.action, block.value)
            self._enter(now, f"block_{_PAST[block.action]}", block.key)
        for address in plan.addresses.steps():
            self._store_address(address.action, address.value)
            _, site, tags, ports = rows.address_row(address.value)
            detail = f"site {site}, tags {tags}, slices of {ports}"
            self._enter(now, f"address_{_PAST[address.action]}", address.key, detail=detail)
        return plan.changes

    def register(self, server: Server, now: float) -> None:
        known = self._server(server.name)
        if known == server:
            return
        self._connection.execute(
            f"INSERT INTO servers ({rows.SERVER}) VALUES (?, ?, ?, ?) ON CONFLICT (name)"
            " DO UPDATE SET site = excluded.site, address = excluded.address, mac = excluded.mac",
            rows.server_row(server),
        )
        event = "server_added" if known is None else "server_changed"
        detail = f"site {server.site}, {server.address}, {server.mac}"
        self._enter(now, event, server=server.name, detail=detail)

    # -- leases ----------------------------------------------------------------------------------------------

    def acquire(self, server: str, slice: Slice, ttl_s: float, now: float) -> Lease:
        self._check_may_take(server, slice)
        self.lapse(now)
        standing = self._standing(slice)
        (epoch,) = self._one("UPDATE book SET epoch = epoch + 1 RETURNING epoch")
        lease = take(slice, server, epoch, now, ttl_s, standing)
        self._connection.execute(
            f"INSERT INTO leases (quarantine_s, {rows.LEASE}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self._quarantine_s, *rows.lease_row(lease)),
        )
        self._enter_lease(now, LeaseEvent.TAKEN, lease, f"for {ttl_s:g} s unless renewed")
        return lease

    def renew(self, lease: Lease, ttl_s: float, now: float) -> Lease:
        after = renew(self._standing_or_lost(lease), lease.server, lease.epoch, now, ttl_s)
        self._store(after)
        return after

    def drain(self, lease: Lease, now: float) -> Lease:
        before = self._standing_or_lost(lease)
        after = drain(before, lease.server, lease.epoch, now)
        if after != before:
            self._store(after)
            self._enter_lease(now, LeaseEvent.DRAIN_STARTED, after)
        return after

    def release(self, lease: Lease, clean: bool, now: float) -> None:
        before = self._standing_or_lost(lease)
        after = release(before, lease.server, lease.epoch, clean, now, self._quarantine_s)
        self._store(after)
        event = LeaseEvent.HANDED_OVER if clean else LeaseEvent.RELEASED
        detail = "no live flow" if clean else f"with live flows: quarantined for {self._quarantine_s:g} s"
        self._enter_lease(now, event, after, detail)

    def lapse(self, now: float) -> int:
        due = self.due(now)
        for lease, quarantine_s in due:
            for event, at, after in lapses(lease, now, quarantine_s):
                self._enter_lease(at, event, after)
                lease = after
            self._store(lease)
        return len(due)

    def start_boot(self, boot_id: str, now: float) -> None:
        """The host has rebooted: what was live ended when this boot began (zero of its clock), or before."""
        self._connection.execute("UPDATE book SET boot_id = ?, version = version + 1", (boot_id,))
        self._connection.execute(
            "UPDATE leases SET expires_at = 0, quarantined_until = CASE state WHEN 'quarantined' THEN quarantine_s END"
        )
        self._enter(0, "host_started", detail=f"boot {boot_id}")
        self.lapse(now)

    # -- rows ------------------------------------------------------------------------------------------------

    def _one(self, query: str) -> rows.Row:
        """The only row. Fetches past it, which is what finishes a statement with RETURNING."""
        (row,) = self._connection.execute(query).fetchall()
        return tuple(row)

    def _maybe(self, query: str, values: rows.Row) -> rows.Row | None:
        found: rows.Row | None = self._connection.execute(query, values).fetchone()
        return found

    def _inventory(self) -> Inventory:
        select = self._connection.execute
        prefixes = sorted(Slice.parse(row[0]) for row in select("SELECT prefix FROM blocks"))
        addresses = rows.addresses_of(select(f"SELECT {rows.ADDRESS} FROM addresses"))
        return Inventory(tuple(Block(prefix) for prefix in prefixes), addresses)

    def _server(self, name: str) -> Server | None:
        row = self._maybe(f"SELECT {rows.SERVER} FROM servers WHERE name = ?", (name,))
        return None if row is None else rows.server_of(row)

    def _leases(self) -> tuple[Lease, ...]:
        found = self._connection.execute(f"SELECT {rows.LEASE} FROM leases ORDER BY first")
        return tuple(rows.lease_of(row) for row in found)

    def _check_may_take(self, server: str, slice: Slice) -> None:
        known = self._server(server)
        if known is None:
            raise unknown("server", server)
        query = f"SELECT {rows.ADDRESS} FROM addresses WHERE address = ?"
        addresses = rows.addresses_of(self._connection.execute(query, (str(slice.address),)))
        if not addresses:
            raise unknown("address", slice.address)
        check_site(known, addresses[0])
        check_unit(slice, addresses[0])

    def _standing(self, slice: Slice) -> Lease | None:
        """What is on the slice, if anything. Leases do not overlap, so the last that starts at or before the
        end of the slice is the only one that can."""
        _, last = rows.ends(slice)
        query = f"SELECT {rows.LEASE} FROM leases WHERE first <= ? ORDER BY first DESC LIMIT 1"
        row = self._maybe(query, (last,))
        lease = None if row is None else rows.lease_of(row)
        return lease if lease is not None and lease.slice.overlaps(slice) else None

    def _standing_or_lost(self, lease: Lease) -> Lease:
        standing = self._standing(lease.slice)
        if standing is None:
            lost = f"{lease.server}, epoch {lease.epoch}: the lease on {lease.slice} is over"
            raise LeaseError(lost, "take a new lease")
        return standing

    def _store(self, lease: Lease) -> None:
        """What a lease has become; free is no row."""
        if lease.state is LeaseState.FREE:
            self._connection.execute("DELETE FROM leases WHERE epoch = ?", (lease.epoch,))
            return
        self._connection.execute(
            "UPDATE leases SET state = ?, expires_at = ?, quarantined_until = ? WHERE epoch = ?",
            (lease.state.value, lease.expires_at, lease.quarantined_until, lease.epoch),
        )

    def _store_block(self, action: Action, block: Block) -> None:
        add, remove = "INSERT INTO blocks VALUES (?)", "DELETE FROM blocks WHERE prefix = ?"
        self._connection.execute(remove if action is Action.REMOVE else add, (str(block.prefix),))

    def _store_address(self, action: Action, address: Address) -> None:
        if action is Action.REMOVE:
            self._connection.execute("DELETE FROM addresses WHERE address = ?", (str(address.address),))
            return
        self._connection.execute(
            f"REPLACE INTO addresses ({rows.ADDRESS}) VALUES (?, ?, ?, ?)", rows.address_row(address)
        )

    def _enter_lease(self, at: float, event: LeaseEvent, lease: Lease, detail: str = "") -> None:
        self._enter(at, event.value, lease.slice, lease.server, lease.epoch, detail)

    def _enter(
        self,
        at: float,
        event: str,
        slice: Slice | None = None,
        server: str | None = None,
        epoch: int | None = None,
        detail: str = "",
    ) -> None:
        """Append to the history what happened at `at` of the boot clock."""
        first, last = (None, None) if slice is None else rows.ends(slice)
        self._connection.execute(
            "INSERT INTO history (at, event, first, last, server, epoch, detail)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (self._wall_at(at), event, first, last, server, epoch, detail),
        )
