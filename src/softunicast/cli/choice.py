"""What `run`, `attach` and `detach` have in common: the agent's word about its pools, and the options that choose one.

All of it works while the agent is down: its word is a file, and the rest is in the kernel. Refuses before anything
is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softunicast.core.agreements import BOARD_FILE, Board, PoolSign, choose, parse_tags
from softunicast.core.errors import HostError

if TYPE_CHECKING:
    from softunicast.kernel.joining import Joining

BOARD_BYTES_MAX = 1 << 20  # 256 pools with a few tags each are 50 kB


def pool_options(command: Callable[..., None]) -> Callable[..., None]:
    """--pool and --tag."""
    for option in (
        click.option(
            "--tag",
            "tags",
            multiple=True,
            metavar="KEY=VALUE",
            help="The pool that has this tag; may be repeated.",
        ),
        click.option("--pool", metavar="NAME", help="The pool with this name."),
    ):
        command = option(command)
    return command


state_dir_option: Callable[[Any], Any] = click.option(
    "--state-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="[agent] state_dir, where that is not the directory of its socket.",
)


def read_board(socket: str, state_dir: Path | None) -> Board:
    """What the agent published last. HostError when it never did, or has taken everything back."""
    path = (state_dir or Path(socket).parent) / BOARD_FILE
    try:
        with path.open() as file:
            return Board.parse(file.read(BOARD_BYTES_MAX))
    except FileNotFoundError as error:
        raise HostError(
            f"no agent has set up anything here: there is no {path}",
            "start it: softunicast agent --config FILE; or name its directory with --state-dir",
        ) from error
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}", "run as root") from error
    except ValueError as error:
        raise HostError(f"cannot read {path}: {error}", "restart the agent, which writes it anew") from error


def chosen_pool(board: Board, pool: str | None, tags: tuple[str, ...]) -> PoolSign:
    """Raises InputError."""
    return choose(board.pools, pool, parse_tags(tags))


def open_agreements(board: Board, needed: PoolSign | None) -> Joining:
    """The table; HostError when this host has none, or `needed` cannot serve now. Stays open until the process ends."""
    from softunicast.kernel.agreements import Agreements
    from softunicast.kernel.joining import Joining
    from softunicast.kernel.pool_state import check_access, check_pool
    from softunicast.kernel.socket_hooks import netns_cookie

    if board.cgroup is None:
        raise HostError(
            f"sockets cannot leave from pools on this host: {board.off}", "see softunicast doctor"
        )
    if netns_cookie() != board.cookie:
        raise HostError(
            f"this is another network namespace than the one of {board.server}",
            "start it there (nsenter --net), or make the namespace's interface an on-ramp",
        )
    check_access(Path(board.bpffs))
    if needed is not None:
        check_pool(Path(board.bpffs), needed.name)
    return Joining(Agreements.open(Path(board.bpffs)), Path(board.cgroup))
