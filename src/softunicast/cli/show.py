"""Printing: the one place that turns rows into a table or into JSON.

On a terminal rows become a rich table that folds to its width. Into a pipe they become aligned plain text,
one row a line, whole, so that grep and awk can be trusted; rich is not even imported then. Remarks about
the rows ("950 more") go to stderr, so that stdout holds rows only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], object]]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON: for programs.")


def rows(found: Sequence[Row], columns: Sequence[Column], *, as_json: bool, empty: str) -> None:
    """Print `found` as a table of `columns` (heading, cell of a row), or whole as JSON; `empty` if there are none."""
    if as_json:
        document(found)
        return
    if not found:
        remark(empty)
        return
    headings = [heading for heading, _ in columns]
    values = [[cell(row) for _, cell in columns] for row in found]
    numeric = [_are_numbers(column) for column in zip(*values, strict=True)]
    cells = [[text(value) for value in line] for line in values]
    if sys.stdout.isatty():
        _folded(headings, cells, numeric)
    else:
        click.echo(plain(headings, cells, numeric))


def document(value: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2))


def remark(line: str) -> None:
    """Say something about the rows that is not a row."""
    click.echo(line, err=True)


def plain(headings: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Columns aligned with two spaces between, numbers to the right, nothing cut off."""
    lines = [list(headings), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            value.rjust(width) if number else value.ljust(width)
            for value, width, number in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _folded(headings: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading, number in zip(headings, numeric, strict=True):
        table.add_column(escape(heading), justify="right" if number else "left", overflow="fold")
    for line in cells:
        table.add_row(*(escape(value) for value in line))
    Console(highlight=False).print(table)


def _are_numbers(column: Sequence[object]) -> bool:
    known = [value for value in column if value is not None]
    return bool(known) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in known
    )


def text(value: object) -> str:
    """One cell: nothing is `-`, truth is yes or no, tags are `key=value`, lists are separated by commas."""
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item}" for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value)
    return " ".join(str(value).split())


def span(seconds: float | None) -> str | None:
    """A length of time with two units at most: `9.4 s`, `4 m 12 s`, `2 h 4 m`, `3 d 1 h`. None stays None."""
    if seconds is None:
        return None
    if seconds < 0:
        return "over"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = int(max(seconds, 10))
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"


def instant(at: float) -> str:
    """A point in time (unix seconds) as UTC with milliseconds: `2026-05-01T14:02:07.250Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
