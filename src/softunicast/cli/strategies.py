"""`softunicast strategies`: the ways in which packets and sockets can share a slice, each tried on this host."""

from __future__ import annotations

import click

from softunicast.cli import show

COLUMNS: list[show.Column] = [
    ("NAME", lambda row: row["name"]),
    ("RUNS HERE", lambda row: row["runs_here"]),
    ("WHY NOT", lambda row: row["why"]),
    ("FIX", lambda row: row["fix"]),
    ("ABOUT", lambda row: row["about"]),
]


@click.command()
@show.json_option
def command(as_json: bool) -> None:
    """Ways in which packets and sockets can share a slice, and which of them this host can run.

    Each is tried, in network namespaces that nobody else sees. The agent runs claims; the others are there to be
    compared with it, and for kernels without BPF. Needs root.

    \b
    Examples:
      softunicast strategies
      softunicast lab failure silent_rewrite   how one of them fails
    """
    from softunicast.strategies import catalogue

    found = [
        {
            "name": answer.name,
            "offered": answer.offered,
            "runs_here": answer.can_run,
            "why": answer.why,
            "fix": answer.fix,
            "about": answer.about,
            "protocols": list(catalogue.STRATEGIES[answer.name].protocols),
            "ipv6": catalogue.STRATEGIES[answer.name].ipv6,
            "restart": catalogue.STRATEGIES[answer.name].restart,
        }
        for answer in catalogue.examine()
    ]
    show.rows(found, COLUMNS, as_json=as_json, empty="no strategies")
