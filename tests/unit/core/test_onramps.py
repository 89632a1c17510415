"""On-ramps of the configuration: both kinds, whom they believe, and every mistake by name."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

import pytest
from tests.unit.core.test_config import GOOD, problems

from softunicast.core.config import parse_config
from softunicast.core.onramps import SOURCES_MAX, Tun
from softunicast.kernel.abi import AbiLimit

FD = """
[[onramps]]
kind = "fd"
name = "apps"
pool = "gb"
address = "10.9.0.1/24"
sources = ["10.9.0.0/24", "10.8.0.5/32"]
users = ["alice", "1000"]
"""


def changed(old: str, new: str) -> list[str]:
    assert old in FD
    return problems(GOOD + FD.replace(old, new))


def test_an_interface() -> None:
    config = parse_config(f'{GOOD}sources = ["10.0.0.0/8"]\n', "x")
    assert (config.onramps, config.tuns) == ({"clients": "gb"}, {})
    assert config.sources == {"clients": (IPv4Network("10.0.0.0/8"),)}
    assert parse_config(f'{GOOD}kind = "interface"\n', "x").sources == {}


def test_a_descriptor() -> None:
    config = parse_config(GOOD + FD, "x")
    assert config.onramps == {"clients": "gb", "apps": "gb"}
    assert config.attach["apps"] == "tc"
    assert config.sources == {"apps": (IPv4Network("10.9.0.0/24"), IPv4Network("10.8.0.5/32"))}
    assert config.tuns == {"apps": Tun(IPv4Interface("10.9.0.1/24"), 1500, False, ("alice", "1000"))}
    assert config.agent.fd_socket == "/run/softunicast/fd.sock"


def test_a_descriptor_with_everything() -> None:
    text = FD.replace('users = ["alice", "1000"]', 'groups = ["www-data"]\nmtu = 1280\noffload = true')
    tun = parse_config(GOOD + text, "x").tuns["apps"]
    assert tun == Tun(IPv4Interface("10.9.0.1/24"), 1280, True, (), ("www-data",))


def test_both_families() -> None:
    text = FD.replace('"10.8.0.5/32"]', '"2001:db8:9::/64", "fd00::7"]\naddress6 = "2001:db8:9::1/64"')
    config = parse_config(GOOD + text, "x")
    assert config.sources["apps"] == (
        IPv4Network("10.9.0.0/24"),
        IPv6Network("2001:db8:9::/64"),
        IPv6Network("fd00::7/128"),
    )
    assert config.tuns["apps"].address6 == IPv6Interface("2001:db8:9::1/64")
    config = parse_config(f'{GOOD}sources = ["::/0"]\n', "x")
    assert config.sources == {"clients": (IPv6Network("::/0"),)}


SIX = 'address6 = "2001:db8:9::1/64"\nusers'


@pytest.mark.parametrize(
    ("new", "says", "fix"),
    [
        ("users", "sources: IPv6 prefixes, but the device has no IPv6 address", "address6 = "),
        (
            'address6 = "2001:db8:9::1/64"\nmtu = 1279\nusers',
            "mtu: 1279 is too little for IPv6",
            "at least 1280",
        ),
        ('address6 = "2001:db8:9::1"\nusers', "is not an IPv6 address with its prefix", "2001:db8:9::1/64"),
        ('address6 = "10.9.0.1/24"\nusers', "is not an IPv6 address with its prefix", "2001:db8:9::1/64"),
        ('address6 = "fe80::1/64"\nusers', "is not an IPv6 address with its prefix", "link-local"),
        ('address6 = "::1/128"\nusers', "is not an IPv6 address with its prefix", "2001:db8:9::1/64"),
        ('address6 = "fd00::1%eth0/64"\nusers', "is not an IPv6 address with its prefix", "2001:db8"),
    ],
)
def test_mistakes_of_ipv6(new: str, says: str, fix: str) -> None:
    text = FD.replace('"10.8.0.5/32"', '"2001:db8:9::/64"').replace("users", new)
    [problem] = problems(GOOD + text)
    assert says in problem
    assert fix in problem


@pytest.mark.parametrize(
    ("old", "new", "says", "fix"),
    [
        ("users", SIX, "address6: sources has no IPv6 prefix", "add those"),
        ("10.8.0.5/32", "fe80::/64", "fe80::/64 is of one link", "can be forwarded"),
        ("10.8.0.5/32", "ff02::/16", "ff02::/16 is of one link", "can be forwarded"),
        ("10.8.0.5/32", "2001:db8::1/64", "'2001:db8::1/64' is no prefix", "host bits zero"),
        ("10.8.0.5/32", "fd00::%e/64", "'fd00::%e/64' is no prefix", "host bits zero"),
        ('kind = "fd"', 'kind = "df"', "'df' is not known", "use one of fd, interface"),
        ('name = "apps"\n', "", "has no name", "add name"),
        ('name = "apps"', 'name = "clients"', "clients is an on-ramp already", "one pool"),
        ('name = "apps"', 'name = "uplink"', "uplink is the uplink", "clients come in by"),
        ('name = "apps"', 'name = "a b"', "'a b' is no interface name", "ip link"),
        ('pool = "gb"', 'pool = "gbb"', "no pool gbb", "did you mean gb?"),
        ('address = "10.9.0.1/24"\n', "", "has no address", "add address"),
        ('"10.9.0.1/24"', '"10.9.0.1"', "'10.9.0.1' is not an address with its prefix", "like 10.9.0.1/24"),
        ('"10.9.0.1/24"', '"10.9.0.1/33"', "is not an address with its prefix", "like 10.9.0.1/24"),
        ('"10.9.0.1/24"', '"fe80::1/64"', "is not an address with its prefix", "like 10.9.0.1/24"),
        ('sources = ["10.9.0.0/24", "10.8.0.5/32"]\n', "", "sources: missing", 'sources = ["10.9.0.0/24"]'),
        ('["10.9.0.0/24", "10.8.0.5/32"]', "[]", "no address may come in", "at least one"),
        ("10.9.0.0/24", "10.9.0.1/24", "'10.9.0.1/24' is no prefix", "host bits zero"),
        (
            '["10.9.0.0/24", "10.8.0.5/32"]',
            '"10.9.0.0/24"',
            "is not a list of texts",
            'sources = ["...", "..."]',
        ),
        ('["10.9.0.0/24", "10.8.0.5/32"]', "[10]", "[10] is not a list of texts", 'sources = ["...", "..."]'),
        ('users = ["alice", "1000"]\n', "", "nobody may open it", "users = "),
        ('"alice"', '"al ice"', "'al ice' is neither a name nor a number", "as `id` prints it"),
        ('pool = "gb"', 'pool = "gb"\nmtu = 100', "100 is not possible", "from 576 to 65535"),
        ('pool = "gb"', 'pool = "gb"\noffload = 1', "1 is neither true nor false", "offload = true"),
        ('pool = "gb"', 'pool = "gb"\ninterface = "x"', "interface: unknown key", "one of"),
        ('pool = "gb"', 'pool = "gb"\nattach = "xdp"', "attach: unknown key", "one of"),
    ],
)
def test_mistakes(old: str, new: str, says: str, fix: str) -> None:
    found = [problem for problem in changed(old, new) if says in problem]
    assert found, changed(old, new)
    assert fix in found[0].partition("; fix: ")[2]


def test_an_interface_has_no_settings_of_a_device() -> None:
    for key in ('name = "x"', 'address = "10.0.0.1/24"', "mtu = 1400", "offload = true", 'users = ["x"]'):
        [problem] = problems(f"{GOOD}{key}\n")
        assert "unknown key" in problem


def test_as_many_sources_as_the_kernel_takes() -> None:
    assert SOURCES_MAX == AbiLimit.ONRAMP_SOURCES_MAX
    text = ", ".join(f'"10.{number}.0.0/16"' for number in range(SOURCES_MAX + 1))
    [problem] = problems(f"{GOOD}sources = [{text}]\n")
    assert f"{SOURCES_MAX + 1} entries; fix: use at most {SOURCES_MAX}" in problem


def test_two_sockets() -> None:
    def said(path: str) -> list[str]:
        return problems(GOOD.replace("ttl_s = 30", f'ttl_s = 30\nfd_socket = "{path}"'))

    assert "agent.fd_socket: the API listens there" in said("/run/softunicast/agent.sock")[0]
    assert "agent.fd_socket: too long for a socket" in said("/" + "x" * 110)[0]
