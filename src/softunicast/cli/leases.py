"""`softunicast leases`: the ledger's side of the story. Who holds what, who held it, who had this port then.

Through the agent, or with --ledger on the file itself (a server whose agent is down still has its history).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softunicast.cli import client, direct, history, show
from softunicast.cli.arguments import End, end, instant
from softunicast.core.errors import InputError
from softunicast.core.slices import Slice

if TYPE_CHECKING:
    from softunicast.core.ledger import Ledger

COLUMNS: list[show.Column] = [
    ("SLICE", lambda row: row["slice"]),
    ("SERVER", lambda row: row["server"]),
    ("STATE", lambda row: row["state"]),
    ("EPOCH", lambda row: row["epoch"]),
    ("EXPIRES IN", lambda row: show.span(row["expires_in_s"])),
    ("QUARANTINED FOR", lambda row: show.span(row["quarantined_for_s"])),
]


@click.command()
@click.option("--slice", "slice_", type=Slice.parse, metavar="SLICE", help="Only what overlaps this slice.")
@click.option("--history", "with_history", is_flag=True, help="What happened, the latest first.")
@click.option("--who", type=end, metavar="ADDRESS:PORT", help="Who could send from this port?")
@click.option("--at", type=instant, metavar="TIME", help="With --history or --who: at this time, not now.")
@history.limit_option
@click.option(
    "--ledger",
    "path",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Read this ledger file; do not ask the agent.",
)
@show.json_option
@click.pass_obj
def command(
    socket: str,
    slice_: Slice | None,
    with_history: bool,
    who: End | None,
    at: float | None,
    limit: int,
    path: Path | None,
    as_json: bool,
) -> None:
    """The ledger's leases; their history; who had a port, and when.

    Times are ISO 8601 and need a zone. A complaint names an address, a port and a time: --who answers it.

    \b
    Examples:
      softunicast leases --slice 198.51.100.10
      softunicast leases --history --slice 198.51.100.10:2048-4095 --at 2026-05-01T14:02:07Z
      softunicast leases --who 198.51.100.10:9017 --at 2026-05-01T14:02:07Z
    """
    _check(slice_, with_history, who, at)
    if who is not None:
        moment = time.time() if at is None else at
        entry = _holder_of_file(path, who, moment) if path else _holder(socket, who, moment)
        _answer(entry, who, moment, as_json)
    elif with_history:
        found = _history_of_file(path, slice_, at, limit) if path else _history(socket, slice_, at, limit)
        history.rows(found, as_json=as_json)
    else:
        leases = direct.run(path, _leases_of_file) if path else client.get(socket, "/v1/leases")
        wanted = [row for row in leases if slice_ is None or slice_.overlaps(Slice.parse(row["slice"]))]
        show.rows(wanted, COLUMNS, as_json=as_json, empty="nothing is leased or in quarantine")


def _check(slice_: Slice | None, with_history: bool, who: End | None, at: float | None) -> None:
    if who is not None and (with_history or slice_ is not None):
        raise InputError("--who stands alone", "leave --history and --slice out")
    if at is not None and who is None and not with_history:
        raise InputError("--at without --history or --who", "say which of the two you want to know")
    if at is not None and at > time.time():
        raise InputError(f"{show.instant(at)} is in the future", "ask again then")


def _answer(entry: dict[str, Any] | None, who: End, at: float, as_json: bool) -> None:
    if as_json:
        show.document(entry)
    elif entry is None:
        click.echo(f"nobody could send from {who} at {show.instant(at)}")
    else:
        since = f"since {show.instant(entry['at'])}, epoch {entry['epoch']}"
        click.echo(f"{entry['server']} held {entry['slice']} at {show.instant(at)} ({since})")


# -- through the agent ---------------------------------------------------------------------------------------


def _holder(socket: str, who: End, at: float) -> Any:
    return client.get(socket, "/v1/leases", {"who": who, "at": at})


def _history(socket: str, slice_: Slice | None, at: float | None, limit: int) -> Any:
    return client.get(socket, "/v1/leases", {"history": 1, "slice": slice_, "at": at, "limit": limit})


# -- from the file -------------------------------------------------------------------------------------------


def _holder_of_file(path: Path, who: End, at: float) -> dict[str, Any] | None:
    assert who.port is not None
    port = who.port
    entry = direct.run(path, lambda ledger: ledger.holder(who.address, port, at))
    return None if entry is None else direct.entry_row(entry)


def _history_of_file(path: Path, slice_: Slice | None, at: float | None, limit: int) -> list[show.Row]:
    entries = direct.run(path, lambda ledger: ledger.history(slice_, at, limit))
    return [direct.entry_row(entry) for entry in entries]


async def _leases_of_file(ledger: Ledger) -> list[dict[str, Any]]:
    return direct.lease_rows(await ledger.snapshot(), ledger.now())
