"""The demo's rules: facts as they should be pass, and every single thing that is wrong fails its own check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from softunicast.core.slices import Slice
from softunicast.lab.peers import Peer
from softunicast.lab.verdict import Facts, Forged, judge

SHARED = "198.51.100.10"
SLICES = {
    "server1": (Slice.parse(f"{SHARED}:2048-4095"),),
    "server2": (Slice.parse(f"{SHARED}:4096-6143"),),
}
FIRST = {"client1": 2048, "client2": 4096}
SOURCE = "10.0.0.2:9000"


def download(**different: Any) -> dict[str, Any]:
    return {
        "count": 3,
        "completed": 3,
        "failed": 0,
        "bytes": 3 << 20,
        "seconds": 0.5,
        "failures": {},
        **different,
    }


def echo(**different: Any) -> dict[str, Any]:
    return {"local": SOURCE, "count": 5, "echoed": 5, "failure": None, **different}


def peer(client: str, number: int) -> Peer:
    return Peer("tcp", SHARED, FIRST[client] + number, client)


GOOD = Facts(
    server_of={"client1": "server1", "client2": "server2"},
    slices=SLICES,
    downloads={"client1": download(), "client2": download()},
    download_peers=[peer(client, number) for client in FIRST for number in range(3)],
    here={"server1": 500, "server2": 500},
    steered={"server1": 240, "server2": 260},
    source=SOURCE,
    echoes={(client, protocol): echo() for client in FIRST for protocol in ("tcp", "udp")},
    echo_peers=[Peer(protocol, SHARED, port) for protocol in ("tcp", "udp") for port in FIRST.values()],
    forged=Forged(f"{SHARED}:6143", 3, 3, "guard_foreign", "Tried to leave ...", arrived=False),
)


def test_all_as_it_should_be() -> None:
    assert [check.what for check in judge(GOOD) if not check.passed] == []


def peers_less(facts: Facts) -> Facts:
    return replace(facts, download_peers=facts.download_peers[:-1])


def peers_swapped(facts: Facts) -> Facts:
    other = {"client1": "client2", "client2": "client1"}
    return replace(
        facts, download_peers=[one._replace(label=other[one.label]) for one in facts.download_peers]
    )


def one_outside(facts: Facts) -> Facts:
    return replace(facts, download_peers=[*facts.download_peers[:-1], peer("client2", 2048)])


def with_echo(**different: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, echoes={**facts.echoes, ("client2", "udp"): echo(**different)})


def with_forged(**different: Any) -> Callable[[Facts], Facts]:
    return lambda facts: replace(facts, forged=replace(facts.forged, **different))


DOWN, OUT = "client2: 3 downloads at once", "client2: sources seen by the internet"
STEERED, SAME = "replies that reached the other server", f"both clients as {SOURCE} at once"
FORGED = f"3 packets forged as {SHARED}:6143"


@pytest.mark.parametrize(
    ("spoil", "failed"),
    [
        (
            lambda facts: replace(
                facts,
                downloads={
                    **facts.downloads,
                    "client2": download(completed=2, failures={"curl 28: slow": 1}),
                },
            ),
            [DOWN],
        ),
        (peers_less, [OUT]),
        (one_outside, [OUT]),
        (peers_swapped, ["client1: sources seen by the internet", OUT]),
        (lambda facts: replace(facts, slices={**SLICES, "server2": ()}), [OUT]),
        (lambda facts: replace(facts, steered={"server1": 0, "server2": 500}), [STEERED]),
        (lambda facts: replace(facts, steered={"server1": 20, "server2": 20}), [STEERED]),
        (lambda facts: replace(facts, steered={"server1": 490, "server2": 490}), [STEERED]),
        (lambda facts: replace(facts, here={"server1": 0, "server2": 0}), [STEERED]),
        (with_echo(failure="timeout"), [SAME]),
        (with_echo(echoed=4), [SAME]),
        (with_echo(local="10.0.0.2:9001"), [SAME]),
        (lambda facts: replace(facts, echo_peers=facts.echo_peers[:-1]), [SAME]),
        (lambda facts: replace(facts, echoes={}, echo_peers=[]), [SAME]),
        (with_forged(arrived=True), [FORGED]),
        (with_forged(dropped=2), [FORGED]),
        (with_forged(dropped=0, reason=None, meaning=None), [FORGED]),
    ],
)
def test_each_wrong_thing_fails_its_own_check(spoil: Callable[[Facts], Facts], failed: list[str]) -> None:
    assert [check.what for check in judge(spoil(GOOD)) if not check.passed] == failed


def test_a_failed_check_says_what_was_seen() -> None:
    [check] = [check for check in judge(one_outside(GOOD)) if not check.passed]
    assert check.expected == "3 in 198.51.100.10:4096-6143 of server2"
    assert check.seen == "3 sources, ports 4096 to 6144; outside: 198.51.100.10:6144"
