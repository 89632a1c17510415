"""What a stranger's program says that a pool does: coturn's NAT discovery (RFC 5780) from a client, against coturn's
server on two addresses and two ports of internet.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from tests.netns.pair_lab import PairLab, eventually

from softunicast.core.pools import PROTOCOLS, Behaviour, Timers
from softunicast.lab import processes
from softunicast.lab.pair import INTERNET, POOL

OTHER = "203.0.113.2"
STUN_PORT = 3478
UDP_S = 3
EVERY = frozenset(PROTOCOLS)
CLIENT = "turnutils_natdiscovery"


@dataclass(frozen=True)
class Setting:
    """How a pool is set, and what the program calls it."""

    behaviour: Behaviour
    mapping: str
    filtering: str
    hairpin: bool


SETTINGS = {
    "as it comes": Setting(
        POOL.behaviour, "Endpoint Independent Mapping", "Address and Port Dependent Filtering", False
    ),
    "open": Setting(
        Behaviour(EVERY, EVERY), "Endpoint Independent Mapping", "Endpoint Independent Filtering", True
    ),
    "dependent": Setting(
        Behaviour(frozenset(), frozenset()),
        "Address and Port Dependent Mapping",
        "Address and Port Dependent Filtering",
        False,
    ),
}


@pytest.fixture(scope="module", params=tuple(SETTINGS))
def setting(request: pytest.FixtureRequest) -> Setting:
    return SETTINGS[str(request.param)]


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab], setting: Setting) -> PairLab:
    server = shutil.which("turnserver")
    if server is None or shutil.which(CLIENT) is None:
        pytest.skip("missing: turnserver; fix: apt-get install coturn, and keep its service from starting")
    made = make_pair(pool=replace(POOL, behaviour=setting.behaviour, timers=Timers(udp_s=UDP_S)))
    made.good("internet", "ip", "address", "add", f"{OTHER}/24", "dev", "eth0")
    folder = made.lab.node_directory("internet")
    processes.start(
        made.lab,
        "internet",
        "turnserver",
        [
            *(server, "-n", "-S", "-L", INTERNET, "-L", OTHER, "-p", str(STUN_PORT)),
            *("--no-tls", "--no-dtls", "--no-cli", "--log-file", "stdout"),
            *("-b", str(folder / "turndb"), "--pidfile", str(folder / "turnserver.pid")),
        ],
    )

    def listens() -> bool:
        """On two ports of two addresses, by UDP."""
        said = made.good("internet", "ss", "-Hlnu", f"sport >= :{STUN_PORT} and sport <= :{STUN_PORT + 1}")
        return len({line.split()[3] for line in said.splitlines()}) >= 4

    eventually(listens, "coturn listens")
    return made


def discover(lab: PairLab, client: str, *options: str) -> str:
    return lab.good(client, CLIENT, *options, INTERNET)


@pytest.mark.parametrize("client", ["client1", "client2"])
def test_mapping(lab: PairLab, setting: Setting, client: str) -> None:
    assert f"NAT with {setting.mapping}!" in discover(lab, client, "-m")


def test_filtering(lab: PairLab, setting: Setting) -> None:
    assert f"NAT with {setting.filtering}!" in discover(lab, "client2", "-f")


@pytest.mark.parametrize("setting", ["as it comes", "open"], indirect=True)
def test_hairpin(lab: PairLab, setting: Setting) -> None:
    """It sends from another port to where it is seen, and never back: heard only where strangers are let in."""
    said = discover(lab, "client1", "-H")
    assert ("successful hairpinning" in said) == setting.hairpin, said
    assert ("timeout" in said) != setting.hairpin, said


@pytest.mark.parametrize("setting", ["as it comes"], indirect=True)
@pytest.mark.parametrize(("wait_s", "alive"), [(1, True), (UDP_S + 2, False)])
def test_lifetime(lab: PairLab, wait_s: int, alive: bool) -> None:
    """It has the answer of a second question sent to the port of the first, after so long a silence."""
    said = discover(lab, "client1", "-t", "-T", str(wait_s))
    assert ("RFC 5780 response 2" in said) == alive, said
    assert ("timeout" in said) != alive, said
