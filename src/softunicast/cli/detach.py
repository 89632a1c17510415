"""`softunicast detach`: ends what `attach` began."""

from __future__ import annotations

from pathlib import Path

import click

from softunicast.cli import choice


@click.command()
@click.option("--cgroup", required=True, metavar="PATH", help="Its folder, or as in /proc/PID/cgroup.")
@choice.state_dir_option
@click.pass_obj
def command(socket: str, cgroup: str, state_dir: Path | None) -> None:
    """Let new connections of a unit or container leave as they would without softunicast.

    Connections that are open stay as they are. Also for a unit that is stopped. Works while the agent is down. Needs
    root.

    \b
    Examples:
      softunicast detach --cgroup $(systemctl show -P ControlGroup squid)
    """
    from softunicast.kernel import cgroup_tree

    agreements = choice.open_agreements(choice.read_board(socket, state_dir), None)
    path = cgroup_tree.find_place(cgroup, agreements.root)
    agreements.detach(path)
    click.echo(f"{path} is in no agreement any more")
