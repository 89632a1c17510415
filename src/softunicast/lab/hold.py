"""Many connections to one destination at once, each proved with an echo, held until standard input closes.

It answers how many conversations fit through at the same time, how the one too many fails and how fast, and
(asked again when standard input closes) which of them still live after whatever happened meanwhile. Sockets are
plain and unbound, as an ordinary program's.
"""

from __future__ import annotations

import asyncio
import errno
import json
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Literal

from softunicast.core.errors import HostError

COUNT_MAX: Final = 20_000
PAYLOAD_BYTES: Final = 32

Protocol = Literal["tcp", "udp"]
_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(slots=True)
class Connection:
    """One connection. `outcome`: "ok", an errno name, "timeout", "closed" or "wrong echo"; `ms` until it."""

    socket: socket.socket
    outcome: str = ""
    ms: float = 0.0
    local: str | None = None

    def row(self) -> dict[str, Any]:
        return {"local": self.local, "outcome": self.outcome, "ms": round(self.ms, 2)}


async def run(destination: tuple[str, int], count: int, protocol: Protocol, timeout_s: float) -> bool:
    """Print a JSON line when all are open or failed, and one when input closed. Whether all are well."""
    try:
        connections = [Connection(socket.socket(socket.AF_INET, _KINDS[protocol])) for _ in range(count)]
    except OSError as error:
        raise HostError(f"cannot make {count} sockets: {error.strerror}", "raise `ulimit -n`") from error
    await asyncio.gather(*(_open(connection, destination, timeout_s) for connection in connections))
    _print("opened", connections)
    await _input_closed()
    held = [connection for connection in connections if connection.outcome == "ok"]
    await asyncio.gather(*(_prove(connection, timeout_s) for connection in held))
    _print("closed", connections)
    for connection in connections:
        connection.socket.close()
    return all(connection.outcome == "ok" for connection in connections)


async def _open(connection: Connection, destination: tuple[str, int], timeout_s: float) -> None:
    connection.socket.setblocking(False)
    loop = asyncio.get_running_loop()
    start = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(connection.socket, destination)
            connection.local = "{}:{}".format(*connection.socket.getsockname())
            connection.outcome = await _echo(connection.socket)
    except OSError as error:
        connection.outcome = name_of(error)
    connection.ms = (time.monotonic() - start) * 1000


async def _prove(connection: Connection, timeout_s: float) -> None:
    start = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            connection.outcome = await _echo(connection.socket)
    except OSError as error:
        connection.outcome = name_of(error)
    connection.ms = (time.monotonic() - start) * 1000


async def _echo(connected: socket.socket) -> str:
    loop = asyncio.get_running_loop()
    payload = secrets.token_bytes(PAYLOAD_BYTES)
    await loop.sock_sendall(connected, payload)
    answer = b""
    while len(answer) < PAYLOAD_BYTES:
        piece = await loop.sock_recv(connected, PAYLOAD_BYTES)
        if not piece:
            return "closed"
        answer += piece
    return "ok" if answer == payload else "wrong echo"


def name_of(error: OSError) -> str:
    """The errno's name, or "timeout"."""
    # Our own deadline is a TimeoutError without a number; the kernel's (a lost peer) is ETIMEDOUT.
    return "timeout" if error.errno is None else errno.errorcode.get(error.errno, str(error.errno))


async def _input_closed() -> None:
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def read() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        loop.call_soon_threadsafe(closed.set)

    # A daemon: an interrupted program must not wait for a terminal that nobody closes.
    threading.Thread(target=read, name="stdin", daemon=True).start()
    await closed.wait()


def _print(event: str, connections: list[Connection]) -> None:
    line = {
        "event": event,
        "count": len(connections),
        "outcomes": Counter(connection.outcome for connection in connections),
        "connections": [connection.row() for connection in connections],
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
