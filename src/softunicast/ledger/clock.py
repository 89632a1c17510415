"""The clocks of a host: which boot this is, how long it has lasted, and what the wall says.

Whether a lease is over is judged by boot id and CLOCK_MONOTONIC, which nobody can set. It is the clock of the
deadlines in the kernel too, and must be: it stands still while the machine is suspended, so a ledger that counted
on would give slices away that this machine's kernels still use. The wall clock only dates the history for people.
All processes of a host see the same values, so they agree on every expiry. Tests pass a clock of their own.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from softunicast.core.errors import HostError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    def boot_id(self) -> str:
        """A text that differs after every boot of the machine."""

    def uptime_s(self) -> float:
        """Seconds since that boot, without suspended time; never goes back."""

    def wall_s(self) -> float:
        """Unix time in seconds (UTC); may jump either way."""


class HostClock:
    """The clocks of this machine. Raises HostError where /proc cannot tell the boot id."""

    def __init__(self) -> None:
        try:
            self._boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
        except OSError as error:
            raise HostError(f"reading the boot id: {error}", "mount /proc") from error

    def boot_id(self) -> str:
        return self._boot_id

    def uptime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_MONOTONIC)

    def wall_s(self) -> float:
        return time.time()
