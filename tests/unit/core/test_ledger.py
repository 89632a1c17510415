"""The rules that every ledger shares, where a backend's own tests do not reach."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address

import pytest

from softunicast.core.errors import InputError, OverlapError
from softunicast.core.ledger import Changes, check_unit, plan_inventory
from softunicast.core.records import Address, Block, Inventory
from softunicast.core.slices import Slice, slices_of

EMPTY = Inventory((), ())


def blocks(*texts: str) -> tuple[Block, ...]:
    return tuple(Block(Slice.parse(text)) for text in texts)


@pytest.mark.parametrize("ip", [IPv4Address("198.51.100.10"), IPv6Address("2001:db8::1")])
@pytest.mark.parametrize("ports", [16, 2048, 32768])
def test_units_are_all_slices_above_the_system_ports(ip: IPv4Address | IPv6Address, ports: int) -> None:
    address = Address(ip, "lab", {}, ports)
    system = [unit for unit in slices_of(ip, ports) if unit.port_first < 1024]
    units = slices_of(ip, ports)[len(system) :]
    for unit in units:
        check_unit(unit, address)
    for unit in system:
        with pytest.raises(InputError, match=re.escape(f"never given out; fix: start with {units[0]}")):
            check_unit(unit, address)
    length = units[0].length
    for slice in (Slice.of(ip), *Slice.of(ip).split(length - 1), *units[0].split(length + 1)):
        with pytest.raises(InputError, match=f"cut by {ports}"):
            check_unit(slice, address)
    with pytest.raises(InputError, match=f"cut by {ports}"):
        check_unit(slices_of(ip + 1, ports)[1], address)


@pytest.mark.parametrize(
    "texts",
    [
        ("0.0.0.0/0", "198.51.100.10/32"),
        ("10.0.0.0/8", "10.0.0.0/9"),
        ("10.0.0.0/8", "9.0.0.0/8", "10.255.255.255/32", "11.0.0.0/8"),
        ("2001:db8::/64", "2001:db8::/128"),
    ],
)
def test_blocks_do_not_overlap(texts: tuple[str, ...]) -> None:
    for order in (texts, texts[::-1]):
        with pytest.raises(OverlapError, match="overlap"):
            plan_inventory(Inventory(blocks(*order), ()), EMPTY, ())


def test_an_address_lies_in_a_block_of_its_own_version() -> None:
    held = Address(IPv4Address("198.51.100.10"), "lab", {})
    for good in ("0.0.0.0/0", "198.51.100.0/24", "198.51.100.10/32"):
        plan = plan_inventory(Inventory(blocks("2001:db8::/32", good), (held,)), EMPTY, ())
        assert plan.changes == Changes(added=3, changed=0, removed=0)
    for bad in ("::/0", "198.51.101.0/24", "198.51.100.11/32"):
        with pytest.raises(InputError, match="lies in no block"):
            plan_inventory(Inventory(blocks("203.0.113.0/24", bad), (held,)), EMPTY, ())
