"""The pinned tables of a running data path, for those who are not its agent: programs that enter an agreement.

Opens what is there and makes nothing. What is asked before a program starts is asked here, of the kernel's tables:
only they know what a pool can do now.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Final, Self

from softunicast.core.agreements import Board, PoolSign
from softunicast.core.errors import HostError
from softunicast.kernel import abi
from softunicast.kernel.agreement_table import AgreementTable
from softunicast.kernel.families import FAMILIES
from softunicast.kernel.libbpf import ffi, load_library
from softunicast.kernel.maps import Map
from softunicast.kernel.objects import map_of_fd
from softunicast.kernel.words import bytes_name, index_key

START: Final = "start the agent: softunicast agent --config FILE"
AS_ROOT: Final = (
    "run as root; the program can become a user again: softunicast run ... -- setpriv --reuid USER CMD"
)


class DataPathPins:
    """The pinned tables of a running data path, as one who is not its agent needs them. Close it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: dict[str, Map] = {}

    @classmethod
    def open(cls, board: Board) -> Self:
        """Raises HostError when there is none, or this process may not change it."""
        made = cls(Path(board.bpffs) / "maps")
        try:
            for name in ("agreements", "slots", *(family.named("pools") for family in FAMILIES)):
                made._maps[name] = made._open(name)
        except BaseException:
            made.close()
            raise
        return made

    def _open(self, name: str) -> Map:
        pin = self._folder / name
        fd = load_library().bpf_obj_get(str(pin).encode())
        if fd >= 0:
            return map_of_fd(fd, name)
        if ffi.errno in (errno.EPERM, errno.EACCES):
            raise HostError("not allowed to change the data path", AS_ROOT)
        raise HostError(f"there is no data path for sockets in {self._folder.parent}", START)

    def agreements(self, root: Path) -> AgreementTable:
        """The table of agreements; `root` is where the hooks are attached."""
        return AgreementTable(self._maps["agreements"], root)

    def check_pool(self, pool: PoolSign) -> None:
        """HostError unless the pool has a slice that this server may use now."""
        slots = []
        for family in FAMILIES:
            value = self._maps[family.named("pools")].get(index_key(pool.number))
            if value is None:
                continue
            entry = family.pool.unpack(value)
            if bytes_name(entry.name) != pool.name:
                raise HostError(f"the data path has no pool {pool.name} any more", START)
            step = family.pool_slice_bytes
            slots += [
                family.pool_slice.unpack(entry.slices[at * step :][:step]).slot
                for at in range(entry.slice_count)
            ]
        if not slots:
            raise HostError(
                f"pool {pool.name} has no slice on this server, so nothing can leave from it",
                "see softunicast pools and softunicast leases",
            )
        deadlines = [self._deadline_ns(slot) for slot in slots]
        if max(deadlines) <= time.monotonic_ns():
            over_s = (time.monotonic_ns() - max(deadlines)) / 1e9
            raise HostError(f"the leases of pool {pool.name} are over since {over_s:.0f} s", START)

    def _deadline_ns(self, slot: int) -> int:
        value = self._maps["slots"].get(index_key(slot))
        return abi.Slot.unpack(value).deadline_ns if value else 0

    def close(self) -> None:
        """Lets go of the descriptors."""
        for table in self._maps.values():
            os.close(table.fd)
        self._maps = {}
