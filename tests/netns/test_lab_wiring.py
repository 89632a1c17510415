"""The lab `pair` without agents is wired as drawn, and its internet and probes do their part."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softunicast.kernel import namespaces, offload
from softunicast.lab import build, pair, peers, processes
from softunicast.lab.pair import INTERNET
from softunicast.lab.state import Lab

TIMEOUT_S = 30.0
DOWNLOADS = 200


@pytest.fixture(scope="module")
def lab(labs_apart: Path) -> Iterator[Lab]:
    with build.running(pair.pair(), f"t{secrets.token_hex(4)}", agents=False) as lab:
        yield lab


def run(lab: Lab, node: str, command: str) -> str:
    child = processes.popen(lab, node, command.split())
    output, _ = child.communicate(timeout=TIMEOUT_S)
    assert child.returncode == 0, f"{command} in {node}: {output}"
    return output


def probe(lab: Lab, node: str, *arguments: str) -> Any:
    output, _ = processes.probe(lab, node, arguments).communicate(timeout=TIMEOUT_S)
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize(
    ("node", "address"),
    [
        ("client1", "10.0.0.1"),
        ("client2", "10.0.0.1"),
        ("server1", "192.0.2.2"),
        ("server1", "192.0.2.254"),
        ("server1", INTERNET),
        ("server2", INTERNET),
        ("internet", "192.0.2.1"),
    ],
)
def test_neighbours_and_routes(lab: Lab, node: str, address: str) -> None:
    assert "1 received" in run(lab, node, f"ping -c 1 -W 20 {address}")


def test_servers_do_not_forward_clients_by_themselves(lab: Lab) -> None:
    ping = processes.popen(lab, "client1", ["ping", "-c", "1", "-W", "1", INTERNET])
    assert "0 received" in ping.communicate(timeout=TIMEOUT_S)[0]


def test_router_spreads_the_block_over_both_servers(lab: Lab) -> None:
    run(lab, "router", "ping -c 1 192.0.2.1")
    run(lab, "router", "ping -c 1 192.0.2.2")
    before = [_sent(lab, port) for port in ("s1", "s2")]
    probe(
        lab,
        "internet",
        *("hold", "--protocol", "udp", "--destination", f"{pair.SHARED}:4000"),
        *("--count", "400", "--timeout-s", "0.1"),
    )
    after = [_sent(lab, port) for port in ("s1", "s2")]

    counts = [late - early for late, early in zip(after, before, strict=True)]
    assert min(counts) > 100
    assert sum(counts) >= 400


def test_internet_answers_many_at_once(lab: Lab) -> None:
    peers.forget(lab)
    arguments = (
        "download",
        "--url",
        f"http://{INTERNET}",
        "--count",
        str(DOWNLOADS),
        "--bytes",
        str(1 << 17),
    )
    children = [processes.probe(lab, node, (*arguments, "--label", node)) for node in ("server1", "server2")]
    answers = [json.loads(child.communicate(timeout=60)[0]) for child in children]

    assert [answer["failures"] for answer in answers] == [{}, {}]
    assert [answer["completed"] for answer in answers] == [DOWNLOADS, DOWNLOADS]
    found = [peer for peer in peers.seen(lab) if peer.label == "server1"]
    assert len(found) == DOWNLOADS
    assert {peer.address for peer in found} == {"192.0.2.1"}


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_echo_from_a_chosen_port(lab: Lab, protocol: str) -> None:
    destination = f"{INTERNET}:{pair.ECHO_PORT}"
    common = ("--destination", destination, "--protocol", protocol)
    answer = probe(lab, "server1", "echo", "--source-port", "4567", "--count", "5", *common)

    assert (answer["local"], answer["echoed"], answer["failure"]) == ("192.0.2.1:4567", 5, None)
    assert peers.Peer(protocol, "192.0.2.1", 4567) in peers.seen(lab)


def test_a_forged_packet_leaves_when_nobody_guards(lab: Lab) -> None:
    source = ("--source", "192.0.2.99:1234")
    probe(lab, "server1", "forge", *source, "--destination", f"{INTERNET}:{pair.ECHO_PORT}")

    forged = peers.Peer("udp", "192.0.2.99", 1234)
    assert processes.wait_until(lambda: forged in peers.seen(lab), TIMEOUT_S)


def test_only_the_internet_sends_complete_checksums(lab: Lab) -> None:
    assert not namespaces.run_in(lab.namespace("internet"), offload.tx_checksum, "eth0")
    assert namespaces.run_in(lab.namespace("client1"), offload.tx_checksum, "eth0")


def test_the_host_has_no_device_of_it(lab: Lab) -> None:
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in links.splitlines() if "sulab" in line or "uplink" in line]


def _sent(lab: Lab, port: str) -> int:
    [link] = json.loads(run(lab, "router", f"ip -json -s link show dev {port}"))
    packets = link["stats64"]["tx"]["packets"]
    assert isinstance(packets, int)
    return packets
