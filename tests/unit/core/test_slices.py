"""Slices by example: the texts people write, the errors they get, and the numbers behind them."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv6Address

import pytest

from softunicast.core.errors import InputError, SliceSyntaxError
from softunicast.core.slices import Slice, aggregate, slice_of_port, slices_of

SHARED = IPv4Address("198.51.100.10")
SHARED6 = IPv6Address("2001:db8::1")


@pytest.mark.parametrize(
    ("text", "prefix_text", "range_text"),
    [
        ("198.51.100.0/24", "198.51.100.0/24", "198.51.100.0/24"),
        ("198.51.100.10", "198.51.100.10/32", "198.51.100.10/32"),
        ("198.51.100.10/32", "198.51.100.10/32", "198.51.100.10/32"),
        ("198.51.100.10:2048/37", "198.51.100.10:2048/37", "198.51.100.10:2048-4095"),
        ("198.51.100.10:2048-4095", "198.51.100.10:2048/37", "198.51.100.10:2048-4095"),
        ("198.51.100.10:9017-9017", "198.51.100.10:9017/48", "198.51.100.10:9017-9017"),
        ("198.51.100.10:0-65535", "198.51.100.10/32", "198.51.100.10/32"),
        ("198.51.100.10:0/32", "198.51.100.10/32", "198.51.100.10/32"),
        ("0.0.0.0/0", "0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::/64", "2001:db8::/64", "2001:db8::/64"),
        ("2001:DB8:0::1", "2001:db8::1/128", "2001:db8::1/128"),
        ("[2001:db8::1]:2048/133", "[2001:db8::1]:2048/133", "[2001:db8::1]:2048-4095"),
        ("[2001:db8::1]:2048-4095", "[2001:db8::1]:2048/133", "[2001:db8::1]:2048-4095"),
    ],
)
def test_both_forms_parse_and_print(text: str, prefix_text: str, range_text: str) -> None:
    parsed = Slice.parse(text)
    assert (parsed.prefix_text, parsed.range_text, str(parsed)) == (prefix_text, range_text, range_text)
    assert repr(parsed) == f"Slice('{range_text}')"


@pytest.mark.parametrize(
    ("text", "telling"),
    [
        ("198.51.100.10/24", "write 198.51.100.0/24"),
        ("198.51.100.10/37", "name the first port: 198.51.100.10:PORT/37"),
        ("198.51.100.10/129", "use /0 to /32"),
        ("198.51.100.10:2048", "for that one port write 198.51.100.10:2048-2048"),
        ("[2001:db8::1]:80", "for that one port write [2001:db8::1]:80-80"),
        ("198.51.100.10:2049/37", "write 198.51.100.10:2048/37"),
        ("198.51.100.0:0/24", "use /32 (all ports) to /48 (one port)"),
        ("198.51.100.10:2048/49", "use /32 (all ports) to /48 (one port)"),
        ("[2001:db8::1]:2048/37", "use /128 (all ports) to /144 (one port)"),
        ("198.51.100.10:65536/48", "port 65536 is out of range"),
        ("198.51.100.10:65536", "port 65536 is out of range"),
        ("198.51.100.10:65024-65536", "65024-65536 is not a range of ports"),
        ("198.51.100.10:4095-2048", "4095-2048 is not a range of ports"),
        ("198.51.100.10:2048-4096", "write 198.51.100.10:2048-4095 or several slices"),
        ("198.51.100.10:3072-5119", "write 198.51.100.10:2048-4095"),
        ("198.51.100.300", "not an IPv4 address"),
        ("198.51.100.010", "not an IPv4 address"),
        ("198.51.100:80-81", "not an IPv4 address"),
        ("2001:db8:::1", "not an IPv6 address"),
        ("2001:db8::1:2048/133", "name the first port: [2001:db8::1:2048]:PORT/133"),
        ("2001:db8::1-2", "neither a prefix nor a port range"),
        ("[198.51.100.10]:80-81", "not an IPv6 address"),
        ("[2001:db8::1]", "neither a prefix nor a port range"),
        ("fe80::1%eth0", "neither a prefix nor a port range"),
        ("198.51.100.10:02048-4095", "neither a prefix nor a port range"),
        ("198.51.100.0/255.255.255.0", "neither a prefix nor a port range"),
        ("198.51.100.10 ", "neither a prefix nor a port range"),
        ("198.51.100.10\n", "neither a prefix nor a port range"),
        ("198.51.100.1\u0660", "neither a prefix nor a port range"),
        ("198.51.100.0/2\u0664", "neither a prefix nor a port range"),
        ("198.51.100.10:204\u0668-4095", "neither a prefix nor a port range"),
        ("", "neither a prefix nor a port range"),
    ],
)
def test_a_wrong_text_is_refused_with_its_fix(text: str, telling: str) -> None:
    with pytest.raises(SliceSyntaxError) as caught:
        Slice.parse(text)
    assert telling in str(caught.value)
    assert caught.value.fix
    assert caught.value.exit_code == 2


def test_an_error_stays_one_short_line_whatever_the_text() -> None:
    with pytest.raises(SliceSyntaxError) as caught:
        Slice.parse("198.51.100.10\n\u2028\x00" * 1000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_parts_of_a_port_slice() -> None:
    part = Slice.parse("198.51.100.10:2048-4095")
    assert (part.version, part.length, part.bits) == (4, 37, 48)
    assert part.address == SHARED
    assert (part.port_first, part.port_last, part.ports, part.addresses) == (2048, 4095, 2048, 1)
    assert (part.first, part.last) == (int(SHARED) << 16 | 2048, int(SHARED) << 16 | 4095)
    assert (part.is_block, part.is_address, part.is_port_slice) == (False, False, True)


def test_parts_of_blocks_and_addresses() -> None:
    block = Slice.parse("2001:db8::/64")
    assert block.address == IPv6Address("2001:db8::")
    assert (block.bits, block.ports, block.port_first, block.port_last) == (144, 65536, 0, 65535)
    assert block.addresses == 2**64
    assert (block.is_block, block.is_address, block.is_port_slice) == (True, False, False)
    whole = Slice.of(SHARED)
    assert (whole.ports, whole.addresses, whole.port_last) == (65536, 1, 65535)
    assert (whole.is_block, whole.is_address, whole.is_port_slice) == (False, True, False)


@pytest.mark.parametrize(
    ("version", "first", "length"),
    [
        (5, 0, 0),
        (4, 0, 49),
        (4, 0, -1),
        (4, 1, 47),
        (4, 1 << 48, 48),
        (4, -1, 48),
        (6, 1 << 144, 144),
        (6, 1, 0),
    ],
)
def test_a_slice_that_is_no_prefix_cannot_be_made(version: int, first: int, length: int) -> None:
    with pytest.raises(InputError):
        Slice(version, first, length)


@pytest.mark.parametrize(
    ("port_first", "ports"), [(0, 0), (0, 3), (0, -2), (0, 131072), (-16, 16), (65536, 16), (8, 16)]
)
def test_of_refuses_what_is_not_one_slice(port_first: int, ports: int) -> None:
    with pytest.raises(InputError):
        Slice.of(SHARED, port_first, ports)


def test_slices_of_an_address() -> None:
    units = slices_of(SHARED, 2048)
    assert len(units) == 32
    assert (str(units[0]), str(units[31])) == ("198.51.100.10:0-2047", "198.51.100.10:63488-65535")
    assert slices_of(SHARED6, 65536) == (Slice.parse("2001:db8::1"),)


@pytest.mark.parametrize(
    ("port", "ports", "text"),
    [
        (9017, 2048, "198.51.100.10:8192-10239"),
        (0, 16, "198.51.100.10:0-15"),
        (65535, 1, "198.51.100.10:65535-65535"),
    ],
)
def test_slice_of_port(port: int, ports: int, text: str) -> None:
    assert slice_of_port(SHARED, port, ports) == Slice.parse(text)


@pytest.mark.parametrize(("port", "ports"), [(-1, 16), (65536, 16), (80, 0), (80, 17), (80, -16)])
def test_slice_of_port_refuses_what_does_not_exist(port: int, ports: int) -> None:
    with pytest.raises(InputError):
        slice_of_port(SHARED, port, ports)


@pytest.mark.parametrize("length", [36, 49, -1])
def test_split_refuses_at_once_not_at_the_first_use(length: int) -> None:
    with pytest.raises(InputError, match="use /37 to /48"):
        Slice.parse("198.51.100.10:2048/37").split(length)


@pytest.mark.parametrize("length", [38, -1])
def test_parent_refuses_what_is_no_parent(length: int) -> None:
    with pytest.raises(InputError, match="use /0 to /37"):
        Slice.parse("198.51.100.10:2048/37").parent(length)


def test_versions_never_meet() -> None:
    everything4, everything6 = Slice.parse("0.0.0.0/0"), Slice.parse("::/0")
    assert not everything4.overlaps(everything6)
    assert not everything6.overlaps(everything4)
    assert aggregate([everything6, everything4]) == (everything4, everything6)


def test_aggregate_goes_from_ports_to_blocks() -> None:
    units = [unit for host in (10, 11) for unit in slices_of(IPv4Address(f"198.51.100.{host}"), 2048)]
    assert aggregate(reversed(units)) == (Slice.parse("198.51.100.10/31"),)


def test_order_puts_the_containing_slice_first() -> None:
    texts = ["198.51.100.10:0-2047", "198.51.100.11/32", "198.51.100.10/32", "::/0", "198.51.100.0/24"]
    assert [str(item) for item in sorted(map(Slice.parse, texts))] == [
        "198.51.100.0/24",
        "198.51.100.10/32",
        "198.51.100.10:0-2047",
        "198.51.100.11/32",
        "::/0",
    ]


def test_a_slice_is_small_and_cannot_change() -> None:
    part = Slice.parse("198.51.100.10:2048-4095")
    with pytest.raises(AttributeError):
        part.length = 38  # type: ignore[misc]
    assert not hasattr(part, "__dict__")
    assert sys.getsizeof(part) <= 64  # a fleet has a million of them
