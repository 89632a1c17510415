"""`softunicast slices`: what the data path of this server does with every slice, now."""

from __future__ import annotations

import click

from softunicast.cli import client, show

COLUMNS: list[show.Column] = [
    ("SLICE", lambda row: row["slice"]),
    ("SERVER", lambda row: row["server"]),
    ("HERE", lambda row: row["here"]),
    ("STATE", lambda row: row["state"]),
    ("EPOCH", lambda row: row["epoch"]),
    ("POOL", lambda row: row["pool"]),
    ("FLOWS", lambda row: row["flows"]),
    ("DEADLINE IN", lambda row: show.span(row["deadline_in_s"])),
]


@click.command()
@show.json_option
@click.pass_obj
def command(socket: str, as_json: bool) -> None:
    """Which server may use which ports, as this server's kernel has it.

    This is the kernel's own table, not the ledger: what happens to packets at this moment. A slice of this
    server (HERE) stops working at its deadline unless the agent renews its lease before.

    \b
    Examples:
      softunicast slices
      softunicast slices --json | jq '.[] | select(.here)'
    """
    rows = client.get(socket, "/v1/slices")
    show.rows(rows, COLUMNS, as_json=as_json, empty="no server holds a slice")
