"""What every ledger backend must do. A test module subclasses `LedgerConformance` and gives the fixture
`backend`: something that opens any number of handles on one empty ledger, whose time is a `FakeClock`.

Nothing here knows how a ledger is kept. What only one backend has (files, boots, processes) is tested beside
it. The parts are in the files `conformance_*.py`; history, and the handles themselves, are below.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from tests.ledger.backend import (
    BLOCKS,
    OTHER,
    QUARANTINE_S,
    SHARED,
    SLICE,
    TTL_S,
    Backend,
    furnish,
)
from tests.ledger.conformance_inventory import InventoryConformance
from tests.ledger.conformance_keeping import KeepingConformance
from tests.ledger.conformance_taking import TakingConformance

from softunicast.core.errors import (
    InputError,
    LedgerError,
)
from softunicast.core.ledger import HISTORY_LIMIT_MAX, Ledger
from softunicast.core.records import Inventory
from softunicast.core.slices import Slice, slice_of_port


class LedgerConformance(InventoryConformance, TakingConformance, KeepingConformance):
    @pytest.fixture
    async def ledger(self, backend: Backend) -> Ledger:
        return await furnish(await backend.open())

    # -- history ---------------------------------------------------------------------------------------------

    async def test_history_tells_the_life_of_a_slice(self, backend: Backend, ledger: Ledger) -> None:
        clock = backend.clock
        start = clock.wall
        first = await ledger.acquire("server1", SLICE, TTL_S)
        await ledger.acquire("server2", OTHER, TTL_S)
        clock.advance(10)
        await ledger.renew(first, TTL_S)
        await ledger.drain(first)
        await ledger.drain(first)
        clock.advance(10)
        await ledger.release(first, clean=True)
        second = await ledger.acquire("server2", SLICE, TTL_S)
        clock.advance(10 + TTL_S + QUARANTINE_S)  # noticed late, entered with the time it happened
        await ledger.lapse()
        third = await ledger.acquire("server1", SLICE, TTL_S)
        clock.advance(5)
        await ledger.release(third, clean=False)
        *entries, address, block = await ledger.history(SLICE, None, 100)
        assert (address.event, block.event) == ("address_added", "block_added")  # they overlap the slice
        expired = 20 + TTL_S
        assert [(entry.event, entry.at - start, entry.server, entry.epoch) for entry in entries[::-1]] == [
            ("taken", 0, "server1", first.epoch),
            ("drain_started", 10, "server1", first.epoch),
            ("handed_over", 20, "server1", first.epoch),
            ("taken", 20, "server2", second.epoch),
            ("expired", expired, "server2", second.epoch),
            ("freed", expired + QUARANTINE_S, "server2", second.epoch),
            ("taken", expired + QUARANTINE_S + 10, "server1", third.epoch),
            ("released", expired + QUARANTINE_S + 15, "server1", third.epoch),
        ]
        assert {entry.slice for entry in entries} == {SLICE}
        assert await ledger.history(SLICE, None, 2) == entries[:2]
        assert await ledger.history(SLICE, start + 20, 100) == [*entries[4:], address, block]
        for port in (2048, 3000, 4095):
            one_port = slice_of_port(SHARED, port, 1)
            assert await ledger.history(one_port, None, 100) == [*entries, address, block]
        for port in (2047, 6144):
            one_port = slice_of_port(SHARED, port, 1)
            assert await ledger.history(one_port, None, 100) == [address, block]

    async def test_history_has_inventory_and_servers(self, ledger: Ledger) -> None:
        entries = await ledger.history(None, None, 100)
        ids = [entry.id for entry in entries]
        assert ids == sorted(set(ids), reverse=True)
        events = [entry.event for entry in entries[::-1]]
        assert events == ["block_added"] * 2 + ["address_added"] * 4 + ["server_added"] * 2
        await ledger.apply_inventory(Inventory((), ()))
        latest = await ledger.history(None, None, 6)
        assert {entry.event for entry in latest} == {"block_removed", "address_removed"}
        # A whole address or block has its own entries, and those of the slices in it.
        found = await ledger.history(Slice.of(SHARED), None, 100)
        assert {entry.slice for entry in found} == {BLOCKS[0].prefix, Slice.of(SHARED)}

    @pytest.mark.parametrize("limit", [0, -1, HISTORY_LIMIT_MAX + 1])
    async def test_history_has_a_limit(self, ledger: Ledger, limit: int) -> None:
        with pytest.raises(InputError, match="limit"):
            await ledger.history(None, None, limit)

    async def test_who_held_a_port_when(self, backend: Backend, ledger: Ledger) -> None:
        clock = backend.clock
        start = clock.wall
        first = await ledger.acquire("server1", SLICE, TTL_S)
        clock.advance(50)
        await ledger.drain(first)  # draining is still holding
        clock.advance(50)
        await ledger.release(first, clean=True)
        clock.advance(50)
        await ledger.acquire("server2", SLICE, TTL_S)
        clock.advance(TTL_S + 1)  # and nobody enters the expiry

        async def holder(at_s: float, port: int = 3000) -> str | None:
            entry = await ledger.holder(SHARED, port, start + at_s)
            assert entry is None or (entry.event, entry.slice) == ("taken", SLICE)
            return None if entry is None else entry.server

        ended = 150 + TTL_S
        times = [-1, 0, 99, 100, 149, 150, ended - 1, ended, ended + 1]
        assert [await holder(at_s) for at_s in times] == [
            None, "server1", "server1", None, None, "server2", "server2", None, None,
        ]  # fmt: skip
        edges = [2047, 2048, 4095, 4096]
        assert [await holder(0, port) for port in edges] == [None, "server1", "server1", None]
        assert await ledger.holder(IPv4Address("198.51.100.11"), 3000, start) is None
        assert await ledger.holder(IPv6Address("2001:db8::10"), 3000, start) is None
        with pytest.raises(InputError, match="out of range"):
            await ledger.holder(SHARED, 65536, start)

    # -- handles ---------------------------------------------------------------------------------------------

    async def test_closing_keeps_everything(self, backend: Backend, ledger: Ledger) -> None:
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        before = await ledger.snapshot()
        await ledger.close()
        await ledger.close()
        with pytest.raises(LedgerError, match="closed"):
            await ledger.renew(lease, TTL_S)
        again = await backend.open()
        assert await again.snapshot() == before
        assert (await again.renew(lease, TTL_S)).epoch == lease.epoch
