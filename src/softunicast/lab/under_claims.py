"""The situations in which other strategies fail, under `claims`: one function for each, by the name of the failure.

Read beside failures_snat.py, failures_holders.py and failures_sockets.py. Forwarded flows and sockets play together
here, because that is the point: one table, asked by both. Sockets that `claims` serves are made by its own `socket`;
all others are outsiders, which get nothing of the slice.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Final

from softunicast.kernel import sysctl
from softunicast.kernel.abi import Reason
from softunicast.lab.failures_holders import STRAY_SEQUENCE, inject_reset
from softunicast.lab.failures_snat import MANY_PORTS, fill, sources
from softunicast.lab.stage import (
    ABSENT_S,
    NOWHERE,
    PORT_FIRST,
    PORTS,
    REMOTE,
    REMOTE_TEXT,
    SERVER,
    SHARED,
    Stage,
    accepted,
    arrives,
    connected,
    endpoint,
    outcome,
    text,
)  # fmt: skip
from softunicast.lab.verdict import Check
from softunicast.strategies.claims import Claims
from softunicast.strategies.flow_maps import EARLY_DEMUX
from softunicast.strategies.placeholder import FASTOPEN, PORT_RANGE
from softunicast.strategies.repair import TCP_REPAIR
from softunicast.strategies.strategy import Strategy

FULL: Final = "EADDRNOTAVAIL"


def full_slice(there: Stage) -> Iterator[Check]:
    there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        outcomes, _ = connected(there, PORTS + 2, ABSENT_S)
        of_socket = outcome(partial(there.inside, SERVER, strategy.connect, REMOTE))
        counted = refused(strategy)
    yield Check(
        f"{PORTS + 2} clients, a slice of {PORTS} ports, one destination",
        f"{PORTS} get through, the others are told at once",
        ", ".join(outcomes),
        outcomes == ["ok"] * PORTS + ["EHOSTUNREACH"] * 2,
    )
    yield Check("a socket to the same destination", "is told so too", of_socket, of_socket == FULL)
    yield Check("what the operator sees of it", "a reason by name", f"slice_full={counted}", counted == 3)


def silent_rewrite(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        connected(there, 1, ABSENT_S)
        _, taken = accepted(listener)
        made = member(there, strategy, taken[1])
        how = outcome(partial(made.connect, REMOTE_TEXT))
        outsider = outcome(partial(there.open(SERVER).bind, (str(SHARED), taken[1])))
        other = there.keep(there.inside(SERVER, strategy.connect, REMOTE))
        _, of_socket = accepted(listener)
        outcomes, _ = connected(there, PORTS - 1, ABSENT_S, 41_000)
        seen = [accepted(listener)[1] for _ in range(outcomes.count("ok"))]
        says = endpoint(other)
    yield Check(
        f"a socket binds {text(taken)}, which a flow has, and connects", "it is told", how, how == FULL
    )
    yield Check("a program outside the agreement binds it", "it is told", outsider, outsider == "EPERM")
    yield Check(
        "another socket connects, then clients until the slice is full",
        "each five-tuple once, in the slice, the socket's as it says",
        ", ".join(map(text, [taken, of_socket, *seen])),
        of_socket == says and {port for _, port in (taken, of_socket, *seen)} == set(strategy.place.ports),
    )


def nat_search(there: Stage) -> Iterator[Check]:
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


def failed_connect(there: Stage) -> Iterator[Check]:
    with there.strategy(Claims, PORTS) as strategy:
        attempts = [
            outcome(partial(there.inside, SERVER, strategy.connect, NOWHERE)) for _ in range(PORTS * 2)
        ]
    yield Check(
        f"connect() fails {PORTS * 2} times, a slice of {PORTS} ports",
        "each time for its own reason: no port is lost",
        ", ".join(sorted(set(attempts))),
        set(attempts) == {errno.errorcode[errno.ENETUNREACH]},
    )


def repair_bind(there: Stage) -> Iterator[Check]:
    there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        listener = there.keep(there.inside(SERVER, strategy.socket))
        listener.bind((str(SHARED), PORT_FIRST))
        listener.listen()
        repairing = there.open(SERVER)
        repairing.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        how = outcome(partial(repairing.bind, (str(SHARED), PORT_FIRST)))
        outcomes, _ = connected(there, PORTS, ABSENT_S)
    yield Check("a socket in repair mode binds the port of a listener", "it is told", how, how == "EPERM")
    yield Check(
        f"a listener has {SHARED}:{PORT_FIRST}; {PORTS} clients, a slice of {PORTS} ports",
        "flows go round it, the last one is told",
        ", ".join(outcomes),
        outcomes == ["ok"] * (PORTS - 1) + ["EHOSTUNREACH"],
    )


def early_demux(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        on = there.inside(SERVER, sysctl.read, EARLY_DEMUX)
        outcomes, _ = connected(there, 1, ABSENT_S)
        made = member(there, strategy, accepted(listener)[1][1])
        there.listener(REMOTE[1] + 1)
        how = outcome(partial(made.connect, (REMOTE_TEXT[0], REMOTE[1] + 1)))
    yield Check(
        f"a flow and a socket on one port, two destinations, tcp_early_demux={on}",
        "both are answered",
        f"{outcomes[0]}, {how}",
        [*outcomes, how] == ["ok", "ok"] and on == 1,
    )


def fastopen_off(there: Stage) -> Iterator[Check]:
    there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        there.inside(SERVER, sysctl.write, FASTOPEN, 0)
        outcomes, _ = connected(there, 1, ABSENT_S)
        how = outcome(partial(there.inside, SERVER, strategy.connect, REMOTE))
    yield Check(
        "a flow and a socket, tcp_fastopen=0",
        "no placeholder is needed",
        f"{outcomes[0]}, {how}",
        [*outcomes, how] == ["ok", "ok"],
    )


def restart(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        assert isinstance(strategy, Claims)
        _, [client, *_] = connected(there, PORTS, ABSENT_S)
        peer, _ = accepted(listener)
        made = there.keep(there.inside(SERVER, strategy.socket))
        strategy.datapath.close()  # what the end of a process does
        client.sendall(b"still here")
        heard = peer.recv(100)
        outcomes, _ = connected(there, 1, ABSENT_S, 41_000)
        how = outcome(partial(made.connect, REMOTE_TEXT))
    yield Check(
        "flows have every port; the process that set it all up ends",
        "they live on, nobody else gets a tuple of theirs",
        f"{heard.decode()!r}, another client: {outcomes[0]}, a socket: {how}",
        heard == b"still here" and [*outcomes, how] == ["EHOSTUNREACH", FULL],
    )


def overshadowing(there: Stage) -> Iterator[Check]:
    internet = there.listener(REMOTE[1], socket.SOCK_DGRAM)
    with there.strategy(Claims, PORTS) as strategy:
        made = [there.keep(there.inside(SERVER, strategy.socket, socket.SOCK_DGRAM)) for _ in range(2)]
        clients = [there.client(40_000 + number, socket.SOCK_DGRAM) for number in range(PORTS - 2)]
        wrong = 0
        for number, each in enumerate([*made, *clients]):
            each.connect(REMOTE_TEXT)
            each.send(b"%d" % number)
            data, source = internet.recvfrom(100)
            internet.sendto(data, source)
            wrong += not arrives(each) or each.recv(100) != b"%d" % number
        others = [arrives(each, 0) for each in (*made, *clients)]
        third = member(there, strategy, endpoint(made[0])[1], socket.SOCK_DGRAM)
        how = outcome(partial(third.connect, REMOTE_TEXT))
    yield Check(
        f"2 UDP sockets and {PORTS - 2} clients to one destination, a slice of {PORTS} ports",
        "each gets its own answer",
        f"{wrong} without, {sum(others)} with one too many",
        not wrong and not any(others),
    )
    yield Check("a third socket takes the 4-tuple of the first", "it is told", how, how == FULL)


def bind_hides(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        somebody = there.keep(there.inside(SERVER, strategy.socket))
        somebody.bind((str(SHARED), PORT_FIRST))
        outcomes, _ = connected(there, PORTS, ABSENT_S)
        seen = [accepted(listener)[1] for _ in range(outcomes.count("ok"))]
    yield Check(
        f"somebody binds {SHARED}:{PORT_FIRST} and connects nowhere; {PORTS} clients",
        f"all {PORTS} ports serve: no conversation has that one",
        ", ".join(map(text, seen)),
        len(set(seen)) == PORTS,
    )


def range_ignored(there: Stage) -> Iterator[Check]:
    there.listener()
    with there.strategy(Claims, PORTS) as strategy:
        low, high = there.inside(SERVER, sysctl.read_range, PORT_RANGE)
        with closing(there.inside(SERVER, strategy.connect, REMOTE)) as made:
            port = endpoint(made)[1]
    yield Check(
        f"a socket connects from {strategy.place.slice}; ip_local_port_range {low}-{high}",
        "a port of the slice",
        str(port),
        port in strategy.place.ports,
    )


# -- what they share -----------------------------------------------------------------------------------------


def member(there: Stage, strategy: Strategy, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket in the agreement, bound to a port of the shared address."""
    made = there.keep(there.inside(SERVER, strategy.socket, kind))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((str(SHARED), port))
    return made


def refused(strategy: Strategy) -> int:
    """Packets and sockets for which no port was left."""
    assert isinstance(strategy, Claims)
    return sum(drop.packets for drop in strategy.datapath.drops() if drop.reason is Reason.SLICE_FULL)
