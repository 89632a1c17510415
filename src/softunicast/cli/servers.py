"""`softunicast servers`: who shares the addresses, and how the director sends packets to them."""

from __future__ import annotations

import click

from softunicast.cli import client, show

COLUMNS: list[show.Column] = [
    ("SERVER", lambda row: row["name"]),
    ("SITE", lambda row: row["site"]),
    ("ADDRESS", lambda row: row["address"]),
    ("MAC", lambda row: row["mac"]),
    ("REACHED", lambda row: row["reached"]),
    ("SLICES", lambda row: row["slices"]),
]


@click.command()
@show.json_option
@click.pass_obj
def command(socket: str, as_json: bool) -> None:
    """The servers that share addresses, and how to reach them.

    Packets for a slice of another server are sent on to its MAC address (a neighbour), or through a tunnel where a
    router is between. A server enters this table when its agent starts for the first time.

    \b
    Examples:
      softunicast servers
      softunicast servers --json
    """
    rows = client.get(socket, "/v1/servers")
    show.rows(rows, COLUMNS, as_json=as_json, empty="no server has registered in the ledger yet")
