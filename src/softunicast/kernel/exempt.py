"""The kernel's tables of destinations that on-ramps do not translate, and how they are brought to what is wanted.

One prefix tree of each family for all on-ramps: the number of the interface is the beginning of each key.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from softunicast.core.slices import Slice
from softunicast.kernel.families import FAMILIES
from softunicast.kernel.maps import Map
from softunicast.kernel.words import address_word

INDEX_BITS: Final = 32


def set_exempt(maps: Mapping[str, Map], onramp: int, prefixes: Collection[Slice]) -> None:
    """Exactly `prefixes` are exempt on the interface with the number `onramp`; those of others stay as they are."""
    for family in FAMILIES:
        table = maps[family.named("exempt")]
        wanted = {
            family.exempt_key(INDEX_BITS + prefix.length, onramp, address_word(prefix.address)).pack()
            for prefix in prefixes
            if prefix.version == family.version
        }
        there = {key for key in table.every_key() if family.exempt_key.unpack(key).onramp == onramp}
        for key in wanted - there:
            table.set(key, bytes(table.value_bytes))
        for key in there - wanted:
            table.delete(key)
