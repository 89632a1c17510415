"""`softunicast agreements`: which processes of this server leave from which pool."""

from __future__ import annotations

import click

from softunicast.cli import client, show

SHOWN_MAX = 3  # processes in a cell: a web server has hundreds

COLUMNS: list[show.Column] = [
    ("CGROUP", lambda row: row["cgroup"]),
    ("BY", lambda row: row["by"]),
    ("POOL", lambda row: row["pool"]),
    ("PROCESSES", lambda row: len(row["processes"])),
    ("WHICH", lambda row: _which(row)),
]


@click.command()
@show.json_option
@click.pass_obj
def command(socket: str, as_json: bool) -> None:
    """Whose sockets leave from which pool: cgroups, and the processes in them.

    BY says how it came about: run, attach or, with no pool, excused by the configuration. An agreement holds for
    all cgroups below, unless they have one of their own.

    \b
    Examples:
      softunicast agreements
      softunicast agreements --json
    """
    rows = client.get(socket, "/v1/agreements")
    show.rows(
        rows, COLUMNS, as_json=as_json, empty="no cgroup is in an agreement; see softunicast run --help"
    )


def _which(row: show.Row) -> str:
    names = [f"{process['name']}[{process['pid']}]" for process in row["processes"][:SHOWN_MAX]]
    return ", ".join([*names, "..."] if len(row["processes"]) > SHOWN_MAX else names)
