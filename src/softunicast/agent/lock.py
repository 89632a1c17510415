"""One agent per state directory: an exclusive flock(2) on a file in it, which also holds the agent's pid.

The kernel drops the lock with the process, so a crashed agent never keeps the next one out. Whoever ends in
order removes the file; a newcomer that locked it just before then notices that it is no longer there, and starts
over with the new one.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError

LOCK_FILE: Final = "agent.lock"


class StateLock:
    """The lock, held from `take` until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, state_dir: Path) -> StateLock:
        """Makes the directory when needed. Raises HostError, naming the pid, when another agent has it."""
        path = state_dir / LOCK_FILE
        try:
            state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
                if _lock(descriptor, path):
                    break
                os.close(descriptor)
        except OSError as error:
            raise HostError(
                f"cannot lock {path}: {error.strerror}",
                "give [agent] state_dir a directory that root can write",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return cls(path, descriptor)

    def release(self) -> None:
        """Removes the file and lets go of it, in this order."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def _lock(descriptor: int, path: Path) -> bool:
    """False when the file was removed while we locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise HostError(
            f"another agent (pid {pid}) runs with the state directory {path.parent}",
            "stop it first, or give this one its own [agent] state_dir",
        ) from None
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
