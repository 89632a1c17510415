"""What every ledger backend must do with a lease: renew, drain, release, expiry, quarantine, versions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.ledger.backend import (
    BLOCKS,
    INVENTORY,
    OTHER,
    QUARANTINE_S,
    SERVER1,
    SLICE,
    TTL_S,
    Backend,
    refused,
)

from softunicast.core.errors import (
    LeaseError,
    SliceTakenError,
)
from softunicast.core.leases import Lease, LeaseState
from softunicast.core.ledger import Ledger
from softunicast.core.records import Inventory


class KeepingConformance:
    # -- keeping and giving back -----------------------------------------------------------------------------

    async def test_renewing_moves_the_expiry(self, backend: Backend, ledger: Ledger) -> None:
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        backend.clock.advance(TTL_S / 3)
        renewed = await ledger.renew(lease, TTL_S)
        assert renewed == replace(lease, expires_at=ledger.now() + TTL_S)
        assert (await ledger.snapshot()).leases == (renewed,)

    async def test_renewing_never_takes_time_away(self, ledger: Ledger) -> None:
        # The holder's kernel may run on the earlier promise when the answer to this renewal is lost.
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        assert (await ledger.renew(lease, 1)).expires_at == lease.expires_at

    async def test_a_lost_lease_cannot_be_used(self, backend: Backend, ledger: Ledger) -> None:
        lost = await ledger.acquire("server1", SLICE, TTL_S)
        backend.clock.advance(TTL_S)
        await self._refused_to(ledger, lost, "expired")
        await ledger.lapse()
        await self._refused_to(ledger, lost, "quarantined after server1")
        backend.clock.advance(QUARANTINE_S)
        await ledger.lapse()
        await self._refused_to(ledger, lost, "is over")
        again = await ledger.acquire("server1", SLICE, TTL_S)
        await self._refused_to(ledger, lost, f"epoch {again.epoch}")
        await ledger.release(again, clean=True)
        taken = await ledger.acquire("server2", SLICE, TTL_S)
        await self._refused_to(ledger, lost, "held by server2")
        await self._refused_to(ledger, replace(taken, server="server1"), "held by server2")

    async def _refused_to(self, ledger: Ledger, lease: Lease, why: str) -> None:
        async with refused(ledger, LeaseError, why):
            await ledger.renew(lease, TTL_S)
        async with refused(ledger, LeaseError, why):
            await ledger.drain(lease)
        for clean in (True, False):
            async with refused(ledger, LeaseError, why):
                await ledger.release(lease, clean)

    async def test_draining_keeps_the_slice(self, backend: Backend, ledger: Ledger) -> None:
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        draining = await ledger.drain(lease)
        assert draining == replace(lease, state=LeaseState.DRAINING)
        assert await ledger.drain(lease) == draining  # the first answer may have been lost
        backend.clock.advance(TTL_S / 2)
        renewed = await ledger.renew(lease, TTL_S)
        assert renewed == replace(draining, expires_at=ledger.now() + TTL_S)
        async with refused(ledger, SliceTakenError, "draining by server1"):
            await ledger.acquire("server2", SLICE, TTL_S)

    @pytest.mark.parametrize("drained", [False, True])
    async def test_a_clean_release_frees_at_once(self, ledger: Ledger, drained: bool) -> None:
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        if drained:
            await ledger.drain(lease)
        await ledger.release(lease, clean=True)
        assert (await ledger.snapshot()).leases == ()
        assert (await ledger.acquire("server2", SLICE, TTL_S)).epoch > lease.epoch

    @pytest.mark.parametrize("drained", [False, True])
    async def test_a_release_with_flows_is_quarantined(
        self, backend: Backend, ledger: Ledger, drained: bool
    ) -> None:
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        if drained:
            await ledger.drain(lease)
        await ledger.release(lease, clean=False)
        await self._quarantined(backend, ledger, lease)

    async def test_an_expired_lease_is_quarantined(self, backend: Backend, ledger: Ledger) -> None:
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        backend.clock.advance(TTL_S)
        assert await ledger.lapse() == 1
        await self._quarantined(backend, ledger, lease)

    async def _quarantined(self, backend: Backend, ledger: Ledger, lease: Lease) -> None:
        (now,) = (await ledger.snapshot()).leases
        assert (now.state, now.quarantined_until) == (LeaseState.QUARANTINED, ledger.now() + QUARANTINE_S)
        backend.clock.advance(QUARANTINE_S - 0.001)
        for server in ("server1", "server2"):
            async with refused(ledger, SliceTakenError, "quarantined after server1"):
                await ledger.acquire(server, SLICE, TTL_S)
        backend.clock.advance(0.002)
        assert (await ledger.acquire("server2", SLICE, TTL_S)).epoch > lease.epoch

    async def test_quarantine_counts_from_the_expiry_not_from_when_it_was_seen(
        self, backend: Backend, ledger: Ledger
    ) -> None:
        await ledger.acquire("server1", SLICE, TTL_S)
        backend.clock.advance(TTL_S + QUARANTINE_S / 2)
        assert await ledger.lapse() == 1
        (seen,) = (await ledger.snapshot()).leases
        assert seen.quarantined_until == ledger.now() + QUARANTINE_S / 2
        backend.clock.advance(QUARANTINE_S / 2)
        assert (await ledger.acquire("server2", SLICE, TTL_S)).server == "server2"

    async def test_lapse_changes_only_what_is_over(self, backend: Backend, ledger: Ledger) -> None:
        await ledger.acquire("server1", SLICE, TTL_S)
        other = await ledger.acquire("server2", OTHER, 2 * TTL_S)
        version = await ledger.version()
        assert await ledger.lapse() == 0
        assert await ledger.version() == version
        backend.clock.advance(TTL_S)
        assert await ledger.lapse() == 1
        assert await ledger.lapse() == 0
        assert other in (await ledger.snapshot()).leases
        assert await ledger.version() > version

    async def test_the_wall_clock_moves_no_lease(self, backend: Backend, ledger: Ledger) -> None:
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        for jump_s in (86_400.0, -2 * 86_400.0, -1_800_000_000.0):
            backend.clock.wall += jump_s
            assert await ledger.lapse() == 0
            assert (await ledger.renew(lease, TTL_S)).expires_at == lease.expires_at
            async with refused(ledger, SliceTakenError, "for another 300 s"):
                await ledger.acquire("server2", SLICE, TTL_S)
        backend.clock.advance(TTL_S)
        assert await ledger.lapse() == 1

    async def test_every_change_grows_the_version(self, backend: Backend, ledger: Ledger) -> None:
        other = await backend.open()
        seen = [await other.version()]
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        seen.append(await other.version())
        backend.clock.advance(1)
        await ledger.renew(lease, TTL_S)
        seen.append(await other.version())
        await ledger.drain(lease)
        seen.append(await other.version())
        await ledger.release(lease, clean=True)
        seen.append(await other.version())
        await ledger.apply_inventory(Inventory(BLOCKS, INVENTORY.addresses[1:]))
        seen.append(await other.version())
        await ledger.register_server(replace(SERVER1, mac="02:00:00:00:00:99"))
        seen.append(await other.version())
        assert seen == sorted(set(seen))
        assert (await other.snapshot()).version == seen[-1]
