"""`softunicast ledger`: the book itself, opened directly. No agent is needed, and none is asked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softunicast.cli import direct, history, show
from softunicast.cli.arguments import instant
from softunicast.core.errors import InputError
from softunicast.core.slices import PORTS, Slice

if TYPE_CHECKING:
    from softunicast.core.ledger import Ledger

FILE_BYTES_MAX = 1 << 26  # an inventory of half a million addresses

ADDRESS_COLUMNS: list[show.Column] = [
    ("ADDRESS", lambda row: row["address"]),
    ("SITE", lambda row: row["site"]),
    ("TAGS", lambda row: row["tags"]),
    ("SLICE PORTS", lambda row: row["slice_ports"]),
    ("TAKEN", lambda row: row["slices_taken"]),
    ("OF", lambda row: row["slices"]),
]


@click.group(no_args_is_help=True)
def command() -> None:
    """The book of blocks, addresses, servers and leases.

    The agents of one host share one ledger file. These commands open it directly; agents see a change at
    their next look, well within a second.

    \b
    Examples:
      softunicast ledger apply inventory.toml --ledger /var/lib/softunicast/ledger.db
      softunicast ledger show
      softunicast ledger history --slice 198.51.100.10
    """


@command.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@direct.ledger_option
@show.json_option
def apply(file: Path, path: Path, as_json: bool) -> None:
    """Make the ledger's blocks and addresses exactly what FILE says.

    All of it or, on any error, nothing. An address with a live lease is not removed or cut anew. The ledger
    is made when it is not there yet.

    \b
    Example of a FILE:
      [[blocks]]
      prefix = "198.51.100.0/24"
      [[addresses]]
      address = "198.51.100.10"
      site = "lab"
      tags = { country = "gb" }
      slice_ports = 2048
    """
    from softunicast.core.inventory import parse_inventory

    inventory = parse_inventory(_text(file), str(file))
    changes = direct.run(path, lambda ledger: ledger.apply_inventory(inventory), make=True)
    counts = {"added": changes.added, "changed": changes.changed, "removed": changes.removed}
    if as_json:
        show.document(counts)
    else:
        click.echo(", ".join(f"{count} {what}" for what, count in counts.items()))


@command.command("show", short_help="Blocks, addresses, servers: what the book says now.")
@direct.ledger_option
@show.json_option
def show_(path: Path, as_json: bool) -> None:
    """Addresses with their tags, and how many of their slices are taken. --json: everything."""
    book = direct.run(path, _book)
    if as_json:
        show.document(book)
        return
    show.rows(book["addresses"], ADDRESS_COLUMNS, as_json=False, empty="no addresses; see `ledger apply`")
    blocks = show.text([block["prefix"] for block in book["blocks"]])
    servers = show.text([server["name"] for server in book["servers"]])
    show.remark(f"version {book['version']}; blocks: {blocks}; servers: {servers}")


@command.command("history")
@click.option("--slice", "slice_", type=Slice.parse, metavar="SLICE", help="Only what overlaps this slice.")
@click.option("--at", type=instant, metavar="TIME", help="Not later than this, like 2026-05-01T14:02:07Z.")
@history.limit_option
@direct.ledger_option
@show.json_option
def history_(slice_: Slice | None, at: float | None, limit: int, path: Path, as_json: bool) -> None:
    """Everything that was changed, the latest first.

    \b
    Example:
      softunicast ledger history --slice 198.51.100.10:2048-4095 --limit 20
    """
    entries = direct.run(path, lambda ledger: ledger.history(slice_, at, limit))
    history.rows([direct.entry_row(entry) for entry in entries], as_json=as_json)


def _text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", "check the path") from error
    if len(content) > FILE_BYTES_MAX:
        raise InputError(f"{file} is larger than {FILE_BYTES_MAX >> 20} MiB", "name an inventory file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text", "name an inventory file") from error


async def _book(ledger: Ledger) -> dict[str, Any]:
    snapshot = await ledger.snapshot()
    taken = Counter(lease.slice.address for lease in snapshot.leases)
    return {
        "version": snapshot.version,
        "blocks": [{"prefix": str(block.prefix)} for block in snapshot.blocks],
        "addresses": [
            {
                "address": str(one.address),
                "site": one.site,
                "tags": dict(one.tags),
                "slice_ports": one.slice_ports,
                "slices": PORTS // one.slice_ports - 1,  # the first one is never given out
                "slices_taken": taken[one.address],
            }
            for one in snapshot.addresses
        ],
        "servers": [
            {"name": server.name, "site": server.site, "address": str(server.address), "mac": server.mac}
            for server in snapshot.servers
        ],
        "leases": direct.lease_rows(snapshot, ledger.now()),
    }
