"""The agent's part in sockets that leave from pools: it tells programs of its pools, and tidies up after them.

The rest happens without it: `softunicast run` and `attach` write the kernel's table themselves. What is told is a
file, whole or not at all; it does not change while the agent runs, because the configuration does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from softunicast.core.agreements import BOARD_FILE, Board, PoolSign
from softunicast.core.config import Config
from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.errors import HostError
from softunicast.kernel import cgroup_tree, probe
from softunicast.kernel.agreements import Agreements
from softunicast.kernel.joining import Entry, Joining
from softunicast.kernel.socket_hooks import netns_cookie, root_of


@dataclass(frozen=True, slots=True)
class Member:
    """An agreement and the processes in it: pid and name."""

    entry: Entry
    processes: tuple[tuple[int, str], ...]


def look_after(config: SocketsConfig) -> tuple[SocketsConfig | None, str | None]:
    """What of [sockets] this host can do: the section, or None and why not. HostError when it was asked for by name."""
    if config.enabled is False:
        return None, "[sockets] enabled = false"
    lacking = [one for one in probe.features(probe.FOR_SOCKETS) if one.have is False]
    if lacking:
        why = f"this kernel, {os.uname().release}, lacks {', '.join(one.name for one in lacking)}"
        if config.enabled:
            raise HostError(f"{why}, so sockets cannot be looked after", lacking[0].fix)
        return None, why
    if root_of(config) is None:
        return None, "cgroup2 is not mounted"
    return config, None


def board_of(config: Config, sockets: SocketsConfig | None, off: str | None) -> Board:
    """What to tell programs; `sockets` and `off` as `look_after` says."""
    root = root_of(sockets)
    pools = tuple(PoolSign(pool.name, pool.tags, tuple(map(str, pool.dns))) for pool in config.pools)
    cgroup = None if root is None else str(root)
    return Board(config.server.name, config.agent.bpffs, netns_cookie(), cgroup, off, pools)


class Sockets:
    """All of it blocks for milliseconds: call it from the kernel thread."""

    def __init__(self, state_dir: Path, board: Board) -> None:
        self._path = state_dir / BOARD_FILE
        self._board = board

    def publish(self) -> None:
        """Tells programs of the pools. Raises HostError."""
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(self._board.text())
            fresh.chmod(0o644)  # what is in it is no secret
            os.replace(fresh, self._path)  # noqa: PTH105
        except OSError as error:
            raise HostError(
                f"cannot tell programs of the pools in {self._path}: {error.strerror}",
                "give [agent] state_dir a directory with space that root can write",
            ) from error

    def withdraw(self) -> tuple[str, ...]:
        """For a stop that takes everything back: nobody is told any more, and what is empty is removed.

        Returns the cgroups with programs that run on, and leave from no pool as soon as the hooks are gone.
        """
        self._path.unlink(missing_ok=True)
        if self._board.cgroup is None:
            return ()
        try:
            with Agreements.open(Path(self._board.bpffs)) as table:
                Joining(table, Path(self._board.cgroup)).tidy_tree()
            members = self.members()
        except HostError:  # there is no table: nothing to tidy
            return ()
        return tuple(str(one.entry.path) for one in members if one.entry.pool is not None and one.processes)

    def tidy(self) -> int:
        """Removes what ended programs left; how many agreements that were."""
        if self._board.cgroup is None:
            return 0
        with Agreements.open(Path(self._board.bpffs)) as table:
            return Joining(table, Path(self._board.cgroup)).tidy()

    def members(self) -> list[Member]:
        """Every agreement of a cgroup that is there or to come, by path."""
        if self._board.cgroup is None:
            return []
        with Agreements.open(Path(self._board.bpffs)) as table:
            found = list(Joining(table, Path(self._board.cgroup)).entries())
        return [
            Member(one, _named(cgroup_tree.processes(one.path)) if one.path else ())
            for one in found
            if one.path or one.place
        ]


def _named(pids: Iterable[int]) -> tuple[tuple[int, str], ...]:
    return tuple((pid, cgroup_tree.name_of(pid)) for pid in pids)
