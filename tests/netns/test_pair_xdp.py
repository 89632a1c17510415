"""Both uplinks by XDP, and the on-ramp of server1 as well: the same conversations in IPv4 and IPv6, most of their
packets by the short way. The other labs, whose devices are veths, have all of it at tc.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from tests.netns.pair_lab import PairLab

from softunicast.kernel import namespaces, offload
from softunicast.kernel.passing import attach_pass
from softunicast.lab import pattern
from softunicast.lab.pair import INTERNET
from softunicast.lab.pair6 import INTERNET6, ONRAMP6, ROUTER6

SIZE = 20_000_000
REMOTES = (INTERNET, INTERNET6)
HOPS = {INTERNET: ["10.0.0.1", "192.0.2.254", INTERNET], INTERNET6: [ONRAMP6, ROUTER6, INTERNET6]}


def url(remote: str) -> str:
    return f"http://[{remote}]" if ":" in remote else f"http://{remote}"


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    made = make_pair(ipv6=True)
    inside = made.lab.namespace("client1")
    namespaces.run_in(inside, offload.set_tx_checksum, "eth0", False)
    namespaces.run_in(
        inside, attach_pass, "eth0", made.lab.bpffs / "client1"
    )  # so that it takes frames from XDP
    made.end_agents(signal.SIGTERM)
    for server in ("server1", "server2"):
        config = made.config(server)
        text = config.read_text().replace("[uplink]\n", '[uplink]\nattach = "xdp"\n')
        config.write_text(
            text + 'attach = "xdp"\n' * (server == "server1")
        )  # the last table is the on-ramp's
    made.start_agents()
    return made


def traffic(lab: PairLab) -> dict[str, int]:
    found: dict[str, int] = lab.ask("server1", "/v1/traffic")
    return found


@pytest.mark.parametrize("remote", REMOTES)
def test_downloads_take_the_short_way(lab: PairLab, remote: str) -> None:
    before = traffic(lab)
    said = lab.good("client1", "sh", "-c", f"curl -sSg -m20 {url(remote)}/bytes/{SIZE} | sha256sum")
    assert said.split()[0] == pattern.sha256(SIZE)
    grown = {name: packets - before[name] for name, packets in traffic(lab).items()}
    assert grown["fast_out"] > grown["out"] * 0.8
    assert grown["fast_in"] > grown["in"] * 0.8 > SIZE / 1500 * 0.8
    assert grown["new_flow"] == 1


@pytest.mark.parametrize("remote", REMOTES)
def test_replies_that_reach_the_other_server_are_sent_on(lab: PairLab, remote: str) -> None:
    """About half of all conversations."""
    before = lab.ask("server2", "/v1/traffic")["steered"]
    if remote == INTERNET:
        with lab.held("client1", 20) as held:
            assert held["outcomes"] == {"ok": 20}
    else:
        for _ in range(16):
            lab.good("client1", "curl", "-sSg", "-m20", url(remote))
    assert lab.ask("server2", "/v1/traffic")["steered"] > before


@pytest.mark.parametrize(
    ("remote", "size"),
    [*((INTERNET, size) for size in (0, 1, 1471, 1472)), *((INTERNET6, size) for size in (0, 1452, 4000))],
)
def test_pings(lab: PairLab, remote: str, size: int) -> None:
    """The largest of IPv6 in fragments, which meet at one server first."""
    assert "5 received" in lab.good("client1", "ping", "-c5", "-i0.01", "-W20", "-s", str(size), remote)


@pytest.mark.parametrize("remote", REMOTES)
def test_what_is_not_plain_takes_the_other(lab: PairLab, remote: str) -> None:
    said = lab.good("client1", "traceroute", "-n", "-q1", "-w10", remote)
    assert [line.split()[1] for line in said.splitlines()[1:]] == HOPS[remote]


def test_many_conversations(lab: PairLab) -> None:
    for protocol in ("tcp", "udp"):
        with lab.held("client1", 50, protocol) as held:
            assert held["outcomes"] == {"ok": 50}


def test_flows_outlive_a_change_of_the_attachment(lab: PairLab) -> None:
    """From XDP to tc alone, under conversations that go on."""
    with lab.held("client1", 20):
        lab.end_agents(signal.SIGKILL, "server1")
        config = lab.config("server1")
        config.write_text(config.read_text().replace('attach = "xdp"', 'attach = "tc"'))  # the uplink's, too
        lab.start_agents("server1")
        before = traffic(lab)
    for remote in REMOTES:
        lab.good("client1", "curl", "-sSg", "-m20", "-o", "/dev/null", url(remote))
    assert traffic(lab)["fast_out"] == before["fast_out"]
