"""`dns` of a pool: what is possible, and every way to get it wrong."""

from __future__ import annotations

import pytest

from softunicast.core.config import Config, parse_config
from softunicast.core.config_sockets import RESOLVERS_MAX
from softunicast.core.errors import ConfigError
from softunicast.kernel import abi

HEAD = """
server = { name = "server1", site = "lab" }
uplink = { interface = "uplink" }
ledger = { kind = "sqlite", path = "/var/lib/softunicast/ledger.db" }
"""


def parsed(dns: str) -> Config:
    return parse_config(f'{HEAD}\n[[pools]]\nname = "gb"\n{dns}\n', "agent.toml")


def test_resolvers_of_a_pool() -> None:
    for texts in ([], ["192.0.2.53"], ["2001:db8::53", "192.0.2.53", "169.254.169.253"]):
        (pool,) = parsed(f"dns = {texts}").pools
        assert [str(one) for one in pool.dns] == texts
    assert parsed("").pools[0].dns == ()
    assert RESOLVERS_MAX == abi.AbiLimit.RESOLVERS_MAX


@pytest.mark.parametrize(
    ("dns", "says"),
    [
        ('"192.0.2.53"', "'192.0.2.53' is not a list of texts"),
        ("[53]", "[53] is not a list of texts"),
        ('["192.0.2.53:53"]', "'192.0.2.53:53' is not an address; fix: write it like 192.0.2.53 or"),
        ('["192.0.2.0/24"]', "'192.0.2.0/24' is not an address"),
        ('["resolver"]', "'resolver' is not an address"),
        (str([f"192.0.2.{last}" for last in range(RESOLVERS_MAX + 1)]), "5 entries; fix: use at most 4"),
        ('["127.0.0.53"]', "127.0.0.53 is this server itself, which asks from its own address; fix: name a"),
        ('["::1"]', "::1 is this server itself"),
        ('["0.0.0.0"]', "0.0.0.0 is this server itself"),
        ('["::ffff:192.0.2.53"]', "no resolver is reached at ::ffff:192.0.2.53"),
        ('["fe80::53"]', "no resolver is reached at fe80::53"),
        ('["2001:db8::53%eth0"]', "no resolver is reached at 2001:db8::53%eth0"),
        ('["224.0.0.251"]', "no resolver is reached at 224.0.0.251"),
        ('["ff02::fb"]', "no resolver is reached at ff02::fb"),
        ('["255.255.255.255"]', "no resolver is reached at 255.255.255.255"),
        ('["2001:db8::53", "2001:DB8:0::53"]', "2001:DB8:0::53 is there twice; fix: leave one out"),
    ],
)
def test_wrong_ones(dns: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(f"dns = {dns}")
    (problem,) = caught.value.problems
    assert f"pools[1].dns: {says}" in problem
