"""`softunicast drops`: every packet this server refused has a reason; this lists them."""

from __future__ import annotations

import click

from softunicast.cli import client, show


def _last(row: show.Row) -> str | None:
    last = row["last"]
    if last is None:
        return None
    ends = f"{last['protocol']} {last['source']} > {last['destination']}"
    return f"{show.span(last['age_s'])} ago, {last['hook']} on {last['interface']}: {ends}"


COLUMNS: list[show.Column] = [
    ("REASON", lambda row: row["reason"]),
    ("PACKETS", lambda row: row["packets"]),
    ("LAST", _last),
    ("MEANING", lambda row: row["meaning"]),
]


@click.command()
@click.option("--all", "every", is_flag=True, help="Also the reasons that never happened.")
@show.json_option
@click.pass_obj
def command(socket: str, every: bool, as_json: bool) -> None:
    """Why packets were dropped: reason, count, the last one.

    Counted since the data path was loaded; an agent's restart does not reset it.

    \b
    Examples:
      softunicast drops
      softunicast drops --all           every reason there is, with its meaning
      softunicast drops --json | jq '.[] | {reason, packets}'
    """
    rows = [row for row in client.get(socket, "/v1/drops") if every or row["packets"] > 0]
    show.rows(rows, COLUMNS, as_json=as_json, empty="no packet was dropped")
