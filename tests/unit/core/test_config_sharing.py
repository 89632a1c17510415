"""Settings about sharing fairly: what they mean, and every way to get them wrong."""

from __future__ import annotations

import pytest

from softunicast.core.config import Config, parse_config
from softunicast.core.config_sharing import CLIENT_MAX
from softunicast.core.errors import ConfigError
from softunicast.core.onramp_rules import EXEMPT_MAX, NO_RULES, OnrampRules
from softunicast.core.pools import NO_LIMITS, ClientLimits
from softunicast.core.slices import Slice

HEAD = """
server = { name = "server1", site = "lab" }
uplink = { interface = "uplink" }
ledger = { kind = "sqlite", path = "/var/lib/softunicast/ledger.db" }
"""


def parsed(pool: str = "", onramp: str = "", limits: str = "") -> Config:
    return parse_config(
        f'{HEAD}\n[limits]\n{limits}\n[[pools]]\nname = "gb"\n{pool}\n'
        f'[[onramps]]\ninterface = "clients"\npool = "gb"\n{onramp}\n',
        "agent.toml",
    )


def problem(**where: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(**where)
    (found,) = caught.value.problems
    return found


def test_the_defaults_limit_nobody_and_change_nothing() -> None:
    config = parsed()
    (pool,) = config.pools
    assert pool.client_limits == NO_LIMITS
    assert (pool.when_full, pool.warn_at, pool.warn_clear_at) == ("another", 0.8, 0.7)
    assert config.rules == {"clients": NO_RULES}
    assert (config.limits.clients_max, config.limits.warn_at, config.limits.warn_clear_at) == (
        65536,
        0.8,
        0.7,
    )


def test_every_limit_of_a_client() -> None:
    names = ("flows_max", "tcp_max", "udp_max", "icmp_max", "state_max", "new_per_s")
    text = ", ".join(f"{name} = {number}" for number, name in enumerate(names, 1))
    (pool,) = parsed(pool=f"client_limits = {{ {text} }}").pools
    assert pool.client_limits == ClientLimits(1, 2, 3, 4, 5, 6)
    for name in names:
        for wrong in ("-1", str(CLIENT_MAX + 1), "1.5", "true", '"5"'):
            assert f"client_limits.{name}: " in problem(pool=f"client_limits = {{ {name} = {wrong} }}")


def test_when_a_clients_address_is_full() -> None:
    assert parsed(pool='when_full = "refuse"').pools[0].when_full == "refuse"
    assert "did you mean refuse?" in problem(pool='when_full = "refused"')


@pytest.mark.parametrize("where", ["pool", "limits"])
def test_thresholds(where: str) -> None:
    """Alone, `warn_at` may be below what `warn_clear_at` usually is."""

    def found(text: str) -> tuple[float, float]:
        config = parsed(**{where: text})
        of = config.limits if where == "limits" else config.pools[0]
        return of.warn_at, of.warn_clear_at

    assert found("warn_at = 0.5") == (0.5, 0.5)
    assert found("warn_at = 0.9\nwarn_clear_at = 0.1") == (0.9, 0.1)
    assert found("warn_at = 1.0\nwarn_clear_at = 1.0") == (1.0, 1.0)
    assert "above warn_at" in problem(**{where: "warn_at = 0.5\nwarn_clear_at = 0.6"})
    for wrong in ("warn_at = 0", "warn_at = 1.1", "warn_clear_at = -0.1", "warn_at = nan", 'warn_at = "80%"'):
        assert wrong.split()[0] in problem(**{where: wrong})


def test_exempt_destinations() -> None:
    config = parsed(onramp='exempt = ["192.0.2.0/24", "10.0.0.1", "2001:db8:7::/48"]')
    wanted = tuple(Slice.parse(text) for text in ("192.0.2.0/24", "10.0.0.1/32", "2001:db8:7::/48"))
    assert config.rules == {"clients": OnrampRules(wanted)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("exempt = '192.0.2.0/24'", "not a list of texts"),
        ("exempt = [1]", "not a list of texts"),
        ("exempt = ['']", "not a list of texts"),
        ("exempt = ['198.51.100.10:2048-4095']", "no prefix of whole addresses"),
        ("exempt = ['2001:db8::1/32']", "2001:db8::1/32"),
        ("exempt = ['example.org']", "example.org"),
        ("exempt = ['192.0.2.1/24']", "192.0.2.1/24"),
        (f"exempt = {[f'10.0.{at}.0/24' for at in range(EXEMPT_MAX + 1)]}", f"at most {EXEMPT_MAX}"),
        ("mss_clamp = 87", "from 88 to 65495"),
        ("mss_clamp = 65496", "from 88 to 65495"),
        ("mss_clamp = true", "True is not possible"),
        ("mss_clamp = 1200.5", "from 88 to 65495"),
        ("mss_clamp = 'mtu'", 'give "off" or "pmtu"'),
    ],
)
def test_wrong_rules(text: str, says: str) -> None:
    assert says in problem(onramp=text)


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ('"off"', NO_RULES),
        ('"pmtu"', OnrampRules(mss_by_path=True)),
        ("88", OnrampRules(mss=88)),
        ("65495", OnrampRules(mss=65495)),
    ],
)
def test_clamps(text: str, rules: OnrampRules) -> None:
    assert parsed(onramp=f"mss_clamp = {text}").rules == {"clients": rules}
