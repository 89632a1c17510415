"""`softunicast events`: what the agent has noticed and nobody had to ask for."""

from __future__ import annotations

import json
import time

import click

from softunicast.cli import client, show

FOLLOW_S = 0.5  # between two questions; each is a small one

COLUMNS: list[show.Column] = [
    ("TIME", lambda row: show.instant(row["at"])),
    ("EVENT", lambda row: row["kind"]),
    ("COUNT", lambda row: row["count"]),
    ("NAT EVENT", lambda row: row["nat_event"]),
    ("ABOUT", lambda row: {key: value for key, value in row["details"].items() if value is not None}),
]


@click.command()
@click.option("--follow", is_flag=True, help="Print what is there, then each event as it comes.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=50,
    show_default=True,
    metavar="COUNT",
    help="The latest COUNT, 1 to 1000.",
)
@show.json_option
@click.pass_obj
def command(socket: str, follow: bool, limit: int, as_json: bool) -> None:
    """Pools and tables that fill up, clients at their limits, leases that come and go.

    The agent remembers the last 1000 since it started; its log has all. With --follow, JSON is one object a line.

    \b
    Examples:
      softunicast events
      softunicast events --follow
      softunicast events --json | jq '.[] | select(.nat_event == 12)'
    """
    answer = client.get(socket, "/v1/events", {"limit": limit})
    if not follow:
        show.rows(
            answer["events"], COLUMNS, as_json=as_json, empty="nothing has happened since the agent started"
        )
        return
    while True:
        for row in answer["events"]:
            click.echo(json.dumps(row) if as_json else _line(row))
        time.sleep(FOLLOW_S)
        answer = client.get(socket, "/v1/events", {"since": answer["last"]})


def _line(row: show.Row) -> str:
    return "  ".join(show.text(cell(row)) for heading, cell in COLUMNS if heading != "NAT EVENT")
