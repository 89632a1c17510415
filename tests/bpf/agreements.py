"""Agreements of a `World` about cgroups that a test has, whichever process is in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bpf.programs import cgroup, inside
from tests.bpf.world import World

from softunicast.kernel import cgroups
from softunicast.kernel.agreements import Agreements


@contextmanager
def agreed(world: World, place: Path, pool: str | None = "gb") -> Iterator[None]:
    """What is in the cgroup leaves from the pool; None: as it likes."""
    with Agreements.open(world.datapath.folder) as agreements:
        if pool is None:
            agreements.excuse(cgroups.number(place))
        else:
            agreements.set(cgroups.number(place), pool)
        try:
            yield
        finally:
            agreements.remove(cgroups.number(place))


@contextmanager
def in_agreement(world: World, pool: str | None = "gb") -> Iterator[Path]:
    """This process is in a cgroup of its own, with an agreement. Never the cgroup it was in before: that may be the
    one of all others of this machine."""
    with cgroup() as place, agreed(world, place, pool), inside(place):
        yield place
