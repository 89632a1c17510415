"""The inventory: `count` addresses of a prefix, however large it is. The rest of the file is in test_config.py."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.test_config import INVENTORY

from softunicast.core.errors import ConfigError
from softunicast.core.inventory import PREFIX_ADDRESSES_MAX, parse_inventory
from softunicast.core.records import Block, Inventory
from softunicast.core.slices import Slice

BLOCK6 = "2001:db8:64::/48"
IN_IPV6 = INVENTORY.replace("198.51.100.0/24", BLOCK6)


def part(prefix: str, count: int | None, text: str = IN_IPV6) -> Inventory:
    more = "" if count is None else f"\ncount = {count}"
    return parse_inventory(text.replace('address = "198.51.100.10"', f'prefix = "{prefix}"{more}'), "x")


@pytest.mark.parametrize("prefix", [BLOCK6, "2001:db8:64::/64", "2001:db8:64::/120"])
def test_the_first_of_a_prefix_without_the_very_first(prefix: str) -> None:
    """Which is the subnet-router anycast address. The block stays whole."""
    found = part(prefix, 3)
    assert [str(one.address) for one in found.addresses] == [f"2001:db8:64::{at}" for at in (1, 2, 3)]
    assert found.blocks == (Block(Slice.parse(BLOCK6)),)
    assert {(one.site, one.slice_ports) for one in found.addresses} == {("lab", 64)}


def test_of_ipv4() -> None:
    found = part("198.51.100.0/24", 2, INVENTORY)
    assert [str(one.address) for one in found.addresses] == ["198.51.100.1", "198.51.100.2"]
    assert str(part("198.51.100.0/24", 255, INVENTORY).addresses[-1].address) == "198.51.100.255"


@given(st.integers(0, 119), st.integers(1, 255))
def test_more_of_them_are_the_same_and_others(length: int, count: int) -> None:
    """A larger count takes no address away from anybody."""
    block, text = "2000::/3", INVENTORY.replace("198.51.100.0/24", "2000::/3")
    prefix = str(Slice.parse(block)).replace("/3", f"/{max(3, length)}")
    fewer, more = (part(prefix, number, text).addresses for number in (count, count + 1))
    assert more[:count] == fewer
    assert len(more) == count + 1


def test_a_prefix_is_not_expanded() -> None:
    tracemalloc.start()
    try:
        assert len(part(BLOCK6, PREFIX_ADDRESSES_MAX).addresses) == PREFIX_ADDRESSES_MAX
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("prefix", "count", "says", "fix"),
    [
        ("2001:db8:64::/64", None, "has more than 256 addresses", "count = 1 to 256"),
        ("2001:db8:64::/64", 257, "count: 257 is not possible", "from 1 to 256"),
        ("2001:db8:64::/64", 0, "count: 0 is not possible", "from 1 to 256"),
        ("2001:db8:64::/126", 4, "count: 2001:db8:64::/126 has 3 addresses beside its first", "leave it out"),
        ("2001:db8:64::7/128", 1, "count: 2001:db8:64::7/128 has 0 addresses beside", "leave it out"),
        ("2001:db8:65::/64", 1, "2001:db8:65::1 is in no block", "add a [[blocks]]"),
    ],
)
def test_mistakes(prefix: str, count: int | None, says: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        part(prefix, count)
    assert any(says in problem and fix in problem for problem in caught.value.problems), caught.value.problems


def test_an_address_has_no_count() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_inventory(INVENTORY.replace("site", "count = 2\nsite"), "x")
    assert any("only a prefix has a count" in problem for problem in caught.value.problems)
