"""`softunicast lab`: whole networks in namespaces, to try things in.

`list` and `status` look; `up`, `down`, `exec`, `demo` and `failure` change things. Everything is done by
softunicast.lab, which each command imports when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from softunicast.cli import show
from softunicast.core.errors import InputError, UnknownNameError
from softunicast.core.records import SLICE_PORTS_DEFAULT

if TYPE_CHECKING:
    from softunicast.lab.verdict import Check

REPORT_WIDTH = 140  # of the demo's table when it goes into a file


@click.group(no_args_is_help=True)
def command() -> None:
    """Whole networks in namespaces to try things in. Needs root.

    \b
    Examples:
      softunicast lab up pair                       build the lab `pair`
      softunicast lab exec client1 -- curl -s http://203.0.113.1/
      softunicast lab exec server1 -- softunicast flows
      softunicast lab status pair                   its nodes and what runs in them
      softunicast lab down pair
      softunicast lab demo                          up, real traffic, what happened, down
      softunicast lab failure silent_rewrite        how others fail, and claims beside it
    """


@command.command("list")
@show.json_option
def list_(as_json: bool) -> None:
    """The topologies that `up` can build."""
    from softunicast.lab.catalogue import TOPOLOGIES

    found = []
    for name, build in TOPOLOGIES.items():
        topology = build(SLICE_PORTS_DEFAULT)
        found.append({"name": name, "about": topology.about, "nodes": [node.name for node in topology.nodes]})
    columns: list[show.Column] = [
        ("NAME", lambda row: row["name"]),
        ("NODES", lambda row: row["nodes"]),
        ("ABOUT", lambda row: row["about"]),
    ]
    show.rows(found, columns, as_json=as_json, empty="no topologies")


@command.command()
@click.argument("name")
@click.option("--id", "lab_id", metavar="ID", help="What to call this lab; NAME if not given.")
@click.option(
    "--slice-ports",
    type=int,
    default=SLICE_PORTS_DEFAULT,
    show_default=True,
    metavar="PORTS",
    help="How many ports a slice has: few make a full slice easy to see.",
)
@click.option("--no-agents", is_flag=True, help="A lab without softunicast, for experiments.")
def up(name: str, lab_id: str | None, slice_ports: int, no_agents: bool) -> None:
    """Build the topology NAME and wait until it works.

    When it fails, or is interrupted, everything is removed again.
    """
    from softunicast.lab import build, catalogue

    lab = build.up(catalogue.topology(name, slice_ports), lab_id, agents=not no_agents, say=show.remark)
    chosen = "" if lab.id == "pair" else f"--lab {lab.id} "
    click.echo(f"lab {lab.id} is up: {', '.join(lab.nodes)}")
    show.remark(f"look around: softunicast lab exec {chosen}{next(iter(lab.nodes))} -- ip address")
    show.remark(f"take it down: softunicast lab down {lab.id}")


@command.command()
@click.argument("lab_id", metavar="[ID]", required=False)
@show.json_option
def status(lab_id: str | None, as_json: bool) -> None:
    """Labs of this host; with ID, the nodes of one: namespace, processes, agent."""
    from softunicast.lab import build, state
    from softunicast.lab import status as look

    build.check_root()
    if lab_id is None:
        empty = "no lab is up; softunicast lab up pair builds one"
        show.rows(look.summaries(), _LAB_COLUMNS, as_json=as_json, empty=empty)
        return
    lab = state.load(lab_id)
    found = look.nodes(lab)
    if as_json:
        show.document({**look.summary(lab), "nodes": found})
        return
    show.remark(f"lab {lab.id} is {look.condition(lab)}; its files: {lab.directory}")
    show.rows(found, _NODE_COLUMNS, as_json=False, empty="no nodes")


@command.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--lab", "lab_id", metavar="ID", help="In which lab; not needed while only one is up.")
@click.argument("node")
@click.argument("program", nargs=-1, type=click.UNPROCESSED, required=True, metavar="-- CMD...")
def exec_(lab_id: str | None, node: str, program: tuple[str, ...]) -> None:
    """Run a program inside a node; its input, output and exit code are the program's.

    Only the network is the node's. The softunicast command talks to the node's own agent there.
    """
    from softunicast.lab import build, processes, state

    argv = program[1:] if program[0] == "--" else program
    if not argv:
        raise InputError("which program?", f"softunicast lab exec {node} -- CMD...")
    build.check_root()
    processes.become(state.load(lab_id or _only_lab()), node, argv)


@command.command()
@click.argument("lab_id", metavar="[ID]", required=False)
@click.option("--all", "every", is_flag=True, help="Every lab of this host, also half-built ones.")
def down(lab_id: str | None, every: bool) -> None:
    """Remove the lab ID with everything in it: processes, namespaces, mounts, files."""
    from softunicast.lab import build

    if every == (lab_id is not None):
        raise InputError("which lab?", "give its ID or --all")
    removed: tuple[str, ...]
    if lab_id is None:
        removed = build.down_all()
    else:
        build.down(lab_id)
        removed = (lab_id,)
    click.echo(f"removed: {', '.join(removed) or 'nothing, no lab was up'}")


@command.command()
@click.option("--keep", is_flag=True, help="Leave the lab up and say how to look around.")
@show.json_option
@click.pass_context
def demo(context: click.Context, keep: bool, as_json: bool) -> None:
    """Build `pair`, send real traffic through it, show what happened, remove it.

    Exit code 0 only if everything was as it should be.
    """
    from softunicast.lab import demo as show_piece

    report = show_piece.run(keep, say=show.remark)
    if as_json:
        show.document({**asdict(report), "passed": report.passed})
    else:
        _print_checks(report.checks, report.seconds)
    if keep:
        show.remark(f"the lab {report.lab} is still up; look around:")
        for line in _LOOK_AROUND:
            show.remark("  softunicast lab " + line.format(lab=report.lab))
    context.exit(0 if report.passed else 1)


@command.command()
@click.argument("name", required=False)
@show.json_option
@click.pass_context
def failure(context: click.Context, name: str | None, as_json: bool) -> None:
    """Make a failure of another strategy happen, and show the same situation under claims.

    Without NAME: the failures there are. Each runs in a small network of its own, which is removed afterwards. Exit
    code 0 only if it failed as described and claims did not.
    """
    from softunicast.lab import failures

    if name is None:
        found = [
            {"name": one.name, "strategies": list(one.of), "about": one.about}
            for one in failures.FAILURES.values()
        ]
        show.rows(found, _FAILURE_COLUMNS, as_json=as_json, empty="no failures")
        return
    report = failures.run(name, say=show.remark)
    if as_json:
        show.document({**asdict(report), "passed": report.passed})
    else:
        _print_checks((*report.reproduced, *report.under_claims), report.seconds, len(report.reproduced))
    context.exit(0 if report.passed else 1)


def _print_checks(checks: Sequence[Check], seconds: float, under_claims_from: int | None = None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for heading in ("", "WHAT", "EXPECTED", "SEEN"):
        table.add_column(heading, overflow="fold")
    for number, check in enumerate(checks):
        if number == under_claims_from:
            table.add_row("", "[bold]under claims[/]")
        mark = "[green]yes[/]" if check.passed else "[bold red]NO[/]"
        table.add_row(mark, Text(check.what), Text(check.expected), Text(check.seen))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = REPORT_WIDTH
    console.print(table)
    held = sum(check.passed for check in checks)
    console.print(f"{held} of {len(checks)} held, in {seconds:.0f} s")


def _only_lab() -> str:
    from softunicast.lab import state

    labs = state.known()
    if not labs:
        raise UnknownNameError("no lab is up", "softunicast lab up pair")
    if len(labs) > 1:
        raise InputError(f"{len(labs)} labs are up", f"choose with --lab: {', '.join(labs)}")
    return labs[0]


def _agent_cell(row: Any) -> str | None:
    agent = row["agent"]
    if agent is None:
        return None
    if not agent["answers"]:
        return "does not answer"
    return f"pid {agent['pid']}, slices: {agent['leases_held']}"


_LAB_COLUMNS: list[show.Column] = [
    ("LAB", lambda row: row["lab"]),
    ("TOPOLOGY", lambda row: row["topology"]),
    ("CONDITION", lambda row: row["condition"]),
    ("SINCE", lambda row: show.instant(row["created_at"])),
    ("NODES", lambda row: row["nodes"]),
    ("AGENTS", lambda row: row["agents"]),
]
_NODE_COLUMNS: list[show.Column] = [
    ("NODE", lambda row: row["node"]),
    ("NAMESPACE", lambda row: row["namespace"] if row["exists"] else f"{row['namespace']} (gone)"),
    ("PROCESSES", lambda row: [f"{process['name']}[{process['pid']}]" for process in row["processes"]]),
    ("AGENT", _agent_cell),
]
_FAILURE_COLUMNS: list[show.Column] = [
    ("NAME", lambda row: row["name"]),
    ("STRATEGIES", lambda row: row["strategies"]),
    ("ABOUT", lambda row: row["about"]),
]
_LOOK_AROUND = (
    "status {lab}",
    "exec --lab {lab} client1 -- curl http://203.0.113.1/",
    "exec --lab {lab} server1 -- softunicast slices",
    "exec --lab {lab} server1 -- softunicast flows",
    "exec --lab {lab} server1 -- softunicast drops",
    "exec --lab {lab} internet -- curl http://127.0.0.1/peers",
    "down {lab}",
)
