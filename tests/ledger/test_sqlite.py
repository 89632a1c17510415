"""What only the SQLite ledger has: a database that refuses by itself, and the boots of its host."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest
from tests.ledger.backend import OTHER, QUARANTINE_S, SHARED, SLICE, TTL_S, FakeClock, furnish
from tests.ledger.backend_sqlite import SqliteBackend

from softunicast.core.errors import LedgerError, SliceTakenError
from softunicast.core.leases import LeaseState
from softunicast.core.slices import Slice
from softunicast.ledger.clock import HostClock
from softunicast.ledger.rows import ends, slice_between
from softunicast.ledger.sqlite import SqliteLedger

INSERT = (
    "INTO leases (first, last, server, epoch, state, expires_at, quarantine_s)"
    " VALUES (?, ?, 'server2', ?, ?, 0, 0)"
)


@pytest.fixture
async def ledger(sqlite_backend: SqliteBackend) -> SqliteLedger:
    ledger = await sqlite_backend.open()
    await furnish(ledger)
    return ledger


# -- the database refuses ----------------------------------------------------------------------------------


def insert_raw(backend: SqliteBackend, first: bytes, last: bytes, verb: str = "INSERT") -> None:
    with backend.raw() as raw:
        raw.execute("BEGIN IMMEDIATE")
        ((epoch,),) = raw.execute("UPDATE book SET epoch = epoch + 1 RETURNING epoch").fetchall()
        raw.execute(f"{verb} {INSERT}", (first, last, epoch, "held"))
        raw.execute("COMMIT")


@pytest.mark.parametrize("verb", ["INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE", "REPLACE"])
@pytest.mark.parametrize("state", ["held", "draining", "quarantined"])
@pytest.mark.parametrize(
    ("port_first", "port_last"),
    [
        (2048, 4095),
        (2048, 2048),
        (4095, 4095),
        (3000, 3001),
        (0, 65535),
        (2000, 2048),
        (4095, 4096),
        (0, 4000),
    ],
)
async def test_sql_cannot_insert_an_overlapping_lease(
    sqlite_backend: SqliteBackend,
    ledger: SqliteLedger,
    state: str,
    verb: str,
    port_first: int,
    port_last: int,
) -> None:
    lease = await ledger.acquire("server1", SLICE, TTL_S)
    if state == "draining":
        await ledger.drain(lease)
    if state == "quarantined":
        await ledger.release(lease, clean=False)
    before = await ledger.snapshot()
    first = ends(Slice.of(SHARED, port_first, 1))[0]
    last = ends(Slice.of(SHARED, port_last, 1))[1]
    with pytest.raises(sqlite3.IntegrityError, match="overlaps a lease that is not free"):
        insert_raw(sqlite_backend, first, last, verb)
    assert await ledger.snapshot() == before


async def test_sql_may_insert_beside_a_lease(sqlite_backend: SqliteBackend, ledger: SqliteLedger) -> None:
    await ledger.acquire("server1", OTHER, TTL_S)
    free = [
        SLICE,
        Slice.parse("198.51.100.10:6144-8191"),
        Slice.parse("198.51.100.9"),
        Slice.parse("2001:db8::/64"),
    ]
    for slice in free:
        insert_raw(sqlite_backend, *ends(slice))
    assert {lease.slice for lease in (await ledger.snapshot()).leases} == {OTHER, *free}


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE leases SET server = 'server2'", "keeps its slice, server and epoch"),
        ("UPDATE leases SET epoch = epoch + 1", "keeps its slice, server and epoch"),
        ("UPDATE leases SET first = zeroblob(19)", "keeps its slice, server and epoch"),
        ("UPDATE leases SET last = (SELECT max(last) FROM history)", "keeps its slice, server and epoch"),
        ("UPDATE OR REPLACE leases SET server = 'server2'", "keeps its slice, server and epoch"),
        ("UPDATE leases SET state = 'free'", "CHECK"),
        ("UPDATE leases SET state = 'quarantined'", "CHECK"),
        ("UPDATE leases SET expires_at = 'never'", "REAL"),
        ("UPDATE book SET epoch = 0", "epochs only grow"),
        (f"INSERT {INSERT.replace('?', 'zeroblob(19)', 2).replace('?', '1', 1)}", "newest epoch"),
        (f"INSERT {INSERT.replace('?', 'zeroblob(7)', 2).replace('?', '2', 1)}", "CHECK"),
    ],
)
async def test_sql_cannot_bend_a_lease(
    sqlite_backend: SqliteBackend, ledger: SqliteLedger, statement: str, why: str
) -> None:
    await ledger.acquire("server1", OTHER, TTL_S)
    await ledger.release(await ledger.acquire("server1", SLICE, TTL_S), clean=True)
    with sqlite_backend.raw() as raw, pytest.raises(sqlite3.IntegrityError, match=why):
        raw.execute(statement, ("held",) if "?" in statement else ())


def test_rows_sort_as_slices_do() -> None:
    texts = [
        "0.0.0.0/0",
        "198.51.100.0/24",
        "198.51.100.10:0-2047",
        "198.51.100.10:2048-2048",
        "::/0",
        "2001:db8::1",
    ]
    slices = [Slice.parse(text) for text in texts]
    assert [slice_between(*ends(slice)) for slice in slices] == slices
    assert sorted(ends(slice)[0] for slice in slices) == [ends(slice)[0] for slice in slices]


# -- boots -------------------------------------------------------------------------------------------------


async def test_after_a_reboot_every_lease_is_over(
    sqlite_backend: SqliteBackend, ledger: SqliteLedger
) -> None:
    clock = sqlite_backend.clock
    held = await ledger.acquire("server1", SLICE, 1e9)
    await ledger.release(await ledger.acquire("server1", OTHER, 1e9), clean=False)
    held_at = clock.wall
    await ledger.close()
    clock.reboot(down_s=60)
    booted_at = clock.wall
    clock.advance(20)
    again = await sqlite_backend.open()
    assert {(lease.state, lease.quarantined_until) for lease in (await again.snapshot()).leases} == {
        (LeaseState.QUARANTINED, QUARANTINE_S)
    }
    for slice in (SLICE, OTHER):
        with pytest.raises(SliceTakenError, match="quarantined after server1 for another 100 s"):
            await again.acquire("server2", slice, TTL_S)
    clock.advance(QUARANTINE_S - 20)
    taken = await again.acquire("server2", SLICE, TTL_S)
    assert taken.epoch > held.epoch + 1
    events = [(entry.event, entry.at) for entry in await again.history(SLICE, None, 4)]
    assert events == [
        ("taken", clock.wall),
        ("freed", booted_at + QUARANTINE_S),
        ("expired", booted_at),
        ("taken", held_at),
    ]
    (started,) = [entry for entry in await again.history(None, None, 100) if entry.event == "host_started"]
    assert started.at == booted_at
    late = await again.holder(SHARED, 3000, booted_at - 1)
    assert late is not None
    assert late.epoch == held.epoch
    assert await again.holder(SHARED, 3000, booted_at + 1) is None


async def test_a_boot_that_lasts_longer_than_the_quarantine_owes_none(
    sqlite_backend: SqliteBackend, ledger: SqliteLedger
) -> None:
    await ledger.acquire("server1", SLICE, 1e9)
    await ledger.close()
    sqlite_backend.clock.reboot()
    sqlite_backend.clock.advance(QUARANTINE_S)
    again = await sqlite_backend.open()
    assert (await again.snapshot()).leases == ()
    assert (await again.acquire("server2", SLICE, TTL_S)).server == "server2"


@pytest.mark.parametrize("rebooted", [False, True])
async def test_a_handle_with_another_setting_shortens_no_quarantine(
    sqlite_backend: SqliteBackend, ledger: SqliteLedger, rebooted: bool
) -> None:
    clock = sqlite_backend.clock
    await ledger.acquire("server1", SLICE, TTL_S)
    if rebooted:
        await ledger.close()
        clock.reboot()
    else:
        clock.advance(TTL_S)
    other = await SqliteLedger.open(sqlite_backend.path, clock, quarantine_s=1)
    await other.lapse()
    clock.advance(QUARANTINE_S - 1)
    with pytest.raises(SliceTakenError, match="quarantined after server1 for another 1 s"):
        await other.acquire("server2", SLICE, TTL_S)
    await other.close()


async def test_two_hosts_cannot_share_a_file(sqlite_backend: SqliteBackend, ledger: SqliteLedger) -> None:
    lease = await ledger.acquire("server1", SLICE, TTL_S)
    elsewhere = FakeClock()
    elsewhere.reboot()
    other = await SqliteLedger.open(sqlite_backend.path, elsewhere, QUARANTINE_S)
    before = await other.snapshot()
    for asked in (ledger.renew(lease, TTL_S), ledger.acquire("server1", OTHER, TTL_S), ledger.snapshot()):
        with pytest.raises(LedgerError, match="opened by another host; fix: give each host"):
            await asked
    assert await other.snapshot() == before
    await other.close()


def test_the_clocks_of_this_host() -> None:
    clock = HostClock()
    assert re.fullmatch("[0-9a-f-]{36}", clock.boot_id())
    assert HostClock().boot_id() == clock.boot_id()
    before = float(Path("/proc/uptime").read_text().split()[0])
    up_s = clock.uptime_s()
    assert before - 0.02 <= up_s <= float(Path("/proc/uptime").read_text().split()[0]) + 0.02
    assert abs(clock.wall_s() - Path("/proc/self").stat().st_mtime) < 3600
