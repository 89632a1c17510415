"""Agreements: which cgroup's sockets leave from which pool. A pinned map that anybody with the privilege can write,
while an agent runs or not; the data path asks it (bpf/agreement.h).

A cgroup is known by its number (kernel/cgroups.py). What is below it follows, unless it has an agreement of its own.
One that lasts is also known by the cgroup's place, its name in the one above it: the next cgroup there is in it, too
(bpf/remade.bpf.c).
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from softunicast.core.errors import HostError, KernelError, UnknownNameError
from softunicast.kernel import abi
from softunicast.kernel.families import FAMILIES
from softunicast.kernel.libbpf import check, load_library
from softunicast.kernel.maps import Map
from softunicast.kernel.objects import map_of_fd
from softunicast.kernel.words import bytes_name, index_key

AGREEMENTS_MAX: Final = 4096  # as in bpf/agreement.h
TAG: Final = index_key(0)  # of `outsiders`


@dataclass(frozen=True, slots=True)
class Agreement:
    """`pool`: the name of the pool, "#5" when it is gone since; None: excused, leaves as without softunicast."""

    cgroup: int
    pool: str | None


@dataclass(frozen=True, slots=True)
class Lasting:
    """An agreement of whichever cgroup has this name in the one with the number `parent`; the latest is `cgroup`."""

    parent: int
    name: str
    cgroup: int


class Agreements:
    """The agreements of the data path that is pinned in a folder. Close it, or use it in `with`."""

    def __init__(
        self, folder: Path, table: Map, outsiders: Map, lasting: Map, pools: tuple[Map, ...]
    ) -> None:
        self.folder = folder
        self._table = table
        self._outsiders = outsiders
        self._lasting = lasting
        self._pools = pools

    @classmethod
    def open(cls, bpffs: Path) -> Self:
        """Raises HostError when no data path is there, or none that knows agreements."""
        opened = list[Map]()
        try:
            for name in (
                "agreements",
                "outsiders",
                "lasting",
                *(family.named("pools") for family in FAMILIES),
            ):
                opened.append(_pinned(bpffs / "maps" / name))
        except BaseException:
            for table in opened:
                os.close(table.fd)
            raise
        return cls(bpffs, opened[0], opened[1], opened[2], tuple(opened[3:]))

    def close(self) -> None:
        for table in (self._table, self._outsiders, self._lasting, *self._pools):
            os.close(table.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pools(self) -> Mapping[str, int]:
        """The pools that the data path knows now: name -> number."""
        return pool_numbers(self._pools)

    def set(self, cgroup: int, pool: str) -> None:
        """Sockets of programs in the cgroup leave from the pool from now on, or not at all; those that it has already
        stay as they are. Raises UnknownNameError when there is no such pool."""
        self._begin(cgroup, self._leaving(pool))

    def set_lasting(self, one: Lasting, pool: str) -> None:
        """Likewise, and each cgroup that is made in its place."""
        entry = abi.Lasting(one.cgroup, self._leaving(pool).pool, 0)
        with _room():
            self._lasting.set(_place(one.parent, one.name), entry.pack())
        self.set(one.cgroup, pool)

    def _leaving(self, pool: str) -> abi.Agreement:
        numbers = self.pools()
        if pool not in numbers:
            raise UnknownNameError(
                f"no pool {pool!r}", f"name one of: {', '.join(sorted(numbers)) or 'none yet'}"
            )
        return abi.Agreement(abi.AgreementKind.POOL, numbers[pool])

    def excuse(self, cgroup: int) -> None:
        """Programs in the cgroup may use any port, and leave as they would without softunicast."""
        self._begin(cgroup, abi.Agreement(abi.AgreementKind.EXCUSED, 0))

    def _begin(self, cgroup: int, entry: abi.Agreement) -> None:
        with _room():
            begin(self._table, self._outsiders, cgroup, entry)

    def remove(self, cgroup: int) -> bool:
        """Sockets that are new from now on are none of ours. False when the cgroup was in none."""
        return self._table.delete(_key(cgroup))

    def remove_lasting(self, one: Lasting) -> None:
        self._lasting.delete(_place(one.parent, one.name))

    def lasting(self) -> tuple[Lasting, ...]:
        """Those that last."""
        found = []
        for key, value in self._lasting.items():
            place = abi.CgroupName.unpack(key)
            name = os.fsdecode(place.name.rstrip(b"\0"))
            found.append(Lasting(place.parent, name, abi.Lasting.unpack(value).cgroup))
        return tuple(found)

    def watched(self) -> frozenset[int]:
        """Cgroups at which is looked at what their programs send (strays.py): those in an agreement, and those above
        one that lasts, because who is next in its place begins at once."""
        lasting = self.lasting()
        latest = {one.cgroup for one in lasting}
        now = {one.cgroup for one in self.list() if one.pool is not None and one.cgroup not in latest}
        return frozenset(now | {one.parent for one in lasting})

    def list(self) -> tuple[Agreement, ...]:
        """All of them, by the number of the cgroup."""
        names = {number: name for name, number in self.pools().items()}
        return tuple(sorted(self._read(names), key=lambda one: one.cgroup))

    def _read(self, names: Mapping[int, str]) -> Iterator[Agreement]:
        for key, value in self._table.items():
            found = abi.Agreement.unpack(value)
            excused = found.kind == abi.AgreementKind.EXCUSED
            yield Agreement(
                int.from_bytes(key, "little"), None if excused else names.get(found.pool, f"#{found.pool}")
            )


def begin(agreements: Map, outsiders: Map, cgroup: int, entry: abi.Agreement) -> None:
    """Writes an agreement. What the data path knows of cgroups that are in none is void from then on, and not used
    meanwhile (bpf/agreement.h); who dies in the middle leaves it unused."""
    outsiders.set(TAG, bytes(8))
    try:
        agreements.set(_key(cgroup), entry.pack())
    finally:
        outsiders.set(TAG, new_tag())


def new_tag() -> bytes:
    """One that no agreement had before."""
    return (secrets.randbits(64) | 1).to_bytes(8, "little")


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        if error.errno not in (errno.E2BIG, errno.ENOSPC):
            raise
        raise HostError(
            f"{AGREEMENTS_MAX} cgroups are in agreements",
            "detach some; attach those that do not come back with --once",
        ) from error


def pool_numbers(pools: tuple[Map, ...]) -> dict[str, int]:
    """Name -> number, of the tables of both families."""
    found = dict[str, int]()
    for family, table in zip(FAMILIES, pools, strict=True):
        for key in table.every_key():
            value = table.get(key)
            if value is not None:
                found[bytes_name(family.pool.unpack(value).name)] = int.from_bytes(key, "little")
    return found


def _key(cgroup: int) -> bytes:
    return cgroup.to_bytes(8, "little")


def _place(parent: int, name: str) -> bytes:
    return abi.CgroupName(parent, os.fsencode(name)).pack()


def _pinned(pin: Path) -> Map:
    if not pin.exists():
        raise HostError(f"there is no {pin}: no data path that serves sockets", "start the agent")
    fd = check(load_library().bpf_obj_get(os.fsencode(pin)), f"opening {pin}")
    try:
        return map_of_fd(fd, pin.name)
    except BaseException:
        os.close(fd)
        raise
