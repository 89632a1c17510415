"""What a benchmark says: a table for people, JSON with host facts for everyone else."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

RESULTS: Final = Path(__file__).parent / "results"


def say(text: str) -> None:
    """Progress, on standard error: a full run takes minutes."""
    sys.stderr.write(f"  bench: {text}\n")
    sys.stderr.flush()


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; the first column is a name, the others are numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", min_width=len(title))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)


def save(
    name: str, host: Mapping[str, object], how: Mapping[str, object], results: object, folder: Path
) -> None:
    """Writes NAME.json: the machine, how it was measured, every round."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": name, "host": host, "how": how, "results": results}
    made = folder / f".{name}.json"
    made.write_text(json.dumps(document, indent=1) + "\n")
    made.rename(folder / f"{name}.json")
