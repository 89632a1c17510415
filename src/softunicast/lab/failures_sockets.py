"""Failures in which sockets play the main part: see failures.py.

Each function is one experiment on a stage of its own, to be read from top to bottom. The same situation under
`claims` is in under_claims.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial

from softunicast.kernel import links, sysctl
from softunicast.kernel.conntrack import Conntrack
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
    arrives,
    bound,
    endpoint,
    outcome,
)  # fmt: skip
from softunicast.lab.verdict import Check
from softunicast.strategies.placeholder import (
    FASTOPEN,
    PORT_RANGE,
    TCP_FASTOPEN_CONNECT,
    TCP_FASTOPEN_NO_COOKIE,
    PlaceholderLate,
    is_silent,
    late_bound,
)  # fmt: skip
from softunicast.strategies.repair import TCP_REPAIR
from softunicast.strategies.reservations import RESERVED_S, Reservations
from softunicast.strategies.strategy import Place


def failed_connect(there: Stage) -> Iterator[Check]:
    """By hand, without the deleting that the strategy does."""
    local, remote = (SHARED, PORT_FIRST), NOWHERE
    with there.strategy(Reservations, PORTS), closing(there.inside(SERVER, Conntrack)) as table:
        there.inside(SERVER, table.reserve, local, remote, RESERVED_S)
        with closing(bound(there, PORT_FIRST)) as made:
            how = outcome(partial(made.connect, (str(NOWHERE[0]), NOWHERE[1])))
        left = there.inside(SERVER, table.reserve, local, remote, RESERVED_S)
        there.inside(SERVER, table.delete, local, remote)
        deleted = there.inside(SERVER, table.reserve, local, remote, RESERVED_S)
        there.inside(SERVER, table.delete, local, remote)
    yield Check(
        "a tuple is reserved, then connect() fails", "an error", how, how in ("ENETUNREACH", "EHOSTUNREACH")
    )
    yield Check("the tuple is reserved again", "it is still taken", "free" if left else "taken", not left)
    yield Check("the same after the entry was deleted", "it is free", "free" if deleted else "taken", deleted)


def repair_bind(there: Stage) -> Iterator[Check]:
    with shared_address(there) as place, closing(there.open(SERVER)) as listener:
        listener.bind((str(SHARED), place.ports[0]))
        listener.listen()
        plain, repairing = there.open(SERVER), there.open(SERVER)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        refused = outcome(lambda: plain.bind((str(SHARED), place.ports[0])))
        repairing.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        how = outcome(lambda: repairing.bind((str(SHARED), place.ports[0])))
    yield Check(
        f"a listener has {SHARED}:{place.ports[0]} for itself; a socket binds it too",
        "EADDRINUSE",
        refused,
        refused == "EADDRINUSE",
    )
    yield Check("a socket in repair mode binds it too", "nothing stops it", how, how == "ok")


def fastopen_off(there: Stage) -> Iterator[Check]:
    """By hand: a program that does not look at what setsockopt() says."""
    listener = there.listener()
    with shared_address(there) as place:
        for setting in (1, 0):
            there.inside(SERVER, sysctl.write, FASTOPEN, setting)
            made = bound(there, place.ports[setting])
            made.setblocking(False)
            options = (TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE)
            allowed = [outcome(partial(made.setsockopt, socket.IPPROTO_TCP, one, 1)) for one in options]
            with suppress(BlockingIOError):
                made.connect(REMOTE_TEXT)
            sent = arrives(listener, ABSENT_S)
            yield Check(
                f"a placeholder, tcp_fastopen={setting}",
                "holds its port, sends nothing"
                if setting
                else "is refused the option; connect() sends a real SYN",
                f"option: {allowed[0]}; {'a connection arrived' if sent else 'nothing arrived'}",
                sent != bool(setting) and is_silent(made) == bool(setting) == (allowed[0] == "ok"),
            )
            made.close()


def overshadowing(there: Stage) -> Iterator[Check]:
    internet = there.listener(REMOTE[1], socket.SOCK_DGRAM)
    with shared_address(there) as place:
        first, second = (bound(there, place.ports[0], socket.SOCK_DGRAM) for _ in range(2))
        hows = [outcome(partial(made.connect, REMOTE_TEXT)) for made in (first, second)]
        first.send(b"from the first")
        _, source = internet.recvfrom(100)
        internet.sendto(b"an answer to the first", source)
        heard = [arrives(made, ABSENT_S) for made in (second, first)]
    yield Check(
        "two UDP sockets with SO_REUSEADDR take one 4-tuple",
        "both connect()",
        ", ".join(hows),
        hows == ["ok", "ok"],
    )
    yield Check(
        "the first sends, the internet answers",
        "the second gets the answer",
        "first" if heard[1] else "second" if heard[0] else "nobody",
        heard == [True, False],
    )


def bind_hides(there: Stage) -> Iterator[Check]:
    there.listener()
    with there.strategy(PlaceholderLate, PORTS) as strategy:
        somebody = there.open(SERVER)
        somebody.bind((str(SHARED), strategy.place.ports[0]))  # and connects nowhere
        found: set[int] = set()
        with suppress(OSError):
            while len(found) <= PORTS:
                made = there.keep(there.inside(SERVER, late_bound, strategy.place, REMOTE, 0))
                found.add(endpoint(made)[1])
    yield Check(
        f"somebody binds {SHARED}:{strategy.place.ports[0]} and connects nowhere; connect() searches {PORTS} ports",
        "it finds the others only, for every destination",
        f"{len(found)} of {PORTS}",
        found == set(strategy.place.ports[1:]),
    )


def range_ignored(there: Stage) -> Iterator[Check]:
    there.listener()
    with shared_address(there) as place:
        low, high = there.inside(SERVER, sysctl.read_range, PORT_RANGE)
        for widened in (False, True):
            if widened:
                there.inside(SERVER, sysctl.write, PORT_RANGE, f"{place.ports[0]} {high}")
            made = there.keep(there.inside(SERVER, late_bound, place, REMOTE, 0))
            port = endpoint(made)[1]
            yield Check(
                f"connect() searches {place.slice}; ip_local_port_range "
                + (f"{place.ports[0]}-{high}" if widened else f"{low}-{high}"),
                "a port of the slice" if widened else "a port that is not in the slice, and no error",
                str(port),
                (port in place.ports) == widened,
            )


# -- what they share -----------------------------------------------------------------------------------------


@contextmanager
def shared_address(there: Stage) -> Iterator[Place]:
    """The server has the address, and nothing else is set up."""
    there.inside(SERVER, links.add_loopback_address, SHARED)
    yield there.place(PORTS)  # whatever happens, the address goes with the stage
