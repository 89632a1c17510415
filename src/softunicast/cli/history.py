"""How history entries look to people; asked for by `leases --history` and by `ledger history`."""

from __future__ import annotations

import click

from softunicast.cli import show

LIMIT_DEFAULT = 100
LIMIT_MAX = 10_000

COLUMNS: list[show.Column] = [
    ("TIME", lambda row: show.instant(row["at"])),
    ("EVENT", lambda row: row["event"]),
    ("SLICE", lambda row: row["slice"]),
    ("SERVER", lambda row: row["server"]),
    ("EPOCH", lambda row: row["epoch"]),
    ("DETAIL", lambda row: row["detail"]),
]

limit_option = click.option(
    "--limit",
    type=click.IntRange(1, LIMIT_MAX),
    default=LIMIT_DEFAULT,
    show_default=True,
    help="At most so many entries of the history, the latest first.",
)


def rows(entries: list[show.Row], *, as_json: bool) -> None:
    """Print the entries, latest first."""
    show.rows(entries, COLUMNS, as_json=as_json, empty="the history has nothing about that")
