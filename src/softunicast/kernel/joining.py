"""Programs into agreements and out again: `join` for the calling process, `attach` for what runs already.

The pinned table is the only truth: there is no list beside it. An entry goes with its cgroup, and a cgroup that `join`
made goes with its last process. Nobody is told of either, so whoever comes by tidies up: the agent now and then, and
each `join`. Every refusal comes before anything is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softunicast.core.errors import HostError, InputError, UnknownNameError
from softunicast.kernel import cgroup_tree, cgroups, strays
from softunicast.kernel.agreements import Agreements


@dataclass(frozen=True, slots=True)
class Entry:
    """An agreement. `path` is None when the cgroup has been removed; `pool` when it is excused."""

    number: int
    pool: str | None
    path: Path | None

    @property
    def joined(self) -> bool:
        """Whether `join` made the cgroup."""
        return self.path is not None and self.path.name.startswith(cgroup_tree.PREFIX)


class Joining:
    """Over one table of agreements. `root`: the cgroup at which the data path's hooks are attached."""

    def __init__(self, table: Agreements, root: Path) -> None:
        self._table = table
        self.root = root

    def entries(self) -> Iterator[Entry]:
        """Every agreement there is."""
        for one in self._table.list():
            yield Entry(one.cgroup, one.pool, cgroup_tree.path_of(self.root, one.cgroup))

    def _entry_of(self, path: Path) -> Entry | None:
        """That of this very cgroup, not of one above it."""
        number = cgroups.number(path)
        return next(
            (Entry(number, one.pool, path) for one in self._table.list() if one.cgroup == number), None
        )

    def _begin(self, path: Path, pool: str) -> None:
        strays.attach(self._table.folder, path)
        self._table.set(cgroups.number(path), pool)

    def _end(self, number: int) -> None:
        self._table.remove(number)
        strays.detach(self._table.folder, number)

    def join(self, pool: str) -> Path:
        """Moves the calling process into a new cgroup, below the one it is in, that leaves from the pool.

        Below its own, so that limits and whoever ends it by its cgroup still reach it. `leave` takes it back.
        """
        self.tidy()
        parent = cgroup_tree.own(self.root)
        for _ in range(cgroup_tree.MAKE_TRIES):
            path = cgroup_tree.make(parent)
            number = cgroups.number(path)
            try:
                self._begin(path, pool)
                if cgroup_tree.enter(path):
                    return path
            except BaseException:
                self._end(number)
                cgroup_tree.remove(path)
                raise
            self._end(number)
        raise HostError(f"somebody removes the cgroups that are made below {parent}", "find out who")

    def leave(self, path: Path) -> None:
        """Undoes a `join` of this process."""
        number = cgroups.number(path)
        cgroup_tree.enter(path.parent)
        if cgroup_tree.remove(path):
            self._end(number)

    def tidy(self) -> int:
        """Drops entries of removed cgroups, and removes the cgroups of `join` that no process is in. How many."""
        done = 0
        # The deepest first: one that was made within another keeps that from being removed.
        for entry in sorted(self.entries(), key=lambda one: -len(one.path.parts) if one.path else 0):
            if entry.path is None or (entry.joined and cgroup_tree.remove(entry.path)):
                self._end(entry.number)
                done += 1
        return done

    def remove_strays(self) -> None:
        """Empty cgroups of `join` without an entry, too: it was killed in the moment between the two. Looks through
        the whole tree."""
        cgroup_tree.remove_empty(self.root)
        self.tidy()

    def attach(self, path: Path, pool: str) -> bool:
        """False when it is so already. InputError when its processes cannot have an agreement, or another kind."""
        before = self._entry_of(path)
        if before is not None and before.pool is None:
            raise InputError(f"{path} is excused", "take it from [sockets] excused")
        if before is not None and before.joined:
            raise InputError(
                f"{path} was made by softunicast run", "end the program and run it with another pool"
            )
        stranger = cgroup_tree.in_other_network(cgroup_tree.processes(path))
        if stranger is not None:
            raise InputError(
                f"process {stranger} ({cgroup_tree.name_of(stranger)}) in {path} has a network of its own: its "
                "sockets are not this server's",
                "make the interface that its packets come in by an on-ramp, see [[onramps]]",
            )
        if before is not None and before.pool == pool:
            return False
        self._begin(path, pool)
        return True

    def detach(self, path: Path) -> None:
        """InputError when it has no agreement, or not one of `attach`."""
        before = self._entry_of(path)
        if before is None:
            raise UnknownNameError(f"{path} is in no agreement of its own", "see softunicast agreements")
        if before.joined:
            raise InputError(f"{path} was made by softunicast run", "end the program")
        if before.pool is None:
            raise InputError(f"{path} is excused", "take it from [sockets] excused")
        self._end(before.number)
