"""Scanners and packet makers from a client: nmap, hping3, ping. What they say of the destination is what they would
say without a NAT in between, and what is no conversation at all is dropped by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count

import pytest
from tests.netns.pair_lab import PairLab
from tests.netns.tools import CLIENTS, STRAYS, check_either_server, counted, make_quick

from softunicast.lab.pair import ECHO_PORT, HTTP_PORT, INTERNET, SERVER_OF

PORTS = 600
CLOSED = 7000


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    return make_quick(make_pair())


def scan(lab: PairLab, client: str, *how: str) -> dict[str, str]:
    """The state of each port that nmap names, "other": of the many it does not."""
    said = lab.good(client, "nmap", "-n", "-Pn", "--max-retries", "3", *how, INTERNET)
    states = dict(re.findall(r"^(\d+)/\w+ +(\S+)", said, re.MULTILINE))
    if shown := re.search(r"Not shown: \d+ (\S+)", said):
        states["other"] = shown[1]
    return states


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("how", ["-sT", "-sS"])
def test_scan_of_tcp(lab: PairLab, client: str, how: str) -> None:
    """By connect(), and by raw SYNs that the client's kernel resets when they are answered."""
    with counted(lab) as grown:
        states = scan(lab, client, how, f"-p1-{PORTS}")
    assert states == {str(ECHO_PORT): "open", str(HTTP_PORT): "open", "other": "closed"}
    assert grown.reasons() <= STRAYS
    assert grown.traffic[SERVER_OF[client]]["new_flow"] > PORTS * 0.9, "few ports are met again"
    assert 0.25 * grown.of("in") < grown.of("steered") < 0.75 * grown.of("in")


def test_scan_of_udp(lab: PairLab) -> None:
    """Ports where nobody listens are known by the errors that come back. The router sends all errors of one source to
    the same server: it is the wrong one for one of the clients."""
    with counted(lab) as grown:
        for client in CLIENTS:
            states = scan(lab, client, "-sU", "-p1-100", "--min-rate", "500")
            assert states == {str(ECHO_PORT): "open", "other": "closed"}
    assert grown.reasons() <= STRAYS
    assert grown.of("in") >= 200
    assert grown.of("steered") >= 99


def test_scan_of_the_shared_address(lab: PairLab) -> None:
    """From the internet, over ports of both servers and of nobody, none of which a client has: nothing answers, and
    each SYN is counted where it ended."""
    slices = [lab.slice_of(server) for server in SERVER_OF.values()]
    used = {
        int(local.rpartition(":")[2]) for server in SERVER_OF.values() for *_, local, _ in lab.flows(server)
    }
    ports = [
        str(port) for held in slices for port in range(held.port_first, held.port_last) if port not in used
    ]
    ports = [*ports[:5], *ports[-5:], "60001", "60002"]
    with counted(lab) as grown:
        said = lab.good(
            "internet",
            *("nmap", "-n", "-Pn", "-sS", "--max-retries", "0", "--max-rtt-timeout", "100ms"),
            *("-p", ",".join(ports), str(slices[0].address)),
        )
    assert re.findall(r"^(\d+)/tcp +filtered ", said, re.MULTILINE) == sorted(ports, key=int), said
    assert grown.reasons() == {"unsolicited", "no_owner"}
    assert sum(drops.get("unsolicited", 0) for drops in grown.drops.values()) == 10
    assert sum(drops.get("no_owner", 0) for drops in grown.drops.values()) == 2


SOURCES = count(20_000, 100)


def hping(lab: PairLab, client: str, *how: str) -> tuple[int, str]:
    """How many of ten packets were answered, and what hping3 printed. It would choose its source ports from few, and
    meet what it has opened before."""
    source = ("-s", str(next(SOURCES)))
    done = lab.run(client, "hping3", "-n", "-c", "10", "-i", "u2000", *source, *how, INTERNET)
    received = re.search(r"(\d+) packets received", done.complaint)
    assert received, done
    return int(received[1]), done.output


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    ("how", "answer"),
    [
        (("-S", "-p", str(HTTP_PORT)), "flags=SA"),
        (("-S", "-p", str(CLOSED)), "flags=RA"),
        (("-S", "-P", "-U", "-p", str(HTTP_PORT)), "flags=SA"),  # PSH and URG, too
        (("-S", "-X", "-Y", "-p", str(HTTP_PORT)), "flags=SA"),  # and both of ECN
        (("-2", "-p", str(CLOSED)), "ICMP Port Unreachable"),
        (("-2", "-p", str(CLOSED), "-d", "1471"), "ICMP Port Unreachable"),
        (("-1",), "icmp_seq="),
        (("-1", "-d", "1"), "icmp_seq="),
        (("-1", "-d", "1471"), "icmp_seq="),
    ],
    ids=" ".join,
)
def test_hping_is_answered(lab: PairLab, client: str, how: tuple[str, ...], answer: str) -> None:
    with counted(lab) as grown:
        received, said = hping(lab, client, *how)
    assert received >= 5, f"on a busy machine it does not wait for the last ones: {said}"
    assert said.count(answer) >= received, said
    assert grown.of("out") >= 10
    assert grown.of("in") >= 10
    assert grown.reasons() <= STRAYS, "the client's own kernel may reset what hping opened"


@pytest.mark.parametrize(
    "flags", ["-A", "-F", "-R", "-FPU", "-SA", "-SR", "-SFRPAU", "-Y"], ids=lambda flags: str(flags)
)
def test_flags_that_begin_nothing(lab: PairLab, flags: str) -> None:
    """Dropped by name: a stranger to this server's flows, of which the internet never hears."""
    how = [f"-{flag}" for flag in flags.lstrip("-")]
    with counted(lab) as grown:
        received, said = hping(lab, "client1", "-p", str(HTTP_PORT), *how)
    assert received == 0, said
    assert grown.drops == {"server1": {"no_flow": 10}, "server2": {}}
    assert (grown.of("out"), grown.of("new_flow")) == (0, 0)


def test_no_flags_at_all(lab: PairLab) -> None:
    with counted(lab) as grown:
        assert hping(lab, "client2", "-p", str(HTTP_PORT))[0] == 0
    assert grown.drops == {"server1": {}, "server2": {"no_flow": 10}}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize(
    "size",
    [
        *(2, 3, 9, 63, 64, 65, 511, 1001, 1470, 1471),
        *(1473, 4000, 65507),  # in fragments
    ],
)
def test_ping_of_odd_and_large_sizes(lab: PairLab, client: str, size: int) -> None:
    """Without DF. Every byte is compared by ping itself."""
    said = lab.run(
        client, "ping", "-n", "-c4", "-i0.01", "-W1", "-p", "5a0f", "-M", "dont", "-s", str(size), INTERNET
    )
    assert "4 received" in said.output, said
    assert "wrong data" not in said.output


@pytest.mark.parametrize("client", CLIENTS)
def test_a_flood_of_pings(lab: PairLab, client: str) -> None:
    with counted(lab) as grown:
        said = lab.good(client, "ping", "-n", "-q", "-f", "-c", "1000", "-s", "999", INTERNET)
    assert re.search(r"1000 packets transmitted, 1000 received, 0% packet loss", said), said
    assert grown.reasons() == set()


def test_a_flood_of_syns(lab: PairLab) -> None:
    """As fast as it can for a moment: every packet leaves, is answered, or has its reason counted. The last of
    these tests: the slice is full afterwards."""
    with counted(lab) as grown:
        lab.run("client1", "hping3", "-n", "-S", "-p", str(HTTP_PORT), "-c", "5000", "-i", "u20", INTERNET)
    refused = sum(grown.drops["server1"].values())
    assert grown.traffic["server1"]["out"] + refused >= 5000
    assert grown.reasons() <= {"no_flow", "slice_full"}
    check_either_server(grown, "client1")
