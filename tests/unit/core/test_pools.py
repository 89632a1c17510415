"""Pools by example: what a selection of tags finds, and what is refused instead of falling back."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from softunicast.core.errors import InputError, UnknownNameError
from softunicast.core.pools import Pool, Timers, check_dns, check_tags, select
from softunicast.core.records import Address

ADDRESSES = (
    Address(ip_address("2001:db8::1"), "lab", {"country": "gb", "product": "demo"}),
    Address(ip_address("198.51.100.11"), "lab", {"country": "de", "product": "demo"}),
    Address(ip_address("198.51.100.10"), "lab", {"country": "gb", "product": "demo"}),
    Address(ip_address("198.51.100.9"), "lab", {"country": "gb"}),
    Address(ip_address("203.0.113.7"), "far", {"country": "fr", "product": "crawler"}),
)


def found(tags: dict[str, str], site: str = "lab") -> list[str]:
    return [str(address.address) for address in select(Pool("p", tags), ADDRESSES, site)]


def test_an_address_must_carry_every_tag() -> None:
    assert found({"country": "gb", "product": "demo"}) == ["198.51.100.10", "2001:db8::1"]
    assert found({"country": "gb"}) == ["198.51.100.9", "198.51.100.10", "2001:db8::1"]


def test_only_addresses_of_the_site() -> None:
    assert found({"country": "fr"}, site="far") == ["203.0.113.7"]
    assert found({"country": "fr"}) == []


def test_known_tags_that_nobody_combines_are_an_empty_choice() -> None:
    assert found({"country": "de", "product": "crawler"}) == []


def test_an_unknown_value_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(UnknownNameError) as caught:
        found({"country": "uk"})
    assert str(caught.value) == "pool p: no address has country=uk; fix: known values of country: de, fr, gb"


def test_an_unknown_key_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(UnknownNameError) as caught:
        found({"contry": "gb"})
    assert str(caught.value) == "pool p: no address has a tag 'contry'; fix: known tags: country, product"


def test_a_value_known_only_for_another_key_is_unknown() -> None:
    with pytest.raises(UnknownNameError):
        found({"country": "demo"})


def test_a_ledger_without_addresses_says_so() -> None:
    with pytest.raises(UnknownNameError, match="ledger apply"):
        select(Pool("p", {"country": "gb"}), (), "lab")


def test_the_error_stays_a_line_when_there_are_many_values() -> None:
    many = [Address(ip_address(f"198.51.100.{n}"), "lab", {"rack": f"rack-{n:03}"}) for n in range(200)]
    with pytest.raises(UnknownNameError) as caught:
        select(Pool("p", {"rack": "none"}), many, "lab")
    assert str(caught.value).endswith("rack-009, ...")


@pytest.mark.parametrize("text", ["gb", "a", "0", "a.b-c_d", "a" * 32])
def test_tag_names_that_are_fine(text: str) -> None:
    check_tags({text: text})


@pytest.mark.parametrize("text", ["", "GB", "a" * 33, "-a", ".a", "a b", "a\n", "é", "a=b"])
def test_tag_names_that_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="tag key"):
        check_tags({text: "x"})
    with pytest.raises(InputError, match="tag value"):
        check_tags({"x": text})


def test_default_timers_are_not_below_the_rfcs() -> None:
    timers = Timers()
    assert timers.tcp_established_s >= 2 * 3600 + 4 * 60  # RFC 5382 REQ-5
    assert min(timers.tcp_opening_s, timers.tcp_closing_s) >= 4 * 60  # RFC 5382 REQ-5
    assert timers.udp_s >= 2 * 60  # RFC 4787 REQ-5
    assert timers.icmp_s >= 60  # RFC 5508 REQ-2


@pytest.mark.parametrize(
    ("site", "dns", "refused"),
    [
        ("lab", (), None),
        ("lab", ("192.0.2.53", "2001:db8::53"), None),
        ("far", ("192.0.2.53",), None),
        ("far", ("192.0.2.53", "2001:db8::53"), "2001:db8::53, and no IPv6 address could ask there"),
        ("nowhere", ("2001:db8::53",), None),  # it has no addresses at all, so far
    ],
)
def test_resolvers_are_asked_from_addresses_of_the_pool(
    site: str, dns: tuple[str, ...], refused: str | None
) -> None:
    pool = Pool("p", {}, dns=tuple(map(ip_address, dns)))
    addresses = select(pool, ADDRESSES, site)
    if refused is None:
        check_dns(pool, addresses)
        return
    with pytest.raises(InputError) as caught:
        check_dns(pool, addresses)
    assert caught.value.what == f"pool p: dns has {refused}"
