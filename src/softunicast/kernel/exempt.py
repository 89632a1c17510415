"""The kernel's table of destinations that on-ramps do not translate, and how it is brought to what is wanted.

One prefix tree for all on-ramps: the number of the interface is the first half of each key.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Final

from softunicast.core.slices import Slice
from softunicast.kernel import abi
from softunicast.kernel.maps import Map
from softunicast.kernel.words import address_word

INDEX_BITS: Final = 32


def set_exempt(table: Map, onramp: int, prefixes: Iterable[Slice]) -> None:
    """Exactly `prefixes` are exempt on the interface with the number `onramp`; those of others stay as they are."""
    wanted = {
        abi.ExemptKey(
            INDEX_BITS + prefix.length, onramp, address_word(IPv4Address(str(prefix.address)))
        ).pack()
        for prefix in prefixes
    }
    there = {key for key in table.every_key() if abi.ExemptKey.unpack(key).onramp == onramp}
    for key in wanted - there:
        table.set(key, bytes(table.value_bytes))
    for key in there - wanted:
        table.delete(key)
