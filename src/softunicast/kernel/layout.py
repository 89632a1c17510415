"""Do the maps that are pinned fit the programs that are to use them? Asked of all of them before anything is loaded.

A version of softunicast that lays a table out differently cannot read what another one wrote, so it refuses to start
and says what to do; what runs goes on untouched. Only maps that hold nothing a conversation depends on, the counters
and the scratch space, are made anew instead.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from softunicast.core.errors import KernelError
from softunicast.kernel import abi
from softunicast.kernel.libbpf import check, ffi, load_library
from softunicast.kernel.objects import map_of_fd, open_object
from softunicast.kernel.words import index_key

RENEWED: Final = frozenset(
    {"drops", "traffic", "scratch", "cuttings", "told", "exhausted", "hops", "paths"}
    | {"scratch6", "told6", "exhausted6"}
    | {"desks", "desks6"}
)
OTHER_VERSION: Final = (
    'start the version of softunicast that made it once more, stop that with on_stop = "restore", '
    "then start this one"
)


@dataclass(frozen=True, slots=True)
class Layout:
    """What must be the same of a map for two programs to share it."""

    kind: int
    key_bytes: int
    value_bytes: int
    flags: int
    entries: int


def check_pinned(names: Iterable[str], pins: Path, sizes: Mapping[str, int]) -> None:
    """Raises KernelError when a map pinned in `pins` cannot be used by one of the objects, and then has changed
    nothing. Unpins those that are to be made anew: attached programs keep theirs until they are replaced.

    `sizes`: entries by map, as configured.
    """
    outdated = set()
    for name in names:
        for table, wanted in _wanted(name, sizes):
            pin = pins / table
            found = _found(pin)
            if found is None or found == wanted:
                continue
            if table not in RENEWED:
                raise _refusal(table, found, wanted, table in sizes)
            outdated.add(pin)
    for pin in outdated:
        pin.unlink()


def _refusal(table: str, found: Layout, wanted: Layout, is_sized: bool) -> KernelError:
    if is_sized and found.entries != wanted.entries:
        return KernelError(
            f"map {table} is pinned with {found.entries} entries, the configuration asks for {wanted.entries}",
            errno.EINVAL,
            "keep the old size in [limits], or stop the agent cleanly (this removes the pins) and start again",
        )
    return KernelError(
        f"the map {table} of the running data path is laid out as by another version of softunicast "
        f"({found.key_bytes} + {found.value_bytes} bytes, here {wanted.key_bytes} + {wanted.value_bytes})",
        errno.EINVAL,
        OTHER_VERSION,
    )


def _wanted(name: str, sizes: Mapping[str, int]) -> Iterator[tuple[str, Layout]]:
    """The maps that an object declares."""
    handle = open_object(name)
    library = load_library()
    try:
        table = library.bpf_object__next_map(handle, ffi.NULL)
        while table != ffi.NULL:
            title = ffi.string(library.bpf_map__name(table)).decode()
            if not title.startswith("."):
                yield (
                    title,
                    Layout(
                        library.bpf_map__type(table),
                        library.bpf_map__key_size(table),
                        library.bpf_map__value_size(table),
                        library.bpf_map__map_flags(table),
                        sizes.get(title, library.bpf_map__max_entries(table)),
                    ),
                )
            table = library.bpf_object__next_map(handle, table)
    finally:
        library.bpf_object__close(handle)


def _found(pin: Path) -> Layout | None:
    """None when nothing is pinned there."""
    if not pin.exists():
        return None
    fd = check(load_library().bpf_obj_get(str(pin).encode()), f"opening {pin}")
    info, size = ffi.new("uint32_t[]", 64), ffi.new("uint32_t *", 256)
    try:
        check(load_library().bpf_obj_get_info_by_fd(fd, info, size), f"describing map {pin.name}")
    finally:
        os.close(fd)
    kind, _, key_bytes, value_bytes, entries, flags = info[0:6]  # struct bpf_map_info
    return Layout(kind, key_bytes, value_bytes, flags, entries)


def refuse_other_version(pin: Path) -> None:
    """Maps of another layout must not be read as if they were ours."""
    if not pin.exists():
        return
    fd = check(load_library().bpf_obj_get(str(pin).encode()), f"opening {pin}")
    try:
        value = map_of_fd(fd, "settings").get(index_key(0))
    finally:
        os.close(fd)
    found = int.from_bytes((value or b"")[:4], "little")
    if found not in (0, abi.AbiLimit.ABI_VERSION):
        raise KernelError(
            f"the running data path has layout {found}, this version of softunicast layout "
            f"{abi.AbiLimit.ABI_VERSION}",
            errno.EINVAL,
            OTHER_VERSION,
        )
