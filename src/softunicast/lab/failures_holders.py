"""Failures of strategies that hold ports for forwarded flows, by entries or by sockets: see failures.py.

Each function is one experiment on a stage of its own, to be read from top to bottom. The same situation under
`claims` is in under_claims.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from typing import Final

from softunicast.kernel import sysctl
from softunicast.kernel.conntrack import tracked
from softunicast.lab import forge, processes
from softunicast.lab.stage import (
    ABSENT_S,
    ARRIVES_S,
    CLIENT_ADDRESS,
    INTERNET,
    PORTS,
    REMOTE,
    REMOTE_TEXT,
    SERVER,
    SHARED,
    Stage,
    accepted,
    arrives,
    bound,
    endpoint,
    outcome,
)  # fmt: skip
from softunicast.lab.verdict import Check
from softunicast.strategies.flow_maps import EARLY_DEMUX
from softunicast.strategies.placeholder import PlaceholderLate, PlaceholderRules
from softunicast.strategies.reservations import Reservations
from softunicast.strategies.strategy import Endpoint

STRAY_SEQUENCE: Final = 12_345


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


def early_demux(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    for setting, arrived in ((1, False), (0, True)):
        with there.strategy(PlaceholderRules, PORTS) as strategy:
            there.inside(SERVER, sysctl.write, EARLY_DEMUX, setting)
            client = there.client()
            there.inside(SERVER, strategy.forward, endpoint(client), REMOTE)
            client.settimeout(ABSENT_S)
            how = outcome(partial(client.connect, REMOTE_TEXT))
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
        how = outcome(partial(client.connect, REMOTE_TEXT))
    yield Check(
        f"the same rewritten at the uplink's ingress, tcp_early_demux={on}",
        "they arrive",
        how,
        how == "ok" and on == 1,
    )


def restart(there: Stage) -> Iterator[Check]:
    listener = there.listener()
    with there.strategy(PlaceholderLate, 1) as first:
        client = there.client()
        port = there.inside(SERVER, first.forward, endpoint(client), REMOTE)
        client.connect(REMOTE_TEXT)
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


# -- what they share -----------------------------------------------------------------------------------------


def begin(made: socket.socket) -> None:
    made.setblocking(False)
    made.connect(REMOTE_TEXT)


def inject_reset(there: Stage, to: Endpoint) -> None:
    """From the internet's end of the five-tuple, as anybody could send it who guesses that."""
    raw = there.open(INTERNET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    raw.sendto(forge.reset(REMOTE_TEXT, (str(to[0]), to[1]), STRAY_SEQUENCE), (str(to[0]), 0))
