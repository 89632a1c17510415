"""Ends of conversations as text, of both families."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from softunicast.core.endpoints import address_order, endpoint_text, parse_endpoint
from softunicast.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "address", "port", "written"),
    [
        ("10.0.0.2", "10.0.0.2", None, None),
        ("10.0.0.2:0", "10.0.0.2", 0, None),
        ("10.0.0.2:65535", "10.0.0.2", 65535, None),
        ("2001:db8::2", "2001:db8::2", None, None),
        ("2001:DB8:0::2", "2001:db8::2", None, "2001:db8::2"),
        ("[2001:db8::2]", "2001:db8::2", None, "2001:db8::2"),
        ("[2001:db8::2]:443", "2001:db8::2", 443, None),
        ("::1", "::1", None, None),
    ],
)
def test_both_ways(text: str, address: str, port: int | None, written: str | None) -> None:
    assert parse_endpoint(text) == (ip_address(address), port)
    assert endpoint_text(*parse_endpoint(text)) == (written or text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            "10.0.0",
            "10.0.0.2:",
            "10.0.0.2:65536",
            "10.0.0.2:x",
            "10.0.0.2:1:2",
            "10.0.0.2:٣",
            "example.com:80",
        ),
        *("[10.0.0.2]:1", "[2001:db8::2", "[2001:db8::2]443", "[2001:db8::2]:", "[]:1", "2001:db8::2:::1"),
        *("fe80::1%eth0", "[fe80::1%eth0]:80", "[2001:db8::2]:123456"),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_endpoint(text)
    assert "\n" not in str(caught.value)


def test_ipv4_comes_first() -> None:
    texts = ["2001:db8::1", "10.0.0.2", "::1", "9.0.0.1"]
    ordered = sorted(map(ip_address, texts), key=address_order)
    assert [str(one) for one in ordered] == ["9.0.0.1", "10.0.0.2", "::1", "2001:db8::1"]
