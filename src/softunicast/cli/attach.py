"""`softunicast attach`: what runs already, a systemd unit or a container, leaves from a pool."""

from __future__ import annotations

from pathlib import Path

import click

from softunicast.cli import choice


@click.command()
@click.option("--cgroup", required=True, metavar="PATH", help="Its folder, or as in /proc/PID/cgroup.")
@choice.pool_options
@click.option("--once", is_flag=True, help="Only until the cgroup is removed, as when a unit stops.")
@choice.state_dir_option
@click.pass_obj
def command(
    socket: str, cgroup: str, pool: str | None, tags: tuple[str, ...], once: bool, state_dir: Path | None
) -> None:
    """Let new connections of a running unit or container leave from a pool.

    All processes of the cgroup and of those below it; connections that are open stay as they are. Lasts until
    `detach`, also when the unit is restarted, but not when the host is, nor after an agent that stops and takes
    everything back: what to write into the unit is in docs/howto/run.md. Attached already, it changes to the
    given pool. Works while the agent is down. Needs root.

    \b
    Examples:
      softunicast attach --cgroup $(systemctl show -P ControlGroup squid) --pool gb
      softunicast attach --cgroup /sys/fs/cgroup/system.slice/squid.service --tag country=gb
    """
    from softunicast.kernel import cgroup_tree

    board = choice.read_board(socket, state_dir)
    chosen = choice.chosen_pool(board, pool, tags)
    agreements = choice.open_agreements(board, chosen)
    path = cgroup_tree.find(cgroup, agreements.root)
    changed = agreements.attach(path, chosen.name, lasts=not once)
    click.echo(f"{path} leaves from pool {chosen.name}" + ("" if changed else ", as before"))
