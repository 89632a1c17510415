"""Agreements of a `World` about cgroups that a test has, whichever process is in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bpf.programs import cgroup_root
from tests.bpf.world import World

from softunicast.kernel import cgroups
from softunicast.kernel.agreements import Agreements


def here() -> Path:
    """The cgroup of this process."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return cgroup_root() / next(line[4:] for line in lines if line.startswith("0::/"))


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
