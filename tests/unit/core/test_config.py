"""Configuration and inventory: what is read, and that every mistake is named with its line and fix."""

from __future__ import annotations

import re
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softunicast.core.config import parse_config
from softunicast.core.errors import ConfigError
from softunicast.core.inventory import parse_inventory
from softunicast.core.pools import PROTOCOLS, Behaviour, Pool, Timers
from softunicast.core.records import Address, Block
from softunicast.core.slices import Slice

GOOD = """\
[server]
name = "server1"
site = "lab"

[uplink]
interface = "uplink"

[ledger]
kind = "sqlite"
path = "/var/lib/softunicast/ledger.db"

[agent]
ttl_s = 30
log_level = "debug"

[[pools]]
name = "gb"
tags = { country = "gb", product = "demo" }
slices_max = 2
timers = { udp_s = 30 }

[[onramps]]
interface = "clients"
pool = "gb"
"""


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "agent.toml")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("agent.toml: ")
    return list(caught.value.problems)


def changed(old: str, new: str) -> list[str]:
    assert old in GOOD
    return problems(GOOD.replace(old, new))


def test_good_one_with_defaults() -> None:
    config = parse_config(GOOD, "agent.toml")
    assert (config.server.name, config.server.site) == ("server1", "lab")
    assert (config.uplink.interface, config.uplink.address) == ("uplink", None)
    assert config.ledger.path == "/var/lib/softunicast/ledger.db"
    assert config.agent.ttl_s == 30.0
    assert config.agent.quarantine_s == 120.0
    assert config.agent.socket == "/run/softunicast/agent.sock"
    assert config.agent.on_stop == "restore"
    assert config.limits.flows_max == 262_144
    assert config.pools == (Pool("gb", {"country": "gb", "product": "demo"}, 2, Timers(udp_s=30)),)
    assert config.onramps == {"clients": "gb"}


@pytest.mark.parametrize(
    ("text", "mapping", "filtering"),
    [
        ("", {"udp", "icmp"}, set()),
        ('mapping = { tcp = "independent" }', set(PROTOCOLS), set()),
        ('mapping = { udp = "dependent", icmp = "dependent" }', set(), set()),
        ('filtering = { udp = "independent" }', {"udp", "icmp"}, {"udp"}),
        (
            'mapping = { tcp = "independent" }\nfiltering = { tcp = "independent", icmp = "independent" }',
            set(PROTOCOLS),
            {"tcp", "icmp"},
        ),
    ],
)
def test_mapping_and_filtering(text: str, mapping: set[str], filtering: set[str]) -> None:
    (pool,) = parse_config(GOOD.replace("slices_max = 2", text), "x").pools
    assert pool.behaviour == Behaviour(frozenset(mapping), frozenset(filtering))


def test_how_many_errors_a_pool_sends() -> None:
    for text, per_s in (("", 100), ("icmp_errors_per_s = 0", 0), ("icmp_errors_per_s = 1000000", 1_000_000)):
        (pool,) = parse_config(GOOD.replace("slices_max = 2", text), "x").pools
        assert pool.icmp_errors_per_s == per_s
    for text in ("-1", "1000001", "true", '"many"'):
        [problem] = changed("slices_max = 2", f"icmp_errors_per_s = {text}")
        assert "icmp_errors_per_s" in problem


def test_how_onramps_are_attached() -> None:
    assert parse_config(GOOD, "x").attach == {"clients": "auto"}
    for how in ("auto", "tc", "xdp"):
        assert parse_config(f'{GOOD}attach = "{how}"\n', "x").attach == {"clients": how}


def test_how_the_uplink_is_attached() -> None:
    assert parse_config(GOOD, "x").uplink.attach == "auto"
    for how in ("auto", "tc", "xdp"):
        text = GOOD.replace('"uplink"\n', f'"uplink"\nattach = "{how}"\n')
        assert parse_config(text, "x").uplink.attach == how
    with pytest.raises(ConfigError, match="did you mean tc"):
        parse_config(GOOD.replace('"uplink"\n', '"uplink"\nattach = "tcx"\n'), "x")


def test_address_of_the_uplink() -> None:
    config = parse_config(GOOD.replace('"uplink"\n', '"uplink"\naddress = "192.0.2.1"\n'), "x")
    assert config.uplink.address == IPv4Address("192.0.2.1")


@pytest.mark.parametrize(
    ("old", "new", "line", "says", "fix"),
    [
        ('name = "server1"\n', "", 1, "server has no name", "add name"),
        ('name = "server1"', 'name = "Server 1"', 2, "'Server 1' is not a name", "a-z 0-9"),
        ('name = "server1"', "name = 7", 2, "7 is not a text", 'name = "..."'),
        ('name = "server1"', 'name = ""', 2, "'' is not a text", 'name = "..."'),
        ('site = "lab"', 'sight = "lab"', 3, "sight: unknown key", "did you mean site?"),
        ('interface = "uplink"', 'interface = "a/b"', 6, "no interface name", "ip link"),
        ('interface = "uplink"', 'interface = "all"', 6, "no interface name", "ip link"),
        ('interface = "uplink"', 'interface = "abcdefghijklmnop"', 6, "no interface name", "ip link"),
        ('"uplink"\n', '"uplink"\naddress = "192.0.2.300"\n', 7, "not an IPv4 address", "192.0.2.1"),
        ('kind = "sqlite"', 'kind = "sqlit"', 9, "'sqlit' is not known", "did you mean sqlite?"),
        ('path = "/var', 'path = "var', 10, "not an absolute path", "start it with /"),
        ("ttl_s = 30", "ttl_s = 2", 13, "2 is not possible", "from 3 to 86400"),
        ("ttl_s = 30", "ttl_s = true", 13, "True is not possible", "from 3 to 86400"),
        ("ttl_s = 30", "ttl_s = nan", 13, "nan is not possible", "from 3 to 86400"),
        ("ttl_s = 30", "poll_s = 31\nttl_s = 30", 13, "too slow", "at most 3"),
        ("ttl_s = 30", "settle_s = 0.1", 13, "shorter than poll_s", "at least 0.2"),
        ("ttl_s = 30", "tll_s = 30", 13, "tll_s: unknown key", "did you mean ttl_s?"),
        ("ttl_s = 30", 'socket = "/' + "s" * 107 + '"', 13, "too long for a socket", "107"),
        ("ttl_s = 30", 'state_dir = "/run/../etc"', 13, "not an absolute path", ".."),
        ("ttl_s = 30", 'on_stop = "restor"', 13, "'restor' is not known", "did you mean restore?"),
        ('"debug"', '"loud"', 14, "'loud' is not known", "debug, error, info, warning"),
        ('country = "gb"', 'Country = "gb"', 18, "tag key 'Country' is not a name", "a-z"),
        ('country = "gb"', "country = 1", 18, "1 is not a text", "country"),
        ("tags = {", 'tags = "x" #', 18, "not a table", "[tags]"),
        ("slices_max = 2", "slices_max = 0", 19, "0 is not possible", "from 1 to 256"),
        ("slices_max = 2", "slices_max = 257", 19, "257 is not possible", "from 1 to 256"),
        ("slices_max = 2", "slices_max = 1.5", 19, "1.5 is not possible", "whole number"),
        ("{ udp_s = 30 }", "{ udp_s = 0 }", 20, "0 is not possible", "from 1"),
        ("{ udp_s = 30 }", "{ upd_s = 30 }", 20, "pools[1].timers.upd_s: unknown key", "udp_s"),
        (
            "timers = {",
            'mapping = { udp = "any" }\ntimers = {',
            20,
            "'any' is not known",
            "dependent, independent",
        ),
        (
            "timers = {",
            'mapping = { gre = "dependent" }\ntimers = {',
            20,
            "pools[1].mapping.gre: unknown key",
            "one of",
        ),
        ("timers = {", 'filtering = "independent"\ntimers = {', 20, "not a table", "filtering"),
        ("timers = {", 'filtering = { tcp = "independent" }\ntimers = {', 20, "tcp filters", "mapping.tcp"),
        ('pool = "gb"', 'pool = "gb"\nattach = "xpd"', 25, "'xpd' is not known", "did you mean xdp?"),
        ('interface = "clients"', 'interface = "uplink"', 23, "uplink is the uplink", "clients come in"),
        ('pool = "gb"', 'pool = "bg"', 24, "no pool bg", "use one of gb"),
        ('pool = "gb"', "", 22, "onramps[1] has no pool", "add pool"),
        ("[[onramps]]", "[onramps]", 22, "not a list of tables", "two brackets"),
        ("[uplink]", "[uplnk]", 5, "uplnk: unknown key", "did you mean uplink?"),
        ('name = "gb"', "name = gb", 17, "not TOML: Invalid value", "double quotes"),
        ("[ledger]\n", "[server]\n", 8, "not TOML: Cannot declare", "key = value"),
    ],
)
def test_each_mistake_has_its_line_and_fix(old: str, new: str, line: int, says: str, fix: str) -> None:
    found = changed(old, new)
    assert any(
        text.startswith(f"line {line}: ") and says in text and fix in text.split("; fix: ")[1]
        for text in found
    ), found


def test_all_at_once_by_line() -> None:
    text = GOOD.replace('"server1"', '"x y"').replace("= 2\n", "= -2\n").replace('pool = "gb"', 'pool = "us"')
    found = problems(text)
    assert [text.split(":")[0] for text in found] == ["line 2", "line 19", "line 24"]


def test_nothing_at_all() -> None:
    found = problems("")
    assert [re.sub(".*no ", "", text).split(";")[0] for text in found] == ["[ledger]", "[server]", "[uplink]"]


def test_twice_the_same() -> None:
    pool = '[[pools]]\nname = "gb"\n'
    onramp = '[[onramps]]\ninterface = "clients"\npool = "gb"\n'
    found = problems(GOOD + pool + onramp)
    assert len(found) == 2
    assert "pool gb is here twice" in found[0]
    assert "clients is an on-ramp already" in found[1]


INVENTORY = """\
[[blocks]]
prefix = "198.51.100.0/24"

[[addresses]]
address = "198.51.100.10"
site = "lab"
tags = { country = "gb" }
slice_ports = 64
"""


def test_inventory() -> None:
    inventory = parse_inventory(INVENTORY, "inventory.toml")
    assert inventory.blocks == (Block(Slice.parse("198.51.100.0/24")),)
    assert inventory.addresses == (Address(IPv4Address("198.51.100.10"), "lab", {"country": "gb"}, 64),)


def test_addresses_of_a_prefix() -> None:
    text = INVENTORY.replace('address = "198.51.100.10"', 'prefix = "198.51.100.8/30"')
    found = parse_inventory(text, "inventory.toml").addresses
    assert [str(one.address) for one in found] == [f"198.51.100.{number}" for number in range(8, 12)]
    assert {(one.site, one.slice_ports, one.tags["country"]) for one in found} == {("lab", 64, "gb")}


def test_whole_addresses_of_ipv6() -> None:
    text = INVENTORY.replace("198.51.100.0/24", "2001:db8:5::/48").replace("64", "65536")
    text = text.replace('address = "198.51.100.10"', 'prefix = "2001:db8:5::/120"')
    found = parse_inventory(text, "inventory.toml").addresses
    assert len(found) == 256
    assert {one.slice_ports for one in found} == {65536}
    assert (str(found[0].address), str(found[-1].address)) == ("2001:db8:5::", "2001:db8:5::ff")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (INVENTORY.replace("0/24", "1/24"), 2, "prefix"),
        (INVENTORY.replace("198.51.100.0/24", "198.51.100.10:2048-4095"), 2, "no prefix of whole addresses"),
        (INVENTORY.replace("198.51.100.0/24", "2001:db8::/64"), 5, "in no block"),
        (INVENTORY.replace("198.51.100.0/24", "203.0.113.0/24"), 5, "198.51.100.10 is in no block"),
        (INVENTORY.replace("198.51.100.10", "198.51.100"), 5, "not an IP address"),
        (INVENTORY.replace("198.51.100.10", "fe80::1%eth0"), 5, "not an IP address"),
        (INVENTORY.replace('address = "198.51.100.10"', 'prefix = "198.51.100.0/23"'), 5, "prefix"),
        (
            INVENTORY.replace('address = "198.51.100.10"', 'prefix = "2001:db8::/119"'),
            5,
            "more than 256 addresses",
        ),
        (INVENTORY.replace("site", 'prefix = "198.51.100.16/30"\nsite', 1), 6, "both address and prefix"),
        (INVENTORY.replace("64", "65"), 8, "use 64"),
        (INVENTORY.replace("64", "8"), 8, "from 16 to 32768"),
        (INVENTORY.replace("64", "65536"), 8, "from 16 to 32768"),
        (INVENTORY + '[[addresses]]\naddress = "198.51.100.10"\nsite = "a"\n', 10, "here twice"),
        (INVENTORY + '[[blocks]]\nprefix = "198.51.100.128/25"\n', 10, "overlaps 198.51.100.0/24"),
        (INVENTORY + "[[address]]\n", 9, "did you mean addresses?"),
    ],
)
def test_inventory_mistakes(text: str, line: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_inventory(text, "inventory.toml")
    assert any(
        problem.startswith(f"line {line}: ") and says in problem for problem in caught.value.problems
    ), caught.value.problems


@given(st.data())
def test_damage_ends_in_the_one_error(data: st.DataObject) -> None:
    """A file with characters missing, doubled or replaced is read or refused, and nothing else happens."""
    at = data.draw(st.integers(0, len(GOOD) - 1))
    end = data.draw(st.integers(at, min(at + 20, len(GOOD))))
    text = GOOD[:at] + data.draw(st.text(max_size=5)) + GOOD[end:]
    found: tuple[str, ...] = ()
    try:
        parse_config(text, "agent.toml")
    except ConfigError as error:
        found = error.problems or ("refused without a problem",)
    assert all(re.fullmatch(r"line \d+: .*; fix: .*", problem) for problem in found)
