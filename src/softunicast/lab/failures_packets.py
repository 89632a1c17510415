"""Failures in which forwarded packets play the main part: see failures.py.

Each function is one experiment on a stage of its own, to be read from top to bottom. `claims` has the same situation
in the function after it.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from softunicast.kernel import sysctl
from softunicast.kernel.abi import Reason
from softunicast.kernel.conntrack import Conntrack
from softunicast.lab import forge, processes
from softunicast.lab.stage import (
    ABSENT_S,
    ARRIVES_S,
    CLIENT,
    CLIENT_ADDRESS,
    INTERNET,
    PORT_FIRST,
    REMOTE,
    SERVER,
    SHARED,
    Stage,
    accepted,
    arrives,
    endpoint,
    outcome,
    text,
)  # fmt: skip
from softunicast.lab.verdict import Check
from softunicast.strategies.claims import Claims
from softunicast.strategies.flow_maps import EARLY_DEMUX
from softunicast.strategies.placeholder import PlaceholderLate, PlaceholderRules
from softunicast.strategies.reservations import Reservations
from softunicast.strategies.snat import Snat
from softunicast.strategies.strategy import Endpoint

PORTS: Final = 4
MANY_PORTS: Final = 2048
STRAY_SEQUENCE: Final = 12_345
_SO_RCVBUFFORCE: Final = 33
_REMOTE: Final = (str(REMOTE[0]), REMOTE[1])


def connected(
    there: Stage, count: int, timeout_s: float, first: int = 40_000
) -> tuple[list[str], list[socket.socket]]:
    """Clients one after the other: how each fared, and the sockets of those that got through."""
    outcomes, open_ = [], []
    for number in range(count):
        made = there.client(first + number)
        made.settimeout(timeout_s)
        outcomes.append(outcome(partial(made.connect, _REMOTE)))
        if outcomes[-1] == "ok":
            open_.append(made)
    return outcomes, open_


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


def full_slice_claims(there: Stage) -> Iterator[Check]:
    there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        assert isinstance(strategy, Claims)
        outcomes, _ = connected(there, PORTS + 2, ABSENT_S)
        [counted] = [drop.packets for drop in strategy.datapath.drops() if drop.reason is Reason.SLICE_FULL]
    yield Check(
        f"{PORTS + 2} clients, a slice of {PORTS} ports, one destination",
        f"{PORTS} get through, the others are told at once",
        ", ".join(outcomes),
        outcomes == ["ok"] * PORTS + ["EHOSTUNREACH"] * 2,
    )
    yield Check("what the operator sees of it", "a reason by name", f"slice_full={counted}", counted == 2)


def silent_rewrite(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Snat, PORTS) as strategy:
        _, [client] = connected(there, 1, ABSENT_S)
        peer, taken = accepted(listener)
        made = bound(there, taken[1])
        how = outcome(partial(made.connect, _REMOTE))
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


def silent_rewrite_claims(there: Stage) -> Iterator[Check]:
    """The socket comes first here: a flow goes round it."""
    listener = there.listener()
    with there.strategy(Claims, PORTS):
        made = bound(there, PORT_FIRST)
        made.connect(_REMOTE)
        _, of_socket = accepted(listener)
        outcomes, _ = connected(there, PORTS, ABSENT_S)
        seen = [accepted(listener)[1] for _ in range(outcomes.count("ok"))]
        says = endpoint(made)
    yield Check(
        f"a socket on {text(says)}; {PORTS} clients to the same destination",
        f"{PORTS - 1} flows get the other ports, the last one is told",
        ", ".join(outcomes),
        outcomes == ["ok"] * (PORTS - 1) + ["EHOSTUNREACH"],
    )
    yield Check(
        "what the internet sees",
        "each five-tuple once, the socket's as it says",
        ", ".join(map(text, [of_socket, *seen])),
        of_socket == says and len({of_socket, *seen}) == PORTS,
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


def nat_search_claims(there: Stage) -> Iterator[Check]:
    receiver = there.listener(REMOTE[1], socket.SOCK_DGRAM)
    with there.strategy(Claims, MANY_PORTS):
        fill(there, receiver, MANY_PORTS)
        held = len(sources(receiver))
    yield Check(
        f"{MANY_PORTS} clients (UDP), a slice of {MANY_PORTS} ports, one destination",
        "every one gets a port, to the last",
        f"{held} different ports",
        held == MANY_PORTS,
    )


def stray_rst(there: Stage) -> Iterator[Check]:
    with there.strategy(Reservations, PORTS) as strategy:
        port = there.inside(SERVER, strategy.forward, (CLIENT_ADDRESS, 40_000), REMOTE)
        before = there.inside(SERVER, tracked)
        inject_reset(there, (SHARED, port or 0))
        gone = processes.wait_until(lambda: there.inside(SERVER, tracked) == 0, ARRIVES_S)
    yield Check(
        f"an entry holds {SHARED}:{port}; an RST arrives for it, sequence {STRAY_SEQUENCE}",
        "the entry is gone, and with it the lock",
        f"{before} entry before, {0 if gone else before} after",
        before == 1 and gone,
    )


def stray_rst_claims(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        assert isinstance(strategy, Claims)
        _, [client] = connected(there, 1, ABSENT_S)
        peer, seen = accepted(listener)
        inject_reset(there, seen)
        client.sendall(b"still here")
        heard = peer.recv(100)
        states = [flow.state for flow in strategy.datapath.flows(10)[1]]
    yield Check(
        f"a flow has {text(seen)}; an RST arrives for it, sequence {STRAY_SEQUENCE}",
        "the flow lives on",
        f"{heard.decode()!r}, {', '.join(states)}",
        heard == b"still here" and states == ["established"],
    )


def early_demux(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    for setting, arrived in ((1, False), (0, True)):
        with there.strategy(PlaceholderRules, PORTS) as strategy:
            there.inside(SERVER, sysctl.write, EARLY_DEMUX, setting)
            client = there.client()
            there.inside(SERVER, strategy.forward, endpoint(client), REMOTE)
            client.settimeout(ABSENT_S)
            how = outcome(partial(client.connect, _REMOTE))
            answered = arrives(listener, 0)
            if answered:
                accepted(listener)[0].close()
        yield Check(
            f"a flow whose replies are routed by mark, tcp_early_demux={setting}",
            "its replies arrive" if arrived else "its replies find the placeholder and are dropped",
            how,
            (how == "ok") == arrived,
        )
    with there.strategy(PlaceholderLate, PORTS) as strategy:
        client = there.client()
        there.inside(SERVER, strategy.forward, endpoint(client), REMOTE)
        on = there.inside(SERVER, sysctl.read, EARLY_DEMUX)
        how = outcome(partial(client.connect, _REMOTE))
    yield Check(
        f"the same rewritten at the uplink's ingress, tcp_early_demux={on}",
        "they arrive",
        how,
        how == "ok" and on == 1,
    )


def early_demux_claims(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Claims, PORTS):
        on = there.inside(SERVER, sysctl.read, EARLY_DEMUX)
        outcomes, _ = connected(there, 1, ABSENT_S)
        made = bound(there, accepted(listener)[1][1])
        other = there.listener(REMOTE[1] + 1)
        how = outcome(partial(made.connect, (_REMOTE[0], REMOTE[1] + 1)))
        accepted(other)
    yield Check(
        f"a flow and a socket on one port, two destinations, tcp_early_demux={on}",
        "both are answered",
        f"{outcomes[0]}, {how}",
        [*outcomes, how] == ["ok", "ok"] and on == 1,
    )


def restart(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(PlaceholderLate, 1) as first:
        client = there.client()
        port = there.inside(SERVER, first.forward, endpoint(client), REMOTE)
        client.connect(_REMOTE)
        accepted(listener)
        assert isinstance(first, PlaceholderLate)
        first.let_go()  # what the end of a process does; the rules and the client stay
        made = bound(there, port or 0)
        how = outcome(partial(there.inside, SERVER, begin, made))
    yield Check(
        f"a flow has {SHARED}:{port}, its holder's process ends, a socket takes that tuple",
        "connect() sends from a tuple that is in use",
        how,
        how == "EINPROGRESS",
    )


def restart_claims(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        assert isinstance(strategy, Claims)
        _, [client, *_] = connected(there, PORTS, ABSENT_S)
        peer, _ = accepted(listener)
        strategy.datapath.close()  # what the end of a process does
        client.sendall(b"still here")
        heard = peer.recv(100)
        outcomes, _ = connected(there, 1, ABSENT_S, 41_000)
    yield Check(
        "flows have every port; the process that set it all up ends",
        "they live on, nobody else gets a tuple of theirs",
        f"{heard.decode()!r}, another client: {outcomes[0]}",
        heard == b"still here" and outcomes == ["EHOSTUNREACH"],
    )


# -- what they share -----------------------------------------------------------------------------------------


def bound(there: Stage, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket of the server on a port of the shared address."""
    made = there.open(SERVER, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((str(SHARED), port))
    return made


def begin(made: socket.socket) -> None:
    made.setblocking(False)
    made.connect(_REMOTE)


def inject_reset(there: Stage, to: Endpoint) -> None:
    """From the internet's end of the five-tuple, as anybody could send it who guesses that."""
    raw = there.open(INTERNET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.sendto(forge.reset(_REMOTE, (str(to[0]), to[1]), STRAY_SEQUENCE), (str(to[0]), 0))


def fill(there: Stage, receiver: socket.socket, clients: int) -> None:
    """A datagram from each of so many client ports."""
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
    there.inside(CLIENT, _fill, random.sample(range(10_000, 60_000), clients))


def _fill(ports: list[int]) -> None:
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.bind((str(CLIENT_ADDRESS), port))
            made.sendto(b"x", _REMOTE)


def sources(receiver: socket.socket) -> set[Endpoint]:
    """Whom the internet has heard from, until nothing more comes."""
    heard: set[Endpoint] = set()
    while arrives(receiver, ABSENT_S):
        _, (address, port) = receiver.recvfrom(100)
        heard.add((IPv4Address(address), port))
    return heard


def tracked() -> int:
    """Connections tracked in the thread's namespace."""
    with closing(Conntrack()) as table:
        return len(table.entries())


def statistic(name: str) -> int:
    """A counter of connection tracking, over all cores, in the thread's namespace."""
    head, *rows = Path("/proc/thread-self/net/stat/nf_conntrack").read_text().splitlines()
    column = head.split().index(name)
    return sum(int(row.split()[column], 16) for row in rows)
