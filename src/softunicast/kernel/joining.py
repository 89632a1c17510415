"""Programs into agreements and out again: `join` for the calling process, `attach` for what runs already.

The pinned tables are the only truth: there is no list beside them. An entry goes with its cgroup, and a cgroup that
`join` made goes with its last process. Nobody is told of either, so whoever comes by tidies up: the agent now and then,
and each `join`. What `attach` says holds for its place: the next cgroup there is in the agreement from its beginning,
until `detach`, or until the cgroup above it goes. Every refusal comes before anything is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from softunicast.core.errors import HostError, InputError, UnknownNameError
from softunicast.kernel import cgroup_tree, cgroups, strays
from softunicast.kernel.agreements import Agreements, Lasting


@dataclass(frozen=True, slots=True)
class Entry:
    """An agreement. `path` is None when the cgroup has been removed; `pool` when it is excused; `place`: where another
    cgroup would be in it, too."""

    number: int
    pool: str | None
    path: Path | None
    place: Path | None = None

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
        agreed = (
            self._table.list()
        )  # first: what lasts and is restarted this moment is not taken for one that is over
        places = {one.cgroup: one for one in self._table.lasting()}
        for one in agreed:
            lasting = places.get(one.cgroup)
            parent = cgroup_tree.path_of(self.root, lasting.parent) if lasting else None
            path = cgroup_tree.path_of(self.root, one.cgroup)
            yield Entry(one.cgroup, one.pool, path, parent / lasting.name if lasting and parent else None)

    def _entries_at(self, path: Path) -> list[Entry]:
        """Those of this very cgroup, not of one above it: the first is of the one that is there, if it has one."""
        number = _number_of(path)
        found = [one for one in self.entries() if one.number == number or one.place == path]
        return sorted(found, key=lambda one: one.number != number)

    def _begin(self, path: Path, pool: str) -> None:
        self._watch(path)
        self._table.set(cgroups.number(path), pool)
        self._watch(path)  # somebody may have tidied up before the table said so

    def _watch(self, cgroup: Path) -> None:
        if not strays.is_attached(self._table.folder, cgroups.number(cgroup)):
            strays.attach(self._table.folder, cgroup)

    def _unwatch(self) -> None:
        """What need not be looked at any more."""
        path_of = partial(cgroup_tree.path_of, self.root)
        strays.detach_others(self._table.folder, self._table.watched, path_of)

    def _end(self, number: int) -> None:
        self._table.remove(number)
        self._unwatch()

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
        for one in self._table.lasting():
            if cgroup_tree.path_of(self.root, one.parent) is None:
                self._table.remove_lasting(one)
        # The deepest first: one that was made within another keeps that from being removed.
        for entry in sorted(self.entries(), key=lambda one: -len(one.path.parts) if one.path else 0):
            gone = entry.path is None and entry.place is None
            if gone or (entry.path is not None and entry.joined and cgroup_tree.remove(entry.path)):
                self._table.remove(entry.number)
                done += 1
        self._unwatch()
        return done

    def tidy_tree(self) -> None:
        """Empty cgroups of `join` without an entry, too: it was killed in the moment between the two. Looks through
        the whole tree."""
        cgroup_tree.remove_empty(self.root)
        self.tidy()

    def attach(self, path: Path, pool: str, lasts: bool = True) -> bool:
        """False when it is so already. `lasts`: so is each cgroup that takes its place. InputError when its processes
        cannot have an agreement, or another kind."""
        before = self._entry_of(path)
        stranger = cgroup_tree.in_other_network(cgroup_tree.processes(path))
        if stranger is not None:
            raise InputError(
                f"process {stranger} ({cgroup_tree.name_of(stranger)}) in {path} has a network of its own: its "
                "sockets are not this server's",
                "make the interface that its packets come in by an on-ramp, see [[onramps]]",
            )
        if before is not None and (before.path, before.pool) == (path, pool) and lasts == bool(before.place):
            return False
        if not lasts:
            self._end_lasting(path)
            self._begin(path, pool)
            self._unwatch()
            return True
        number = cgroups.number(path)
        self._watch(path.parent)
        for _ in range(cgroup_tree.MAKE_TRIES):
            latest = Lasting(cgroups.number(path.parent), path.name, number)
            try:
                self._table.set_lasting(latest, pool)
            except BaseException:
                if before is None:
                    self._table.remove_lasting(latest)
                self._unwatch()
                raise
            now = _number_of(path)
            if now is None or now == number:
                self._watch(path.parent)
                self._unwatch()
                return True
            number = now  # it was restarted before the kernel was told
        raise HostError(f"{path} is made anew all the time", "find out why it does not stay")

    def _entry_of(self, path: Path) -> Entry | None:
        """What `attach` or `detach` may change. InputError when that is for somebody else."""
        [before, *_] = [*self._entries_at(path), None]
        if before is None:
            return None
        if before.pool is None:
            raise InputError(f"{path} is excused", "take it from [sockets] excused")
        if before.joined:
            raise InputError(
                f"{path} was made by softunicast run", "end the program, and run it with another pool"
            )
        return before

    def _end_lasting(self, path: Path) -> bool:
        parent = cgroups.number(path.parent)
        ended = [one for one in self._table.lasting() if (one.parent, one.name) == (parent, path.name)]
        for one in ended:
            self._table.remove_lasting(one)
        return bool(ended)

    def detach(self, path: Path) -> None:
        """Also a place where no cgroup is now. InputError when it has no agreement, or not one of `attach`."""
        self._entry_of(path)
        before = self._entries_at(path)
        if not self._end_lasting(path) and not before:
            raise UnknownNameError(f"{path} is in no agreement of its own", "see softunicast agreements")
        for entry in (*before, *self._entries_at(path)):  # it may have been restarted meanwhile
            self._table.remove(entry.number)
        self._unwatch()


def _number_of(path: Path) -> int | None:
    """None when there is no such cgroup now."""
    with suppress(HostError, OSError):
        return cgroups.number(path)
    return None
