"""The far end of a lab: HTTP, TCP echo and UDP echo, and a record of who came. Runs as a program in a node.

`python -m softunicast.lab.internet`. HTTP/1.1 with keep-alive:

    GET /                      {"address", "port"} of the peer, as seen here
    GET /bytes/N               N bytes of the pattern, their checksum in X-Content-Sha256
    GET /slow/N?seconds=S      the same bytes spread evenly over S seconds
    GET /peers                 who came since the start or the last DELETE /peers

Every size that a client asks for has a limit, and what a client says about itself (its User-Agent, kept as a
label) is never more than a label.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final, NamedTuple, cast

from aiohttp import web

from softunicast.lab import pattern
from softunicast.lab.peers import Peer

SECONDS_MAX: Final = 3600.0
TICK_S: Final = 0.1  # how often a slow answer goes on
PEERS_MAX: Final = 200_000  # a whole address three times over, in some tens of MB
LABEL_CHARACTERS: Final = 64
BACKLOG: Final = 4096  # connections that arrive at once
UDP_BUFFER_BYTES: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33  # SO_RCVBUFFORCE of <asm-generic/socket.h>


class Visitors:
    """Who came how often. `forgotten` counts visits of peers beyond PEERS_MAX."""

    def __init__(self) -> None:
        self.seen: Counter[Peer] = Counter()
        self.forgotten = 0

    def saw(self, peer: Peer) -> None:
        if peer in self.seen or len(self.seen) < PEERS_MAX:
            self.seen[peer] += 1
        else:
            self.forgotten += 1

    def forget(self) -> None:
        self.seen.clear()
        self.forgotten = 0

    def document(self) -> dict[str, object]:
        rows = [{**peer._asdict(), "times": times} for peer, times in self.seen.items()]
        return {"peers": rows, "forgotten": self.forgotten}


class Web:
    """The HTTP side."""

    def __init__(self, visitors: Visitors) -> None:
        self.visitors = visitors
        self.application = web.Application()
        self.application.add_routes(
            [
                web.get("/", self.whoami),
                web.get("/bytes/{size}", self.fast),
                web.get("/slow/{size}", self.slow),
                web.get("/peers", self.peers),
                web.delete("/peers", self.forget_peers),
            ]
        )

    async def whoami(self, request: web.Request) -> web.Response:
        peer = self._peer(request)
        return web.json_response({"address": peer.address, "port": peer.port})

    async def fast(self, request: web.Request) -> web.StreamResponse:
        self._peer(request)
        size = _size(request)
        answer = await _begin(request, size)
        for piece in pattern.pieces(size):
            await answer.write(piece)
        return answer

    async def slow(self, request: web.Request) -> web.StreamResponse:
        self._peer(request)
        size, seconds = _size(request), _seconds(request)
        answer = await _begin(request, size)
        clock = asyncio.get_running_loop()
        start, sent = clock.time(), 0
        while sent < size:
            due = min(size, int(size * (clock.time() - start) / seconds))
            for piece in pattern.pieces(due, sent):
                await answer.write(piece)
            sent = due
            await asyncio.sleep(min(TICK_S, seconds))
        return answer

    async def peers(self, request: web.Request) -> web.Response:
        return web.json_response(self.visitors.document())

    async def forget_peers(self, request: web.Request) -> web.Response:
        self.visitors.forget()
        return web.Response(status=204)

    def _peer(self, request: web.Request) -> Peer:
        assert request.transport is not None
        address, port = request.transport.get_extra_info("peername")[:2]
        label = request.headers.get("User-Agent", "")[:LABEL_CHARACTERS]
        peer = Peer("tcp", address, port, label)
        self.visitors.saw(peer)
        return peer


async def _begin(request: web.Request, size: int) -> web.StreamResponse:
    # In a thread: the first checksum of a large size would stop every other answer.
    checksum = await asyncio.to_thread(pattern.sha256, size)
    answer = web.StreamResponse(
        headers={"Content-Type": "application/octet-stream", "X-Content-Sha256": checksum}
    )
    answer.content_length = size
    await answer.prepare(request)
    return answer


def _size(request: web.Request) -> int:
    text = request.match_info["size"]
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= pattern.BYTES_MAX):
        raise web.HTTPBadRequest(
            text=f"{text[:20]!r}: give a number of bytes from 0 to {pattern.BYTES_MAX}\n"
        )
    return int(text)


def _seconds(request: web.Request) -> float:
    try:
        seconds = float(request.query["seconds"])
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds <= SECONDS_MAX:
        raise web.HTTPBadRequest(text=f"give ?seconds=S, more than 0 and at most {SECONDS_MAX:.0f}\n")
    return seconds


class TcpEcho(asyncio.Protocol):
    """Sends back what comes, and stops reading while the peer does not take it."""

    def __init__(self, visitors: Visitors) -> None:
        self.visitors = visitors

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.visitors.saw(Peer("tcp", *transport.get_extra_info("peername")[:2]))

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class UdpEcho(asyncio.DatagramProtocol):
    """Sends back every datagram."""

    def __init__(self, visitors: Visitors) -> None:
        self.visitors = visitors

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.visitors.saw(Peer("udp", *addr[:2]))
        self.transport.sendto(data, addr)


class Ports(NamedTuple):
    """Where the servers listen."""

    http: int
    tcp_echo: int
    udp_echo: int


@asynccontextmanager
async def serving(
    host: str, http_port: int, echo_port: int, visitors: Visitors | None = None
) -> AsyncIterator[Ports]:
    """All three servers for the length of an async with block. Port 0 lets the kernel choose."""
    visitors = visitors or Visitors()
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        tcp = await loop.create_server(lambda: TcpEcho(visitors), host, echo_port, backlog=BACKLOG)
        stack.callback(tcp.close)
        udp_socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        udp_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER_BYTES)
        with suppress(PermissionError):  # as root also beyond net.core.rmem_max, which is little by default
            udp_socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, UDP_BUFFER_BYTES)
        if ":" in host:
            udp_socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        udp_socket.bind((host, echo_port))
        udp, _ = await loop.create_datagram_endpoint(lambda: UdpEcho(visitors), sock=udp_socket)
        stack.callback(udp.close)
        # Last: whoever waits for it finds the others there too.
        runner = web.AppRunner(Web(visitors).application, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, host, http_port, backlog=BACKLOG).start()
        yield Ports(
            runner.addresses[0][1], tcp.sockets[0].getsockname()[1], udp.get_extra_info("sockname")[1]
        )


def _have_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


async def _serve(hosts: list[str], http_port: int, echo_port: int) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    visitors = Visitors()
    async with AsyncExitStack() as stack:
        for host in hosts:
            await stack.enter_async_context(serving(host, http_port, echo_port, visitors))
        await stop.wait()


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m softunicast.lab.internet", description="A lab's far end."
    )
    parser.add_argument(
        "--host", action="append", help="address to listen on, more than once for more than one"
    )
    parser.add_argument("--http-port", type=int, default=80)
    parser.add_argument("--echo-port", type=int, default=7)
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one descriptor for each connection
    # The last one is what whoever waits for the program asks: then the others are there too.
    hosts = chosen.host or [*(["::"] if _have_ipv6() else []), "0.0.0.0"]
    asyncio.run(_serve(hosts, chosen.http_port, chosen.echo_port))


if __name__ == "__main__":
    main()
