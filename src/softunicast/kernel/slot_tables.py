"""Who owns (address, port): the maps `groups`, `addresses`, `owners` and `slots`, written as bpf/slots.h reads them.

Where an IPv4 address is in the first two says address_places.py; IPv6 has `addresses6`, a hash. Both lead to a run
of slots, each with the number of its owner in `owners`, deadline and epoch in `slots`. This module knows which places
are taken; what belongs there is the caller's matter. No packet may find an owner before the deadline that goes with
it, nor a table before its owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import chain
from typing import Final

from softunicast.core.desired import AddressTable, SlotOwner
from softunicast.core.plan import diff
from softunicast.core.slices import IPAddress
from softunicast.kernel import abi
from softunicast.kernel.address_places import LINE_WORDS, MARK, TOGETHER, Group, Places, address_in, group_of
from softunicast.kernel.maps import Map
from softunicast.kernel.room import place_regions
from softunicast.kernel.words import index_key

PORTS: Final = 65536
NOBODY: Final = SlotOwner("", 0, 0)
_SHIFT_BITS: Final = 5


def where_word(base: int, slice_ports: int) -> int:
    """The word of an address whose slots begin at `base`."""
    return base << _SHIFT_BITS | slice_ports.bit_length() - 1


@dataclass(frozen=True)
class Plan:
    """Where new tables go: their first slots, and the places of all addresses."""

    bases: Mapping[IPAddress, int]
    places: Places


class SlotTables:
    """See the module. `regions`: the first slot of each address and how many it has."""

    def __init__(self) -> None:
        self.regions: dict[IPAddress, tuple[int, int]] = {}
        self._places = Places(1, 0)
        self._known: set[int] = set()  # groups that are written

    def read(
        self, maps: Mapping[str, Map], names: Mapping[int, str]
    ) -> Iterator[tuple[IPAddress, AddressTable]]:
        """Every table, read anew. `names`: of servers by their numbers."""
        self.regions, self._places = {}, _read_places(maps)
        lines = {group.line: number for number, group in self._places.groups.items()}
        with maps["owners"].words("H") as owners, maps["slots"].words("Q") as slots:
            there: Iterator[tuple[IPAddress, int]] = chain(
                _read_addresses(maps, lines), _read_addresses6(maps)
            )
            for address, where in there:
                base, ports = where >> _SHIFT_BITS, 1 << (where & (1 << _SHIFT_BITS) - 1)
                self.regions[address] = (base, PORTS // ports)
                found = {
                    at - base: SlotOwner(
                        names.get(owners[at], "?"), slots[at * 2 + 1] & 0xFFFFFFFF, slots[at * 2]
                    )
                    for at in range(base, base + PORTS // ports)
                    if owners[at]
                }
                if isinstance(address, IPv4Address):
                    self._places.members[group_of(address)] += 1
                yield address, AddressTable(ports, found)

    def plan(
        self,
        maps: Mapping[str, Map],
        wanted: Mapping[IPAddress, AddressTable],
        actual: Mapping[IPAddress, AddressTable],
    ) -> Plan:
        """Places for new and resized tables beside those in use, which stay so until the end. KernelError: no room."""
        slots = {
            address: PORTS // table.slice_ports
            for address, table in wanted.items()
            if address not in actual or actual[address].slice_ports != table.slice_ports
        }
        bases = place_regions(self.regions.values(), slots, maps["slots"].max_entries)
        new = (one for one in slots if isinstance(one, IPv4Address) and one not in self.regions)
        return Plan(bases, self._places.with_more(new))

    def begin(self, maps: Mapping[str, Map], plan: Plan) -> None:
        """Before the first `write` of a plan."""
        marks = plan.places.marks - self._places.marks
        if marks:
            maps["groups"].set_words("Q", ((mark, 1) for mark in marks))
        self._known, self._places = set(self._places.groups), plan.places

    def write(
        self,
        maps: Mapping[str, Map],
        address: IPAddress,
        table: AddressTable,
        actual: AddressTable | None,
        plan: Plan,
        servers: Mapping[str, int],
    ) -> int:
        """Writes the slots that differ. A new table, or one of another size, is built aside, then switched to."""
        base = plan.bases.get(address)
        if base is None:
            assert actual is not None
            changes = diff(table.owners, actual.owners)
            changed = {**changes.add, **changes.change}
            _set_slots(maps, self.regions[address][0], changed, servers)
            return len(changed)
        slots = PORTS // table.slice_ports
        _set_slots(maps, base, {index: table.owners.get(index, NOBODY) for index in range(slots)}, servers)
        where = where_word(base, table.slice_ports)
        if isinstance(address, IPv6Address):
            maps["addresses6"].set(address.packed, index_key(where))
        else:
            self._enter(maps, address, where)
        self.regions[address] = (base, slots)
        return slots

    def _enter(self, maps: Mapping[str, Map], address: IPv4Address, where: int) -> None:
        maps["addresses"].set_words("I", [(self._places.word(address), where)])
        number = group_of(address)
        if number not in self._known:
            group = self._places.groups[number]
            maps["groups"].set_words("Q", [(group.word, group.entry(number))])
            self._known.add(number)

    def _leave(self, maps: Mapping[str, Map], address: IPv4Address) -> None:
        maps["addresses"].set_words("I", [(self._places.word(address), 0)])
        group = self._places.leave(address)
        if group:
            maps["groups"].set_words("Q", [(group.word, 0)])

    def clear(
        self, maps: Mapping[str, Map], address: IPAddress, table: AddressTable, wanted: AddressTable | None
    ) -> int:
        """Empties the slots that are not wanted any more; without `wanted`, the table goes with them."""
        if wanted is None:
            if isinstance(address, IPv6Address):
                maps["addresses6"].delete(address.packed)
            else:
                self._leave(maps, address)
            base = self.regions.pop(address)[0]
            gone: Iterable[int] = range(PORTS // table.slice_ports)
        elif wanted.slice_ports == table.slice_ports:
            base = self.regions[address][0]
            gone = diff(wanted.owners, table.owners).remove
        else:
            return 0  # its old region is simply free again
        nobody = dict.fromkeys(gone, NOBODY)
        _set_slots(maps, base, nobody, {})
        return len(nobody)


def _read_addresses6(maps: Mapping[str, Map]) -> Iterator[tuple[IPv6Address, int]]:
    for key, where in maps["addresses6"].items():
        yield IPv6Address(key), int.from_bytes(where, "little")


def _read_places(maps: Mapping[str, Map]) -> Places:
    """Without members yet."""
    places = Places(maps["groups"].max_entries, maps["addresses"].max_entries)
    with maps["groups"].words("Q") as words:
        for at, word in enumerate(words):
            if at % LINE_WORDS == MARK:
                places.marks |= {at} if word else set()
            elif word:
                places.groups[word & 0xFFFFFFFF] = Group(at, word >> 32)
                places.members[word & 0xFFFFFFFF] = 0
    return places


def _read_addresses(maps: Mapping[str, Map], numbers: Mapping[int, int]) -> Iterator[tuple[IPv4Address, int]]:
    """Every address with its word. `numbers`: of the groups, by their lines. A line that has none is emptied: whoever
    wrote it did not come to write its group."""
    with maps["addresses"].words("I") as words:
        for at, where in enumerate(words):
            if where and at // TOGETHER in numbers:
                yield address_in(numbers[at // TOGETHER], at % TOGETHER), where
            elif where:
                words[at] = 0


def _set_slots(
    maps: Mapping[str, Map], base: int, owners: Mapping[int, SlotOwner], servers: Mapping[str, int]
) -> None:
    """Deadlines come before the owners that they are for, and go after them."""
    entries = {
        index_key(base + at): abi.Slot(owner.deadline_ns, owner.epoch).pack() for at, owner in owners.items()
    }
    ours = {index_key(base + at) for at, owner in owners.items() if owner.deadline_ns}
    if ours:
        maps["slots"].set_many((key, entries[key]) for key in entries if key in ours)
    maps["owners"].set_words("H", ((base + at, servers.get(owner.server, 0)) for at, owner in owners.items()))
    if len(ours) < len(entries):
        maps["slots"].set_many((key, entries[key]) for key in entries if key not in ours)
