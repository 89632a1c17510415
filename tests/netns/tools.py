"""What the tests with people's own tools share: the same lab with routers that answer every packet, and the
counters of both servers before and after a tool ran.

Nothing here knows a tool: each test says itself what its tool has to print.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tests.netns.pair_lab import TIMEOUT_S, PairLab, eventually

from softunicast.lab.pair import SERVER_OF

CLIENTS: Final = tuple(SERVER_OF)
RESEND_S: Final = 1.0  # much longer than any answer takes
# A tool's own strays: what it sends in the middle of no conversation, or to see whether something answers.
STRAYS: Final = {"no_flow", "protocol", "hop_limit"}


@dataclass
class Grown:
    """By how much the counters of each server grew while a tool ran; filled when it has ended."""

    traffic: dict[str, dict[str, int]] = field(default_factory=dict)
    drops: dict[str, dict[str, int]] = field(default_factory=dict)

    def of(self, name: str) -> int:
        """A traffic counter of both servers together."""
        return sum(counts[name] for counts in self.traffic.values())

    def reasons(self) -> set[str]:
        return {name for counts in self.drops.values() for name in counts}


def make_quick(lab: PairLab) -> PairLab:
    """Linux gives one address six ICMP errors, and then one a second: not these routers."""
    for node in ("router", "internet"):
        lab.good(node, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/icmp_ratelimit")
        lab.good(node, "sh", "-c", "echo 1000000 > /proc/sys/net/ipv4/icmp_msgs_per_sec || true")
    return lab


@contextmanager
def counted(lab: PairLab) -> Iterator[Grown]:
    """What both servers counted in the block."""

    def now(path: str) -> dict[str, Any]:
        return {server: lab.ask(server, path) for server in lab.lab.agents}

    grown = Grown()
    traffic, drops = now("/v1/traffic"), {server: lab.drops(server) for server in lab.lab.agents}
    yield grown
    for server, counts in now("/v1/traffic").items():
        grown.traffic[server] = {name: packets - traffic[server][name] for name, packets in counts.items()}
        after = lab.drops(server)
        grown.drops[server] = {
            name: n - drops[server][name] for name, n in after.items() if n != drops[server][name]
        }


def check_either_server(grown: Grown, client: str) -> None:
    """Replies came to the owner of their port at once, and by way of the other server."""
    owner = SERVER_OF[client]
    [other] = set(grown.traffic) - {owner}
    assert 0 < grown.traffic[other]["steered"] < grown.traffic[owner]["here"]


def delivered(
    sender: socket.socket,
    receiver: socket.socket,
    data: bytes,
    to: tuple[Any, ...] | None = None,
    sent: bool = False,
) -> Any:
    """Sends a datagram, again when none comes: a busy machine may lose one. Gives where the receiver has it from.

    `to`: None for a connected socket. `sent`: it was already, once. What else comes is passed over: it may be a second
    copy of what came before.
    """
    deadline, before = time.monotonic() + TIMEOUT_S, receiver.gettimeout()
    try:
        while time.monotonic() < deadline:
            if not sent:
                sender.send(data) if to is None else sender.sendto(data, to)
            sent = False
            again = time.monotonic() + RESEND_S
            while (left := again - time.monotonic()) > 0:
                receiver.settimeout(left)
                with suppress(TimeoutError):
                    got, source = receiver.recvfrom(1 << 16)
                    if got == data:
                        return source
    finally:
        receiver.settimeout(before)
    raise AssertionError(f"{len(data)} bytes never came")


def listening(lab: PairLab, node: str, protocol: str, port: int) -> None:
    """Waits until something in the node listens on the port."""
    command = ("ss", "-Hln", f"--{protocol}", f"sport = :{port}")
    eventually(lambda: lab.good(node, *command).strip(), f"{node} listens on {protocol} {port}")
