"""What every ledger backend must do with inventories and servers."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest
from tests.ledger.backend import (
    BLOCKS,
    INVENTORY,
    OTHER,
    QUARANTINE_S,
    SERVER1,
    SERVER2,
    SHARED,
    SLICE,
    TTL_S,
    Backend,
    refused,
)

from softunicast.core.errors import (
    InputError,
    OverlapError,
    SliceTakenError,
)
from softunicast.core.ledger import Changes, Ledger
from softunicast.core.records import Address, Block, Inventory
from softunicast.core.slices import Slice


class InventoryConformance:
    # -- inventory and servers -------------------------------------------------------------------------------

    async def test_an_empty_ledger_has_nothing(self, backend: Backend) -> None:
        found = await (await backend.open()).snapshot()
        assert (found.blocks, found.addresses, found.servers, found.leases) == ((), (), (), ())

    async def test_inventory_is_read_back_by_every_handle(self, backend: Backend, ledger: Ledger) -> None:
        other = await backend.open()
        assert await other.snapshot() == await ledger.snapshot()
        found = await other.snapshot()
        assert found.blocks == BLOCKS
        assert found.addresses == (
            INVENTORY.addresses[0],
            INVENTORY.addresses[1],
            INVENTORY.addresses[3],
            INVENTORY.addresses[2],
        )
        assert found.servers == (SERVER1, SERVER2)

    async def test_inventory_replaces_what_was_there(self, ledger: Ledger) -> None:
        first, second, *_ = INVENTORY.addresses
        new = replace(second, address=ip_address("198.51.100.12"))
        wanted = Inventory(BLOCKS[:1], (replace(first, tags={"country": "de"}), new))
        assert await ledger.apply_inventory(wanted) == Changes(added=1, changed=1, removed=4)
        found = await ledger.snapshot()
        assert Inventory(found.blocks, found.addresses) == wanted

    async def test_the_same_inventory_and_server_again_change_nothing(self, ledger: Ledger) -> None:
        before = await ledger.snapshot(), await ledger.history(None, None, 100)
        assert await ledger.apply_inventory(INVENTORY) == Changes(0, 0, 0)
        await ledger.register_server(SERVER1)
        assert (await ledger.snapshot(), await ledger.history(None, None, 100)) == before

    async def test_a_server_may_come_back_with_another_address(self, ledger: Ledger) -> None:
        moved = replace(SERVER1, address=IPv4Address("192.0.2.9"), mac="02:00:00:00:00:09")
        await ledger.register_server(moved)
        assert (await ledger.snapshot()).servers == (moved, SERVER2)

    @pytest.mark.parametrize(
        ("inventory", "error", "text"),
        [
            (Inventory(BLOCKS[1:], INVENTORY.addresses), InputError, "lies in no block"),
            (Inventory((*BLOCKS, Block(Slice.parse("198.51.100.128/25"))), ()), OverlapError, "overlap"),
            (Inventory((*BLOCKS, BLOCKS[0]), ()), OverlapError, "overlap"),
            (Inventory((Block(SLICE),), ()), InputError, "not a block"),
            (Inventory(BLOCKS, INVENTORY.addresses[:1] * 2), InputError, "twice"),
            *[
                (Inventory(BLOCKS, (Address(SHARED, "lab", {}, ports),)), InputError, "cannot be cut")
                for ports in (0, 8, 100, 65536, -2048)
            ],
        ],
    )
    async def test_a_wrong_inventory_changes_nothing(
        self, ledger: Ledger, inventory: Inventory, error: type[Exception], text: str
    ) -> None:
        async with refused(ledger, error, text):
            await ledger.apply_inventory(inventory)

    @pytest.mark.parametrize("change", [None, {"slice_ports": 4096}, {"site": "far"}])
    async def test_an_address_in_use_stays(
        self, backend: Backend, ledger: Ledger, change: dict[str, object] | None
    ) -> None:
        lease = await ledger.acquire("server1", SLICE, TTL_S)
        kept = [] if change is None else [replace(INVENTORY.addresses[0], **change)]  # type: ignore[arg-type]
        wanted = Inventory(BLOCKS, (*kept, *INVENTORY.addresses[1:]))
        async with refused(ledger, OverlapError, "server1 has a live lease"):
            await ledger.apply_inventory(wanted)
        lease = await ledger.drain(lease)
        async with refused(ledger, OverlapError, "server1 has a live lease"):
            await ledger.apply_inventory(wanted)
        backend.clock.advance(TTL_S)  # nobody has entered the expiry, but it is over
        assert (await ledger.apply_inventory(wanted)) != Changes(0, 0, 0)

    async def test_a_cut_changed_during_quarantine_still_honours_it(
        self, backend: Backend, ledger: Ledger
    ) -> None:
        await ledger.release(await ledger.acquire("server1", OTHER, TTL_S), clean=False)
        coarse = replace(INVENTORY.addresses[0], slice_ports=4096)
        await ledger.apply_inventory(Inventory(BLOCKS, (coarse, *INVENTORY.addresses[1:])))
        wider = OTHER.parent(OTHER.length - 1)
        async with refused(ledger, SliceTakenError, "quarantined after server1"):
            await ledger.acquire("server2", wider, TTL_S)
        backend.clock.advance(QUARANTINE_S)
        assert (await ledger.acquire("server2", wider, TTL_S)).slice == wider

    async def test_tags_of_an_address_in_use_may_change(self, ledger: Ledger) -> None:
        await ledger.acquire("server1", SLICE, TTL_S)
        retagged = replace(INVENTORY.addresses[0], tags={"country": "ie"})
        wanted = Inventory(BLOCKS, (retagged, *INVENTORY.addresses[1:]))
        assert await ledger.apply_inventory(wanted) == Changes(added=0, changed=1, removed=0)
