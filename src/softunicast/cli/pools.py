"""`softunicast pools`: the named selections of addresses that this server's on-ramps use."""

from __future__ import annotations

import click

from softunicast.cli import client, show

COLUMNS: list[show.Column] = [
    ("POOL", lambda row: row["name"]),
    ("TAGS", lambda row: row["tags"]),
    ("ON-RAMPS", lambda row: row["onramps"]),
    ("ADDRESSES", lambda row: row["addresses"]),
    ("SLICES", lambda row: row["slices"]),
    ("PORTS", lambda row: row["ports"]),
    ("IN USE", lambda row: row["ports_used"]),
    ("BUSIEST", lambda row: row["busiest"]),
]


@click.command()
@show.json_option
@click.pass_obj
def command(socket: str, as_json: bool) -> None:
    """This server's pools: tags, addresses, slices, ports in use.

    A pool is a selection of addresses by tag. SLICES and PORTS are what this server holds in it now; one port
    serves many destinations, so flows can be many more than ports in use. BUSIEST is how many go to the one
    destination that has most: the pool is full when that is PORTS.

    \b
    Examples:
      softunicast pools
      softunicast pools --json
    """
    rows = client.get(socket, "/v1/pools")
    show.rows(rows, COLUMNS, as_json=as_json, empty="the agent's configuration has no pools")
