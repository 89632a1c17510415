"""The inventory file: which blocks and addresses there are. TOML text in, records for the ledger out.

Like the configuration (config.py): every problem is reported at once, with its line and its fix.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from softunicast.core.config import read_tags
from softunicast.core.errors import InputError
from softunicast.core.pools import TAG_PATTERN
from softunicast.core.records import (
    SLICE_PORTS_DEFAULT,
    SLICE_PORTS_MAX,
    SLICE_PORTS_MIN,
    Address,
    Block,
    Inventory,
)
from softunicast.core.slices import IPAddress, Slice
from softunicast.core.toml_reader import Problems, Section, reason

PREFIX_ADDRESSES_MAX: Final = 256  # of one [[addresses]]: each address is a row and a table of its own


def parse_inventory(text: str, path: str) -> Inventory:
    """Blocks and addresses for the ledger; raises ConfigError with every problem of the file."""
    problems = Problems(path)
    document = Section.parse(text, problems)
    blocks: list[Block] = []
    for section in document.sections("blocks"):
        prefix = _prefix(section)
        for other in blocks:
            if prefix is not None and prefix.overlaps(other.prefix):
                section.wrong("prefix", f"{prefix} overlaps {other.prefix}", "give each address one block")
        if prefix is not None:
            blocks.append(Block(prefix))
        section.done()
    prefixes = {block.prefix for block in blocks}
    lengths = {prefix.length for prefix in prefixes}
    addresses: dict[IPAddress, Address] = {}
    for section in document.sections("addresses"):
        for entry in _addresses(section):
            address = entry.address
            whole = Slice.of(address)
            if address in addresses:
                section.wrong("address", f"{address} is here twice", "leave one of them out")
            elif not any(whole.parent(length) in prefixes for length in lengths if length <= whole.length):
                section.wrong("address", f"{address} is in no block", "add a [[blocks]] with its prefix")
            addresses[address] = entry
        section.done()
    document.done()
    problems.refuse()
    return Inventory(tuple(blocks), tuple(addresses.values()))


def _prefix(section: Section) -> Slice | None:
    text = section.text("prefix")
    try:
        prefix = Slice.parse(text) if text else None
    except InputError as error:
        section.wrong("prefix", *reason(error))
        return None
    if prefix is not None and prefix.is_port_slice:
        fix = "give whole addresses, like 198.51.100.0/24 or 2001:db8:64::/64"
        section.wrong("prefix", f"{text} is no prefix of whole addresses", fix)
        return None
    return prefix


def _addresses(section: Section) -> tuple[Address, ...]:
    """One of `address`, all of `prefix`, or `count` of it. A prefix is never expanded: it may have 2**80 of them."""
    whole = _prefix(section) if section.have("prefix") else None
    address = _ip_address(section) if not section.have("prefix") or section.have("address") else None
    if whole is not None and address is not None:
        section.wrong("prefix", "both address and prefix", "give one of them")
    site = section.name("site", TAG_PATTERN)
    tags = read_tags(section)
    count = _count(section, whole)
    version = 6 if (whole.version if whole else address.version if address else 4) == 6 else 4
    ports = section.number("slice_ports", SLICE_PORTS_DEFAULT, SLICE_PORTS_MIN, SLICE_PORTS_MAX[version])
    if ports & (ports - 1):
        section.wrong("slice_ports", f"{ports} is not a power of two", f"use {1 << ports.bit_length() - 1}")
    if address is not None:
        return (Address(address, site, tags, ports),)
    if whole is None or count is None:
        return ()
    # Of a part, what follows its first address: that one names the prefix (RFC 4291 section 2.6.1).
    first = 0 if count == whole.addresses else 1
    return tuple(Address(whole.address + at, site, tags, ports) for at in range(first, first + count))


def _count(section: Section, whole: Slice | None) -> int | None:
    """How many addresses of the prefix are used; None for a problem, or when there is no prefix."""
    asked = section.number("count", 1, 1, PREFIX_ADDRESSES_MAX) if section.have("count") else None
    if whole is None:
        if asked is not None and not section.have("prefix"):
            section.wrong(
                "count", "only a prefix has a count", "give prefix instead of address, or leave it out"
            )
        return None
    if asked is None and whole.addresses > PREFIX_ADDRESSES_MAX:
        what = f"{whole} has more than {PREFIX_ADDRESSES_MAX} addresses"
        fix = f"say how many of them are to be used: count = 1 to {PREFIX_ADDRESSES_MAX}"
        section.wrong("prefix", what, fix)
        return None
    if asked is not None and asked >= whole.addresses:
        what = f"{whole} has {whole.addresses - 1} addresses beside its first"
        section.wrong("count", what, "lower it, or leave it out to use the prefix whole")
        return None
    return asked or whole.addresses


def _ip_address(section: Section) -> IPAddress | None:
    text = section.text("address")
    try:
        if text and "%" not in text:  # a zone: of one interface only
            return ip_address(text)
    except ValueError:
        pass
    if text:
        section.wrong("address", f"{text!r} is not an IP address", "write it like 192.0.2.1 or 2001:db8::1")
    return None
