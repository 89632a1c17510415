"""`softunicast onramps`: where this server's clients come in, and whom it believes there."""

from __future__ import annotations

import click

from softunicast.cli import client, show

COLUMNS: list[show.Column] = [
    ("ON-RAMP", lambda row: row["name"]),
    ("KIND", lambda row: row["kind"]),
    ("POOL", lambda row: row["pool"]),
    ("STATE", lambda row: row["state"]),
    ("ATTACH", lambda row: row["attach"]),
    ("LAYER", lambda row: row["layer"]),
    ("ADDRESS", lambda row: [one for one in (row["address"], row["address6"]) if one]),
    ("MTU", lambda row: row["mtu"]),
    ("SOURCES", lambda row: row["sources"] or "any"),
    ("OPEN", lambda row: row["open"]),
]


@click.command()
@show.json_option
@click.pass_obj
def command(socket: str, as_json: bool) -> None:
    """Where this server's clients come in: interface, pool, which sources are believed.

    STATE is ready, waiting (its programs are not attached) or missing (there is no such interface). LAYER is ip for
    devices without an Ethernet header, like TUN and WireGuard. OPEN says for kind fd whether a program has it.

    \b
    Examples:
      softunicast onramps
      softunicast onramps --json
    """
    rows = client.get(socket, "/v1/onramps")
    show.rows(rows, COLUMNS, as_json=as_json, empty="the agent's configuration has no on-ramps")
