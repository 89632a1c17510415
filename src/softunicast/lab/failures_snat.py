"""Failures of `snat`, translation by a netfilter rule: see failures.py.

Each function is one experiment on a stage of its own, to be read from top to bottom. The same situation under
`claims` is in under_claims.py.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from softunicast.lab.stage import (
    ABSENT_S,
    CLIENT,
    CLIENT_ADDRESS,
    PORTS,
    REMOTE,
    REMOTE_TEXT,
    SERVER,
    SHARED,
    Stage,
    accepted,
    arrives,
    bound,
    connected,
    endpoint,
    outcome,
    text,
)  # fmt: skip
from softunicast.lab.verdict import Check
from softunicast.strategies.snat import Snat
from softunicast.strategies.strategy import Endpoint

MANY_PORTS: Final = 2048
_SO_RCVBUFFORCE: Final = 33


def full_slice(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Snat, PORTS):
        outcomes, _ = connected(there, PORTS + 2, ABSENT_S)
        seen = [accepted(listener)[1] for _ in range(outcomes.count("ok"))]
        refused = there.inside(SERVER, statistic, "insert_failed"), there.inside(SERVER, statistic, "drop")
    yield Check(
        f"{PORTS + 2} clients, a slice of {PORTS} ports, one destination",
        f"{PORTS} get through, the others hear nothing at all",
        ", ".join(outcomes),
        outcomes == ["ok"] * PORTS + ["timed out"] * 2 and len(set(seen)) == PORTS,
    )
    yield Check(
        "what the operator sees of it",
        "counters of connection tracking, without a name",
        f"insert_failed={refused[0]} drop={refused[1]}",
        min(refused) > 0,
    )


def silent_rewrite(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Snat, PORTS) as strategy:
        _, [client] = connected(there, 1, ABSENT_S)
        peer, taken = accepted(listener)
        made = bound(there, taken[1])
        how = outcome(partial(made.connect, REMOTE_TEXT))
        _, seen = accepted(listener)
        says = endpoint(made)
        peer.close()
        client.close()
    yield Check(
        f"a socket binds {text(taken)}, which a flow to the same destination has",
        "connect() succeeds",
        how,
        how == "ok",
    )
    yield Check(
        "which port it has",
        "getsockname() says one, the internet sees another",
        f"{text(says)}, {text(seen)}",
        says != seen,
    )
    yield Check(
        f"the slice is {strategy.place.slice}",
        "the port is outside: the reply goes to another server",
        text(seen),
        seen[0] == SHARED and seen[1] not in strategy.place.ports,
    )


def nat_search(there: Stage) -> Iterator[Check]:
    receiver = there.listener(REMOTE[1], socket.SOCK_DGRAM)
    with there.strategy(Snat, MANY_PORTS):
        fill(there, receiver, MANY_PORTS)
        held = len(sources(receiver))
        refused = there.inside(SERVER, statistic, "insert_failed")
    yield Check(
        f"{MANY_PORTS} clients (UDP), a slice of {MANY_PORTS} ports, one destination",
        "some are refused while ports are free",
        f"{held} got through, {MANY_PORTS - held} ports are free, {refused} insertions failed",
        held < MANY_PORTS and refused > 0,
    )


# -- what they share -----------------------------------------------------------------------------------------


def fill(there: Stage, receiver: socket.socket, clients: int) -> None:
    """A datagram from each of so many client ports."""
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
    there.inside(CLIENT, _fill, random.sample(range(10_000, 60_000), clients))


def _fill(ports: list[int]) -> None:
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.bind((str(CLIENT_ADDRESS), port))
            made.sendto(b"x", REMOTE_TEXT)


def sources(receiver: socket.socket) -> set[Endpoint]:
    """Whom the internet has heard from, until nothing more comes."""
    heard: set[Endpoint] = set()
    while arrives(receiver, ABSENT_S):
        _, (address, port) = receiver.recvfrom(100)
        heard.add((IPv4Address(address), port))
    return heard


def statistic(name: str) -> int:
    """A counter of connection tracking, over all cores, in the thread's namespace."""
    head, *rows = Path("/proc/thread-self/net/stat/nf_conntrack").read_text().splitlines()
    column = head.split().index(name)
    return sum(int(row.split()[column], 16) for row in rows)
