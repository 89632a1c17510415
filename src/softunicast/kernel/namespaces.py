"""Network namespaces by name: make, enter, remove. Names are files in /run/netns, as `ip netns` keeps them.

The namespace of a Linux task belongs to one thread. `run_in` therefore does its work in a thread of its own
that ends with it, and no caller ever finds itself in another namespace than before; `enter` is the one
exception, for a process that is about to exec. Sockets, /proc/sys/net, interface indices and children
started from that thread are the namespace's. Mounts stay the host's: unlike `ip netns exec`, nothing here
replaces /sys.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from softunicast.core.errors import HostError, KernelError
from softunicast.kernel import interruptions

NETNS_DIR = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MNT_DETACH = 0x2
_UMOUNT_NOFOLLOW = 0x8

_P = ParamSpec("_P")
_T = TypeVar("_T")

_libc = ctypes.CDLL(None, use_errno=True)


def path(name: str) -> Path:
    """The file that names a namespace. It need not exist."""
    return NETNS_DIR / name


def inode(name: str) -> int | None:
    """What identifies the namespace while it lives, as /proc/PID/ns/net shows it. None when there is none.

    None also for a file that is no namespace: what a creation that was killed half way leaves.
    """
    try:
        found = path(name).stat()
    except FileNotFoundError:
        return None
    return found.st_ino if found.st_dev == Path("/proc/self/ns/net").stat().st_dev else None


def create(name: str) -> None:
    """Make an empty namespace, loopback down. KernelError: the name is taken; HostError: no privilege."""
    NETNS_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        os.close(os.open(path(name), os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    except OSError as error:
        raise _failed(f"make network namespace {name}", error) from error
    try:
        _in_thread(lambda: _make_and_name(name))
    except BaseException:
        delete(name)
        raise


def delete(name: str) -> None:
    """Remove the name; the namespace ends with the last process in it. Nothing happens when there is none."""
    unmount(path(name))
    path(name).unlink(missing_ok=True)


def run_in(name: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call `function` inside the namespace and hand back what it returns or raises.

    An interruption (Ctrl-C) is raised only once the function is done, so that a caller who cleans up after it
    never races it: functions must end by themselves within seconds.
    """

    def inside() -> _T:
        enter(name)
        return function(*args, **kwargs)

    return _in_thread(inside)


def run_in_new(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call `function` inside a namespace of its own, without a name, that ends with it. For trying things."""

    def inside() -> _T:
        try:
            _call(_libc.unshare, _CLONE_NEWNET)
        except OSError as error:
            raise _failed("make a network namespace", error) from error
        return function(*args, **kwargs)

    return _in_thread(inside)


def enter(name: str) -> None:
    """Move the calling thread into the namespace for good: for a single-threaded process before exec."""
    try:
        descriptor = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(f"enter network namespace {name}", error) from error
    try:
        _call(_libc.setns, descriptor, _CLONE_NEWNET)
    except OSError as error:
        raise _failed(f"enter network namespace {name}", error) from error
    finally:
        os.close(descriptor)


def unmount(target: Path) -> None:
    """Detach everything mounted exactly at `target`. Nothing happens when nothing is."""
    while True:
        try:
            _call(_libc.umount2, os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # not a mount point, not there
                return
            raise _failed(f"unmount {target}", error) from error


def mounts_under(directory: Path) -> tuple[Path, ...]:
    """The mount points at and below a directory, in the order to unmount them."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # The fifth field; the kernel writes spaces, tabs, newlines and backslashes in it as \ooo.
        target = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4]))
        if target == directory or directory in target.parents:
            found.append(target)
    return tuple(reversed(found))


def mount(kind: str, source: str, target: Path, flags: int = 0) -> None:
    """mount(2) without options. KernelError or HostError when the kernel refuses."""
    try:
        _call(_libc.mount, source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), None)
    except OSError as error:
        raise _failed(f"mount {kind or source} on {target}", error) from error


def _make_and_name(name: str) -> None:
    try:
        _call(_libc.unshare, _CLONE_NEWNET)
    except OSError as error:
        raise _failed(f"make network namespace {name}", error) from error
    mount("", "/proc/thread-self/ns/net", path(name), _MS_BIND)


def _in_thread(function: Callable[[], _T]) -> _T:
    results: list[_T] = []
    failures: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            failures.append(error)

    # Interrupted, start() and join() both take a running thread for one that is not.
    with interruptions.deferred():
        thread = threading.Thread(target=call, name="netns", daemon=True)
        thread.start()
        thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _call(function: Callable[..., int], *args: object) -> None:
    if function(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _failed(doing: str, error: OSError) -> HostError | KernelError:
    why = f"cannot {doing}: {error.strerror}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return HostError(why, "run as root")
    if error.errno == errno.EEXIST:
        return KernelError(why, errno.EEXIST, "see `ip netns`; remove it with `ip netns delete NAME`")
    return KernelError(why, error.errno or 0)
