"""The pins of a data path: links to what it is attached to, and maps. links/PROGRAM@INTERFACE, or links/PROGRAM for
what is attached to a cgroup; maps/NAME; programs/NAME, of those that others attach (strays.py)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from softunicast.kernel.libbpf import check, load_library
from softunicast.kernel.objects import Link


def link_of(pin: Path) -> Link:
    """The link that is pinned there."""
    fd = load_library().bpf_obj_get(str(pin).encode())
    return Link(check(fd, f"opening {pin}"), pin)


def drop_links_of_others(folder: Path, uplink: str, on_onramps: Collection[str]) -> None:
    """Detaches what is attached to an uplink that is not configured any more."""
    for pin in list((folder / "links").iterdir()):
        program, at, interface = pin.name.partition("@")
        if at and program not in on_onramps and interface != uplink:
            link_of(pin).remove()


def remove_pins(folder: Path) -> None:
    """Everything of the data path, and the folders."""
    for name in ("links", "programs", "maps"):
        for pin in (folder / name).glob("*"):
            pin.unlink()
        with suppress(FileNotFoundError):
            (folder / name).rmdir()


def in_order(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Links by how their names begin, in this order; what is not in it goes first."""

    def rank(name: str) -> int:
        return next((rank for rank, start in enumerate(order) if name.startswith(start)), 0)

    return sorted(names, key=rank)
