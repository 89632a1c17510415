"""The kernel's table of cgroups whose sockets leave from a pool, as pinned: read and written with or without an agent.

The table is the only truth: there is no list beside it. An entry goes with its cgroup, and a cgroup that `join` made
goes with its last process; since nobody is told of either, whoever comes by tidies up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softunicast.core.agreements import PoolSign
from softunicast.core.errors import HostError, InputError, UnknownNameError
from softunicast.kernel import abi, cgroup_tree
from softunicast.kernel.maps import Map


@dataclass(frozen=True, slots=True)
class Agreement:
    """An entry. `path` is None when the cgroup has been removed."""

    number: int
    kind: abi.AgreementKind
    pool: int
    path: Path | None

    @property
    def made_here(self) -> bool:
        """Whether `join` made the cgroup."""
        return self.path is not None and self.path.name.startswith(cgroup_tree.PREFIX)


class AgreementTable:
    """The map `agreements`, and the cgroup at which the hooks are attached."""

    def __init__(self, table: Map, root: Path) -> None:
        self._table = table
        self.root = root

    def entries(self) -> Iterator[Agreement]:
        """Every one there is."""
        for key, value in list(self._table.items()):
            number, entry = int.from_bytes(key, "little"), abi.Agreement.unpack(value)
            path = cgroup_tree.path_of(self.root, number)
            yield Agreement(number, abi.AgreementKind(entry.kind), entry.pool, path)

    def of(self, path: Path) -> Agreement | None:
        """That of this very cgroup, not of one above it."""
        number = cgroup_tree.number(path)
        value = self._table.get(number.to_bytes(8, "little"))
        if value is None:
            return None
        entry = abi.Agreement.unpack(value)
        return Agreement(number, abi.AgreementKind(entry.kind), entry.pool, path)

    def put(self, path: Path, pool: PoolSign) -> None:
        """New sockets of the cgroup leave from the pool, from now on."""
        entry = abi.Agreement(abi.AgreementKind.POOL, pool.number)
        self._table.set(cgroup_tree.number(path).to_bytes(8, "little"), entry.pack())

    def drop(self, number: int) -> None:
        """No agreement any more; nothing happens when there was none."""
        self._table.delete(number.to_bytes(8, "little"))

    def join(self, pool: PoolSign) -> Path:
        """Moves the calling process into a new cgroup, below the one it is in, that leaves from the pool.

        Below its own, so that limits and whoever ends it by its cgroup still reach it. `leave` takes it back.
        """
        parent = cgroup_tree.own(self.root)
        for _ in range(cgroup_tree.MAKE_TRIES):
            path = cgroup_tree.make(parent)
            number = cgroup_tree.number(path)
            try:
                self.put(path, pool)
                if cgroup_tree.enter(path):
                    return path
            except BaseException:
                self.drop(number)
                cgroup_tree.remove(path)
                raise
            self.drop(number)
        raise HostError(f"somebody removes the cgroups that are made below {parent}", "find out who")

    def leave(self, path: Path) -> None:
        """Undoes a `join` of this process."""
        number = cgroup_tree.number(path)
        cgroup_tree.enter(path.parent)
        if cgroup_tree.remove(path):
            self.drop(number)

    def tidy(self) -> int:
        """Drops entries of removed cgroups, and removes the cgroups of `join` that no process is in. How many."""
        done = 0
        # The deepest first: one that was made within another keeps that from being removed.
        for entry in sorted(self.entries(), key=lambda one: -len(one.path.parts) if one.path else 0):
            if entry.path is None or (entry.made_here and cgroup_tree.remove(entry.path)):
                self.drop(entry.number)
                done += 1
        return done

    # -- as asked by people ----------------------------------------------------------------------------------

    def attach(self, path: Path, pool: PoolSign) -> bool:
        """False when it is so already. InputError when its processes cannot have an agreement, or another kind."""
        before = self.of(path)
        if before is not None and before.kind is not abi.AgreementKind.POOL:
            raise InputError(f"{path} is excused", "take it from [sockets] excused")
        stranger = cgroup_tree.in_other_network(cgroup_tree.processes(path))
        if stranger is not None:
            who = f"process {stranger} ({cgroup_tree.name_of(stranger)})"
            raise InputError(
                f"{who} in {path} has a network of its own, so its sockets are not this server's",
                "make the interface that its packets come in by an on-ramp: [[onramps]] of the configuration",
            )
        if before is not None and before.pool == pool.number:
            return False
        self.put(path, pool)
        return True

    def detach(self, path: Path) -> None:
        """InputError when it has no agreement, or not one of `attach`."""
        before = self.of(path)
        if before is None:
            raise UnknownNameError(f"{path} is in no agreement of its own", "see softunicast agreements")
        if before.made_here:
            raise InputError(f"{path} is a running `softunicast run`", "end the program")
        if before.kind is not abi.AgreementKind.POOL:
            raise InputError(f"{path} is excused", "take it from [sockets] excused")
        self.drop(before.number)
