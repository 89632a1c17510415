"""The clocks of a host: which boot this is, how long it has lasted, and what the wall says.

Whether a lease is over is judged by boot id and CLOCK_BOOTTIME, which runs on while the machine is suspended
and which nobody can set; the wall clock only dates the history for people. All processes of a host see the
same values, so they agree on every expiry. Tests pass a clock of their own.
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

    def boottime_s(self) -> float:
        """Seconds since that boot; never goes back."""

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

    def boottime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_s(self) -> float:
        return time.time()
