"""What every ledger backend must do when a server takes a slice."""

from __future__ import annotations

import asyncio

import pytest
from tests.ledger.backend import (
    BLOCKS,
    OTHER,
    SLICE,
    TTL_S,
    Backend,
    refused,
)

from softunicast.core.errors import (
    InputError,
    SliceTakenError,
    UnknownNameError,
)
from softunicast.core.leases import Lease, LeaseState
from softunicast.core.ledger import Ledger
from softunicast.core.records import Address, Inventory
from softunicast.core.slices import Slice


class TakingConformance:
    # -- taking ----------------------------------------------------------------------------------------------

    async def test_a_lease_is_seen_by_every_handle(self, backend: Backend, ledger: Ledger) -> None:
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        assert lease == Lease(SLICE, "server1", lease.epoch, LeaseState.HELD, ledger.now() + TTL_S)
        other = await backend.open()
        assert (await other.snapshot()).leases == (lease,)

    async def test_a_live_slice_is_refused_to_everyone(self, backend: Backend, ledger: Ledger) -> None:
        await ledger.acquire("server1", SLICE, TTL_S)
        other = await backend.open()
        backend.clock.advance(TTL_S - 0.001)
        for server in ("server1", "server2"):
            async with refused(other, SliceTakenError, "held by server1"):
                await other.acquire(server, SLICE, TTL_S)
        assert (await other.acquire("server2", OTHER, TTL_S)).server == "server2"

    async def test_an_ipv6_address_can_be_taken_whole(self, backend: Backend, ledger: Ledger) -> None:
        whole = Slice.parse("2001:db8::20")
        inventory = Inventory(BLOCKS, (Address(whole.address, "lab", {}, 65536),))
        await ledger.apply_inventory(inventory)
        lease = await ledger.acquire("server1", whole, TTL_S)
        assert (await (await backend.open()).snapshot()).leases == (lease,)
        async with refused(ledger, SliceTakenError, "held by server1"):
            await ledger.acquire("server2", whole, TTL_S)
        async with refused(ledger, InputError, "cut by 65536"):
            await ledger.acquire("server2", Slice.parse("[2001:db8::20]:2048-4095"), TTL_S)
        entry = await ledger.holder(whole.address, 80, backend.clock.wall)
        assert entry is not None
        assert entry.server == "server1"

    @pytest.mark.parametrize(
        ("server", "text", "error", "why"),
        [
            ("server9", "198.51.100.10:2048-4095", UnknownNameError, "no server server9"),
            ("server1", "198.51.100.99:2048-4095", UnknownNameError, "no address 198.51.100.99"),
            ("server1", "198.51.100.0/24", UnknownNameError, "no address 198.51.100.0"),
            ("server1", "198.51.100.10:0-2047", InputError, "below 1024"),
            ("server1", "198.51.100.11:960-1023", InputError, "start with 198.51.100.11:1024-1087"),
            ("server1", "198.51.100.10:2048-3071", InputError, "cut by 2048"),
            ("server1", "198.51.100.10:4096-8191", InputError, "cut by 2048"),
            ("server1", "198.51.100.10", InputError, "cut by 2048"),
            ("server1", "198.51.100.20:2048-4095", InputError, "site far"),
        ],
    )
    async def test_what_cannot_be_leased(
        self, ledger: Ledger, server: str, text: str, error: type[Exception], why: str
    ) -> None:
        async with refused(ledger, error, why):
            await ledger.acquire(server, Slice.parse(text), TTL_S)

    @pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
    async def test_a_lease_needs_a_duration(self, ledger: Ledger, ttl_s: float) -> None:
        async with refused(ledger, InputError, "not a duration"):
            await ledger.acquire("server1", SLICE, ttl_s)
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        async with refused(ledger, InputError, "not a duration"):
            await ledger.renew(lease, ttl_s)

    async def test_ipv6_and_small_slices(self, ledger: Ledger) -> None:
        for text in ("[2001:db8::10]:63488-65535", "198.51.100.11:1024-1087", "198.51.100.11:65472-65535"):
            slice = Slice.parse(text)
            await ledger.acquire("server2", slice, TTL_S)
            assert slice in [lease.slice for lease in (await ledger.snapshot()).leases]
            async with refused(ledger, SliceTakenError, "held by server2"):
                await ledger.acquire("server1", slice, TTL_S)

    async def test_of_many_at_once_one_wins(self, backend: Backend, ledger: Ledger) -> None:
        handles = [ledger, await backend.open(), await backend.open()]
        asked = [
            handle.acquire(server, SLICE, TTL_S)
            for handle in handles
            for server in ("server1", "server2", "server1")
        ]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(answer, Lease) for answer in answers) == 1
        assert sum(type(answer) is SliceTakenError for answer in answers) == len(answers) - 1
