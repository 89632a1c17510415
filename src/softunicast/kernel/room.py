"""Does a state fit into the tables beside the one that is there? Asked before anything is written.

Additions come before removals, so for a moment both are in the tables. Pure: sizes and states in, an error or
places out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from softunicast.core.desired import KernelState
from softunicast.core.errors import InputError, KernelError
from softunicast.kernel import abi
from softunicast.kernel.words import name_bytes

SLICES_MAX: Final = int(abi.AbiLimit.POOL_SLICES_MAX)

_K = TypeVar("_K")


def check_room(sizes: Mapping[str, int], actual: KernelState, wanted: KernelState) -> None:
    """Entries and names, of either family. `sizes`: entries by table. Raises KernelError (no room) or InputError."""
    counts = {
        "blocks": max(Counter(block.version for block in actual.blocks | wanted.blocks).values(), default=0),
        "addresses": max(
            Counter(address.version for address in {*actual.addresses, *wanted.addresses}).values(), default=0
        ),
        "servers": len({*actual.servers, *wanted.servers}) + 1,  # 0 stands for nobody
        "pools": len({*actual.pools, *wanted.pools}),
        "onramps": len({*actual.onramps, *wanted.onramps}),
    }
    for table, count in counts.items():
        if count > sizes[table]:
            fix = "raise limits.addresses_max" if table == "addresses" else None
            raise KernelError(f"no room for {count} {table} in the table of {sizes[table]}", fix=fix)
    for name in {*wanted.servers, *wanted.pools}:
        name_bytes(name)
    for name, pool in wanted.pools.items():
        count = max(Counter(slice_.version for slice_ in pool.slices).values(), default=0)
        if count > SLICES_MAX:
            raise InputError(
                f"pool {name} has {count} slices, a server can use {SLICES_MAX}",
                "lower slices_max",
            )


def place_regions(taken: Iterable[tuple[int, int]], slots: Mapping[_K, int], limit: int) -> dict[_K, int]:
    """A place for each of the regions of `slots` entries in a table of `limit`, beside the `taken` ones.

    Regions are (first, entries); each is put, aligned to its size, into the first gap that holds it. Raises
    KernelError when one finds none.
    """
    used, found = sorted(taken), dict[_K, int]()
    searched = dict[int, int]()  # by size: below there is no gap for one more of it
    for key, wanted in slots.items():
        at = searched.get(wanted, 0)
        index = bisect_left(used, (at, 0))
        while index < len(used) and at + wanted > used[index][0]:
            first, length = used[index]
            at = max(at, -(-(first + length) // wanted) * wanted)
            index += 1
        if at + wanted > limit:
            raise KernelError(
                f"no room for {wanted} more slices in the table of {limit}", fix="raise limits.slots_max"
            )
        found[key] = at
        used.insert(index, (at, wanted))
        searched[wanted] = at + wanted
    return found
