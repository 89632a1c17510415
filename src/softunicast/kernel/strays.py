"""The program that refuses what an agreement would send by another interface than the uplink (bpf/stray.bpf.c). It
is attached to the cgroups of agreements and to no other, because the kernel asks it for every packet: at the root,
all programs of the host would pay.

It is pinned, so that `softunicast run` and `attach` can attach it while no agent runs. Each attachment is a
pinned link that ends with its cgroup; whoever makes or ends an agreement calls this, and an agent that starts makes it
all true.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError, KernelError
from softunicast.kernel import cgroups
from softunicast.kernel.libbpf import check, load_library
from softunicast.kernel.objects import BpfObject, Link
from softunicast.kernel.pins import link_of

OBJECT: Final = "stray"
PROGRAM: Final = "socket_packet"  # hands on to that of IPv6: handed.py
_EGRESS: Final = 1  # BPF_CGROUP_INET_EGRESS


def pin_program(folder: Path, objects: Mapping[str, BpfObject]) -> None:
    """That of this version, in the place of any other's, in one step."""
    (folder / "programs").mkdir(mode=0o700, exist_ok=True)
    pin = folder / "programs" / PROGRAM
    fresh = pin.with_name(f"{PROGRAM}-new")
    fresh.unlink(missing_ok=True)
    descriptor = objects[OBJECT].programs[PROGRAM]
    check(load_library().bpf_obj_pin(descriptor, os.fsencode(fresh)), f"pinning {pin}")
    fresh.rename(pin)


def attach(folder: Path, cgroup: Path) -> None:
    """To the cgroup, or gives what is attached there the program that is pinned. Nothing where none is: the agent of
    another version will do it when it is replaced. Raises HostError when another program keeps ours out."""
    number = cgroups.number(cgroup)
    pin = folder / "programs" / PROGRAM
    if not pin.exists():
        return
    descriptor = check(load_library().bpf_obj_get(os.fsencode(pin)), f"opening {pin}")
    target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        Link.attach(descriptor, target, _EGRESS, _link(folder, number)).close()
    except KernelError as error:
        detach(folder, number)
        if error.errno != errno.EPERM:
            raise
        raise HostError(
            f"another BPF program at {cgroup} or above it lets none beside it look at what is sent",
            "find it with bpftool cgroup tree; it must be attached with the flag multi",
        ) from error
    finally:
        os.close(target)
        os.close(descriptor)


def detach(folder: Path, number: int) -> None:
    """From the cgroup of that number, which may be gone. At once: to remove the pin is to leave it to the kernel, which
    takes its time; until then, what is refused is refused, and counted, above as well as below."""
    try:
        link_of(_link(folder, number)).remove()
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise


def detach_all(folder: Path) -> None:
    """From every cgroup."""
    for number in _attached(folder):
        detach(folder, number)


def detach_others(
    folder: Path, watched: Callable[[], frozenset[int]], path_of: Callable[[int], Path | None]
) -> None:
    """From all cgroups but those that are `watched`. Somebody else may begin to watch one this moment: what has been
    detached wrongly is attached again. (They attach, say so in the table, and attach what is missing then.)"""
    gone = _attached(folder) - watched()
    for number in gone:
        detach(folder, number)
    for number in gone & watched():
        _attach_to(folder, number, path_of)


def attach_all(
    folder: Path, watched: Callable[[], frozenset[int]], path_of: Callable[[int], Path | None]
) -> None:
    """Makes the cgroups that are `watched` be what the programs are attached to."""
    detach_others(folder, watched, path_of)
    for number in watched():
        _attach_to(folder, number, path_of)


def is_attached(folder: Path, number: int) -> bool:
    return number in _attached(folder)


def _attach_to(folder: Path, number: int, path_of: Callable[[int], Path | None]) -> None:
    if (path := path_of(number)) is not None:
        attach(folder, path)


def _attached(folder: Path) -> set[int]:
    return {int(pin.name.rpartition("-")[2]) for pin in (folder / "links").glob(f"{PROGRAM}-*")}


def _link(folder: Path, number: int) -> Path:
    return folder / "links" / f"{PROGRAM}-{number}"
