"""Cgroups as the folders they are: which one a process is in, making and leaving one, who is in it, by number or path.

A cgroup of cgroup2 is known to the kernel's programs by its number, which is the inode of its folder and is never
given to another one. Nothing here knows of pools, and nothing here writes to a cgroup that it did not make, except
for moving the calling process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError, InputError
from softunicast.kernel import cgroups

PREFIX: Final = "softunicast-run-"  # of the cgroups that we make: nobody else's are ever removed
MAKE_TRIES: Final = 8  # each lost to somebody who tidied up in the moment before we moved in
_CGROUP1_MAGIC, _CGROUP2_MAGIC = 0x27E0EB, 0x63677270
_HANDLE_KERNFS: Final = 0xFE  # a file handle that is nothing but the number of a kernfs node
_OTHER_CGROUP: Final = "start it from another cgroup, such as the one of a login or a systemd unit"

_libc = ctypes.CDLL(None, use_errno=True)


def path_of(root: Path, wanted: int) -> Path | None:
    """The cgroup with this number, or None when it has been removed. `root`: any cgroup of the same mount."""
    handle = ctypes.create_string_buffer(struct.pack("<IiQ", 8, _HANDLE_KERNFS, wanted))
    mount = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = _libc.open_by_handle_at(mount, handle, os.O_RDONLY | os.O_CLOEXEC)
        code = ctypes.get_errno()
    finally:
        os.close(mount)
    if found < 0:
        return _searched(root, wanted) if code == errno.EPERM else None
    try:
        return Path(f"/proc/self/fd/{found}").readlink()
    finally:
        os.close(found)


def _searched(root: Path, wanted: int) -> Path | None:
    """The slow way, for an agent without CAP_DAC_READ_SEARCH."""
    for folder, _, _ in os.walk(root):
        with suppress(OSError):  # gone since
            if Path(folder).stat().st_ino == wanted:
                return Path(folder)
    return None


def find(text: str, root: Path) -> Path:
    """The cgroup that a person names: a folder of cgroup2, or a path as in /proc/PID/cgroup (`/system.slice/x`).

    InputError unless it is one that lies below `root`.
    """
    below = root / text.lstrip("/")
    path = Path(text)
    if not path.is_dir() and below.is_dir():
        path = below
    try:
        path = path.resolve(strict=True)
        kind = _filesystem(path)
    except OSError as error:
        raise InputError(
            f"there is no cgroup {text}: {error.strerror}", f"name a folder below {root}, see systemd-cgls"
        ) from error
    if kind == _CGROUP1_MAGIC:
        raise InputError(f"{text} is a cgroup of version 1", f"name its counterpart below {root}")
    if kind != _CGROUP2_MAGIC or not path.is_dir():
        raise InputError(f"{text} is no cgroup", f"name a folder below {root}, see systemd-cgls")
    if path == root:
        raise InputError(f"{text} is the root of all cgroups", "name the cgroup of a unit or a container")
    if root not in path.parents:
        raise InputError(f"{text} does not lie below {root}, where the hooks are", f"name one below {root}")
    return path


def find_place(text: str, root: Path) -> Path:
    """As `find`; also where there is no cgroup now, in one that is there."""
    below = root / text.lstrip("/")
    if not Path(text).exists() and not below.exists():
        for place in (below, Path(text)):
            parent = place.parent.resolve()
            if parent.is_dir() and root in (parent, *parent.parents):
                return parent / place.name
    return find(text, root)


def own(root: Path) -> Path:
    """The cgroup of the calling process where it is at or below `root`, else `root`."""
    line = next(
        (line for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"), ""
    )
    path = (cgroups.find_root() or root) / line[3:].lstrip("/")
    # A process outside its own cgroup namespace reads "/../...".
    is_below = ".." not in path.parts and root in (path, *path.parents)
    return path if is_below and path.is_dir() else root


def make(parent: Path) -> Path:
    """A new cgroup below `parent`, empty. Raises HostError."""
    while True:
        path = parent / f"{PREFIX}{os.getpid()}-{secrets.token_hex(3)}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
        except OSError as error:
            fix = "run as root" if error.errno in (errno.EPERM, errno.EACCES) else _OTHER_CGROUP
            raise HostError(f"cannot make a cgroup below {parent}: {error.strerror}", fix) from error


def enter(path: Path) -> bool:
    """Moves the calling process. False when the cgroup is gone; HostError when the kernel refuses."""
    try:
        (path / "cgroup.procs").write_text("0")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        fix = "run as root" if error.errno in (errno.EPERM, errno.EACCES) else _OTHER_CGROUP
        raise HostError(f"cannot enter the cgroup {path}: {error.strerror}", fix) from error
    return True


def remove(path: Path) -> bool:
    """Removes an empty cgroup that we made; False when a process is in it, or in one below it."""
    assert path.name.startswith(PREFIX)
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove_empty(root: Path) -> None:
    """All at or below `root` that we made and no process is in, also those that nobody remembers."""
    for folder, _, _ in os.walk(root, topdown=False):
        if Path(folder).name.startswith(PREFIX):
            remove(Path(folder))


def processes(path: Path) -> list[int]:
    """Those in the cgroup and below it, as of now; none when it is gone."""
    found = set()
    for folder, _, _ in os.walk(path):
        with suppress(OSError):  # gone since, or a threaded cgroup: its processes are listed further up
            found |= {int(line) for line in Path(folder, "cgroup.procs").read_text().split()}
    return sorted(found)


def name_of(pid: int) -> str:
    """The name of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    except OSError:
        return ""


def in_other_network(pids: list[int]) -> int | None:
    """The first of these processes that is in another network namespace than the calling thread."""
    here = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116
    for pid in pids:
        with suppress(OSError):  # ended
            if os.stat(f"/proc/{pid}/ns/net").st_ino != here:  # noqa: PTH116
                return pid
    return None


def _filesystem(path: Path) -> int:
    found = ctypes.create_string_buffer(256)  # struct statfs: 120 bytes, the kind comes first
    if _libc.statfs(os.fsencode(path), found) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int.from_bytes(found.raw[:8], "little")
