"""The resolvers that stand in for those on loopback, by number of the pool: the maps `resolvers` of both families
(bpf/dns.h). A pool that has any is in both, so that a lookup for which it has none is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Final

from softunicast.core.slices import IPAddress
from softunicast.kernel import abi
from softunicast.kernel.families import FAMILIES
from softunicast.kernel.maps import Map
from softunicast.kernel.words import index_key

_OWES_BYTES: Final = 8 * abi.AbiLimit.RESOLVERS_MAX


def set_dns(maps: Mapping[str, Map], pool: int, addresses: Sequence[IPAddress]) -> None:
    """The pool has these, those of IPv4 first, at most abi.AbiLimit.RESOLVERS_MAX of a family; none: lookups are left
    alone. What the kernel knows of their answers stays where they stay the same."""
    if read_dns(maps, pool) == tuple(addresses):
        return
    for family in FAMILIES:
        table = maps[family.named("resolvers")]
        if addresses:
            own = [one.packed for one in addresses if one.version == family.version]
            table.set(index_key(pool), family.pool_dns(len(own), 0, bytes(_OWES_BYTES), b"".join(own)).pack())
        else:
            table.delete(index_key(pool))


def read_dns(maps: Mapping[str, Map], pool: int) -> tuple[IPAddress, ...]:
    """Those of IPv4 first."""
    found = list[IPAddress]()
    for family in FAMILIES:
        value = maps[family.named("resolvers")].get(index_key(pool))
        if value is None:
            continue
        entry = family.pool_dns.unpack(value)
        step = len(entry.addresses) // abi.AbiLimit.RESOLVERS_MAX
        found += [ip_address(entry.addresses[at * step :][:step]) for at in range(entry.resolver_count)]
    return tuple(found)
