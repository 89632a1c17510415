"""Cgroups for tests, and agreements of a `World` about them. A socket belongs to the cgroup that its program was in
when it made the socket; what is run with BPF_PROG_TEST_RUN belongs to a socket of this process.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bpf.world import World

from softunicast.kernel import abi

_numbers = itertools.count()


def root() -> Path:
    """Where cgroup2 is mounted."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return Path(next(where for _, where, kind, *_ in mounts if kind == "cgroup2"))


def here() -> Path:
    """The cgroup of this process."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    return root() / next(line[4:] for line in lines if line.startswith("0::/"))


def number(cgroup: Path) -> bytes:
    """The key of the map `agreements`."""
    return cgroup.stat().st_ino.to_bytes(8, "little")


@contextmanager
def cgroup(below: Path | None = None) -> Iterator[Path]:
    """A new one; everything made in it is gone by the end."""
    made = (below or root()) / f"sutest-{os.getpid()}-{next(_numbers)}"
    made.mkdir()
    try:
        yield made
    finally:
        made.rmdir()


@contextmanager
def inside(place: Path) -> Iterator[None]:
    """This process is in the cgroup meanwhile, so the sockets that it makes are, too, for good."""
    before = here()
    (place / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def agreed(
    world: World, place: Path, pool: str = "gb", kind: abi.AgreementKind = abi.AgreementKind.POOL
) -> Iterator[None]:
    """What is in the cgroup leaves from the pool."""
    table = world.datapath.map("agreements")
    table.set(number(place), abi.Agreement(kind, world.datapath._tables.pool_numbers()[pool]).pack())
    try:
        yield
    finally:
        table.delete(number(place))
