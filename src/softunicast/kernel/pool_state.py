"""Can new connections leave from a pool now? Asked of the pinned tables, by whoever is not the agent.

Only the kernel's tables know: the agent may be down, and its leases over.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError
from softunicast.kernel import abi
from softunicast.kernel.families import FAMILIES
from softunicast.kernel.libbpf import ffi, load_library
from softunicast.kernel.maps import Map
from softunicast.kernel.objects import map_of_fd
from softunicast.kernel.words import bytes_name, index_key

START: Final = "start the agent: softunicast agent --config FILE"
AS_ROOT: Final = "run as root; the program can become a user again, with setpriv or the like"


def check_access(bpffs: Path) -> None:
    """HostError unless there is a data path for sockets, and this process may change it."""
    os.close(_open(bpffs, "agreements").fd)


def check_pool(bpffs: Path, pool: str) -> None:
    """HostError unless the pool has a slice that this server may use now."""
    maps: dict[str, Map] = {}
    try:
        for name in ("slots", *(family.named("pools") for family in FAMILIES)):
            maps[name] = _open(bpffs, name)
        slots = _slots(maps, pool)
        if slots is None:
            raise HostError(f"the data path does not know pool {pool}", START)
        if not slots:
            raise HostError(
                f"pool {pool} has no slice on this server: nothing could leave from it",
                "see softunicast pools and softunicast leases",
            )
        deadline_ns = max(_deadline_ns(maps["slots"], slot) for slot in slots)
        if (over_ns := time.monotonic_ns() - deadline_ns) > 0:
            raise HostError(f"the leases of pool {pool} are over since {over_ns / 1e9:.0f} s", START)
    finally:
        for table in maps.values():
            os.close(table.fd)


def _open(bpffs: Path, name: str) -> Map:
    fd = load_library().bpf_obj_get(os.fsencode(bpffs / "maps" / name))
    if fd >= 0:
        return map_of_fd(fd, name)
    if ffi.errno in (errno.EPERM, errno.EACCES):
        raise HostError("not allowed to use the data path", AS_ROOT)
    raise HostError(f"there is no data path for sockets in {bpffs}", START)


def _slots(maps: dict[str, Map], pool: str) -> list[int] | None:
    """The numbers of the pool's slots; None when there is no such pool."""
    found: list[int] | None = None
    for family in FAMILIES:
        table, step = maps[family.named("pools")], family.pool_slice_bytes
        for key in table.every_key():
            entry = family.pool.unpack(table.get(key) or bytes(table.value_bytes))
            if bytes_name(entry.name) == pool:
                parts = (entry.slices[at * step :][:step] for at in range(entry.slice_count))
                found = [*(found or []), *(family.pool_slice.unpack(part).slot for part in parts)]
    return found


def _deadline_ns(slots: Map, slot: int) -> int:
    value = slots.get(index_key(slot))
    return abi.Slot.unpack(value).deadline_ns if value else 0
