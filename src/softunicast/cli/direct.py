"""The ledger without an agent: one question or change on the file itself, from a command that then ends.

Reading never makes a file: a slip in the path must not answer "nobody" from a new and empty book.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from softunicast.core.errors import InputError
from softunicast.core.records import HistoryEntry, Snapshot

if TYPE_CHECKING:
    from softunicast.core.ledger import Ledger

T = TypeVar("T")

LEDGER_ENV = "SOFTUNICAST_LEDGER"

ledger_option = click.option(
    "--ledger",
    "path",
    envvar=LEDGER_ENV,
    required=True,
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"The ledger's file. Also: {LEDGER_ENV}.",
)


def run(path: Path, work: Callable[[Ledger], Awaitable[T]], *, make: bool = False) -> T:
    """Opens the ledger, does `work` on it, closes it. `make`: a file that is not there yet is made."""
    import asyncio

    from softunicast.ledger.sqlite import SqliteLedger

    if not make and not path.exists():
        raise InputError(
            f"there is no ledger {path}", "name the file of [ledger] path, or `ledger apply` to it"
        )

    async def whole() -> T:
        ledger = await SqliteLedger.open(path)
        try:
            return await work(ledger)
        finally:
            await ledger.close()

    return asyncio.run(whole())


def entry_row(entry: HistoryEntry) -> dict[str, Any]:
    """A history entry as the agent's API writes it."""
    return {
        "id": entry.id,
        "at": entry.at,
        "event": entry.event,
        "slice": None if entry.slice is None else str(entry.slice),
        "server": entry.server,
        "epoch": entry.epoch,
        "detail": entry.detail,
    }


def lease_rows(snapshot: Snapshot, now: float) -> list[dict[str, Any]]:
    """The leases of a snapshot as the agent's API writes them; `now` by the ledger's clock."""
    return [
        {
            "slice": str(lease.slice),
            "server": lease.server,
            "epoch": lease.epoch,
            "state": lease.state.value,
            "expires_in_s": lease.expires_at - now if lease.live else None,
            "quarantined_for_s": None if lease.quarantined_until is None else lease.quarantined_until - now,
        }
        for lease in snapshot.leases
    ]
