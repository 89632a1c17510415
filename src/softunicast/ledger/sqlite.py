"""The ledger in one SQLite file, shared by the agents of one host.

Every call is one transaction on one worker thread: the event loop never waits for the disk, and a call that
failed, or whose process died, has changed nothing. What happens inside a transaction is in `book.py`.

A ledger is a file of one host: expiry is judged by that host's boot clock. After a reboot the kernel state
that the leases guarded is gone, so they count as expired when this boot began. A second host on the same file
cannot be told from a reboot when it comes, but then the next call of the first one is refused.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from softunicast.core.errors import LedgerError
from softunicast.core.leases import QUARANTINE_DEFAULT_S, Lease
from softunicast.core.ledger import Changes, Ledger, check_history_limit
from softunicast.core.records import HistoryEntry, Inventory, Server, Snapshot
from softunicast.core.slices import IPAddress, Slice
from softunicast.ledger.book import Book
from softunicast.ledger.clock import Clock, HostClock
from softunicast.ledger.schema import connect, patiently, rollback, translated

T = TypeVar("T")


class SqliteLedger(Ledger):
    """Make one with `open`. Any number of tasks may use it; their calls wait for one another."""

    _connection: sqlite3.Connection  # these two belong to the worker thread
    _book: Book

    def __init__(self, path: Path, clock: Clock, quarantine_s: float) -> None:
        self._path = path
        self._clock = clock
        self._quarantine_s = quarantine_s
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

    @classmethod
    async def open(
        cls, path: Path, clock: Clock | None = None, quarantine_s: float = QUARANTINE_DEFAULT_S
    ) -> SqliteLedger:
        """Open the file, or make it (mode 0600; its directory must exist). Raises LedgerError.

        `clock`: the host's unless told. `quarantine_s` is for the leases that are taken here.
        """
        ledger = cls(path, clock or HostClock(), quarantine_s)
        try:
            await ledger._run(ledger._open)
        except BaseException:
            ledger._worker.shutdown(wait=False)
            raise
        return ledger

    async def close(self) -> None:
        try:
            await self._run(lambda: self._connection.close())
        except LedgerError:
            return  # closed before
        self._worker.shutdown(wait=False)

    def now(self) -> float:
        return self._clock.uptime_s()

    async def snapshot(self) -> Snapshot:
        return await self._read(lambda: self._book.snapshot())

    async def version(self) -> int:
        return await self._read(lambda: self._book.version())

    async def history(self, slice: Slice | None, at: float | None, limit: int) -> list[HistoryEntry]:
        check_history_limit(limit)
        return await self._read(lambda: self._book.history(slice, at, limit))

    async def holder(self, address: IPAddress, port: int, at: float) -> HistoryEntry | None:
        return await self._write(
            "reading the history of", lambda now: self._book.holder(address, port, at, now)
        )

    async def apply_inventory(self, inventory: Inventory) -> Changes:
        return await self._write(
            "changing the inventory of", lambda now: self._book.apply_inventory(inventory, now)
        )

    async def register_server(self, server: Server) -> None:
        await self._write(f"registering {server.name} in", lambda now: self._book.register(server, now))

    async def acquire(self, server: str, slice: Slice, ttl_s: float) -> Lease:
        return await self._write(
            f"taking {slice} for {server} in", lambda now: self._book.acquire(server, slice, ttl_s, now)
        )

    async def renew(self, lease: Lease, ttl_s: float) -> Lease:
        return await self._write(
            f"renewing {lease.slice} in", lambda now: self._book.renew(lease, ttl_s, now)
        )

    async def drain(self, lease: Lease) -> Lease:
        return await self._write(f"draining {lease.slice} in", lambda now: self._book.drain(lease, now))

    async def release(self, lease: Lease, clean: bool) -> None:
        await self._write(f"releasing {lease.slice} in", lambda now: self._book.release(lease, clean, now))

    async def lapse(self) -> int:
        # Agents ask all the time and mostly there is nothing: look before taking the lock that writers share.
        due = await self._read(lambda: self._book.due(self.now(), limit=1))
        return await self._write("expiring leases in", lambda now: self._book.lapse(now)) if due else 0

    # -- transactions ----------------------------------------------------------------------------------------

    async def _read(self, work: Callable[[], T]) -> T:
        """Everything that `work` reads is of one version."""
        return await self._run(lambda: self._transact("reading", "BEGIN", work))

    async def _write(self, doing: str, work: Callable[[float], T]) -> T:
        """`work` gets the time at which it has the ledger to itself, after any wait for other processes."""
        return await self._run(lambda: self._transact(doing, "BEGIN IMMEDIATE", lambda: work(self.now())))

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            future = asyncio.get_running_loop().run_in_executor(self._worker, work)
        except RuntimeError as error:
            raise LedgerError(f"ledger {self._path} is closed") from error
        return await future

    def _transact(self, doing: str, begin: str, work: Callable[[], T]) -> T:
        with translated(f"{doing} ledger {self._path}"):
            return patiently(lambda: self._attempt(begin, work))

    def _attempt(self, begin: str, work: Callable[[], T]) -> T:
        connection = self._connection
        try:
            connection.execute(begin)
            self._check_host()
            changes = connection.total_changes
            result = work()
            if connection.total_changes != changes:
                connection.execute("UPDATE book SET version = version + 1")
            connection.execute("COMMIT")
        except BaseException:
            rollback(connection)
            raise
        return result

    def _check_host(self) -> None:
        # No process outlives a reboot: another boot id since `open` is another host.
        if self._book.boot_id() != self._clock.boot_id():
            raise LedgerError(
                f"ledger {self._path} has been opened by another host", "give each host a ledger of its own"
            )

    def _open(self) -> None:
        self._connection = connection = connect(self._path, self._clock.boot_id())
        self._book = Book(connection, self._wall_at, self._quarantine_s)
        try:
            with translated(f"opening ledger {self._path}"):
                patiently(self._adopt_boot)
        except BaseException:
            connection.close()
            raise

    def _adopt_boot(self) -> None:
        boot_id = self._clock.boot_id()
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if self._book.boot_id() != boot_id:
                self._book.start_boot(boot_id, self.now())
            self._connection.execute("COMMIT")
        except BaseException:
            rollback(self._connection)
            raise

    def _wall_at(self, at: float) -> float:
        return self._clock.wall_s() - (self.now() - at)
