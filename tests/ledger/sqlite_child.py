"""A process that works on a ledger until it is done or killed: `sqlite_child.py VERB PATH SERVER`.

It waits for a line before it opens the ledger, and for another before it works. It says a line for each thing
that the ledger has promised it, after the promise and before anything else. `race` tries to take one slice after
the other, each after a line; `churn` takes, renews, drains and releases as fast as it can.
"""

from __future__ import annotations

import asyncio
import sys
from ipaddress import IPv4Address
from pathlib import Path

from softunicast.core.errors import SliceTakenError
from softunicast.core.ledger import Ledger
from softunicast.core.records import Address, Block, Inventory, Server
from softunicast.core.slices import Slice, slices_of
from softunicast.ledger.sqlite import SqliteLedger

SHARED = IPv4Address("198.51.100.10")
SLICE_PORTS = 128
UNITS = slices_of(SHARED, SLICE_PORTS)[1024 // SLICE_PORTS :]
INVENTORY = Inventory(
    (Block(Slice.parse("198.51.100.0/24")),), (Address(SHARED, "lab", {"country": "gb"}, SLICE_PORTS),)
)


def say(*words: object) -> None:
    print(*words, flush=True)


async def race(ledger: Ledger, server: str) -> None:
    for slice in UNITS:
        if not sys.stdin.readline():
            return
        try:
            lease = await ledger.acquire(server, slice, 300)
        except SliceTakenError:
            say("lost", slice)
        else:
            say("held", slice, lease.epoch)


async def churn(ledger: Ledger, server: str) -> None:
    while True:
        for slice in UNITS:
            lease = await ledger.acquire(server, slice, 300)
            say("held", slice, lease.epoch)
            await ledger.renew(lease, 300)
            await ledger.drain(lease)
            say("draining", slice, lease.epoch)
        for held in (await ledger.snapshot()).leases:
            say("releasing", held.slice, held.epoch)
            await ledger.release(held, clean=True)
            say("free", held.slice, held.epoch)


async def main(verb: str, path: str, server: str) -> None:
    say("ready")
    sys.stdin.readline()
    ledger = await SqliteLedger.open(Path(path))
    await ledger.apply_inventory(INVENTORY)
    await ledger.register_server(Server(server, "lab", IPv4Address("192.0.2.1"), "02:00:00:00:00:01"))
    say("open")
    sys.stdin.readline()
    await {"race": race, "churn": churn}[verb](ledger, server)
    await ledger.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
