"""cgroup2: where it is mounted, and the numbers that the kernel knows its cgroups by."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError

MOUNTS: Final = Path("/proc/mounts")


def find_root(mounts: Path = MOUNTS) -> Path | None:
    """Where cgroup2 is mounted; None when nowhere."""
    for line in mounts.read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            # The kernel writes spaces, tabs, newlines and backslashes as \\ooo.
            return Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), where))
    return None


def number(cgroup: Path) -> int:
    """What the kernel calls the cgroup in this folder: its inode. HostError when there is none."""
    if not (cgroup / "cgroup.subtree_control").exists():
        raise HostError(f"{cgroup} is no cgroup of cgroup2", "name a folder below the mount of cgroup2")
    return cgroup.stat().st_ino


def path_below(root: Path, cgroup: str) -> Path:
    """The folder of a cgroup that is named as systemd and /proc/PID/cgroup do, from the root: "/system.slice/x"."""
    return root / cgroup.strip("/")
