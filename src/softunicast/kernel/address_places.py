"""Where an address is in the maps `groups` and `addresses`, as bpf/slots.h looks for it.

The first 28 bits of an address are its group. `groups` is a hash table in cache lines: a group is in the line that
its hash names or, where that was full when it came, in one of the next, and the line is marked. It leads to a line
of `addresses`, in which each of the 16 has a word. Pure: which words to write, not the writing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from softunicast.core.errors import KernelError
from softunicast.kernel import abi

LINE_WORDS: Final = abi.GROUP_LINE_BYTES // 8
MARK: Final = int(abi.AbiLimit.LINE_GROUPS)  # the word behind the groups of a line
TOGETHER: Final = int(abi.AbiLimit.LINE_ADDRESSES)
_TRIES: Final = int(abi.AbiLimit.GROUP_TRIES)
_GROUP_BIT: Final = int(abi.AbiLimit.GROUP_BIT)
_PLANNED: Final = 4  # groups in a line on average, when there are as many as may be
_WORD: Final = 0xFFFFFFFF


def group_lines(addresses_max: int) -> int:
    """How many lines the table of groups has: a power of two. Each address may be alone in its group."""
    return 1 << max(0, -(-addresses_max // _PLANNED) - 1).bit_length()


def hash_group(number: int) -> int:
    """As in bpf/slots.h."""
    word = (number >> 2) * 0x9E3779B1 & _WORD
    word ^= word >> 15
    word = word * 0x846CA68B & _WORD
    return word ^ word >> 16


def group_of(address: IPv4Address) -> int:
    """Its number in `groups`."""
    return int(address) // TOGETHER | _GROUP_BIT


def address_in(number: int, at: int) -> IPv4Address:
    """The other way: the address that is the `at`th of a group."""
    return IPv4Address((number ^ _GROUP_BIT) * TOGETHER + at)


@dataclass(frozen=True, slots=True)
class Group:
    """`word`: its place in `groups`; `line`: its line of `addresses`."""

    word: int
    line: int

    def entry(self, number: int) -> int:
        """What is to be written at `word`."""
        return number | self.line << 32


@dataclass
class Places:
    """The places of some addresses. `marks`: words of `groups` that must be 1 before any new group is written."""

    lines: int
    addresses_max: int
    groups: dict[int, Group] = field(default_factory=dict)
    members: dict[int, int] = field(default_factory=dict)  # addresses of each group
    marks: set[int] = field(default_factory=set)

    def with_more(self, addresses: Iterable[IPv4Address]) -> Places:
        """These and others, each of which is not here yet. KernelError when there is no room."""
        addresses = tuple(addresses)
        if not addresses:
            return self
        more = Places(self.lines, self.addresses_max, dict(self.groups), dict(self.members), set(self.marks))
        words = {group.word for group in self.groups.values()}
        lines = {group.line for group in self.groups.values()}
        free = (line for line in range(self.addresses_max) if line not in lines)
        for address in addresses:
            number = group_of(address)
            if number not in more.groups:
                more.groups[number] = Group(more._free_word(number, words), _next(free, address))
            more.members[number] = more.members.get(number, 0) + 1
        return more

    def _free_word(self, number: int, taken: set[int]) -> int:
        line = hash_group(number)
        for further in range(_TRIES):
            start = (line + further & self.lines - 1) * LINE_WORDS
            for word in range(start, start + MARK):
                if word not in taken:
                    taken.add(word)
                    return word
            self.marks.add(start + MARK)
        raise _no_room(address_in(number, 0))

    def word(self, address: IPv4Address) -> int:
        """Its place in `addresses`."""
        return self.groups[group_of(address)].line * TOGETHER + int(address) % TOGETHER

    def leave(self, address: IPv4Address) -> Group | None:
        """An address goes; gives its group when it was the last one."""
        number = group_of(address)
        self.members[number] -= 1
        if self.members[number]:
            return None
        del self.members[number]
        return self.groups.pop(number)


def _next(free: Iterable[int], address: IPv4Address) -> int:
    for line in free:
        return line
    raise _no_room(address)


def _no_room(address: IPv4Address) -> KernelError:
    return KernelError(f"no room for {address} in the table of addresses", fix="raise limits.addresses_max")
