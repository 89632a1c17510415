"""Handing out descriptors of TUN on-ramps over a unix socket of their own (HTTP has no place for them).

Everybody may connect; who gets what is decided by what the kernel says of the other end (SO_PEERCRED,
SO_PEERGROUPS) and by `users` and `groups` of the on-ramp. Root may always. The agent keeps no copy of what it hands
out. Number, size and duration of what strangers may ask are bounded, also for each user.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from softunicast.agent.daemon import Daemon
from softunicast.agent.listening import REQUESTS_MAX, listen
from softunicast.agent.peers import Holders, Peer
from softunicast.core.config import Config
from softunicast.core.errors import HostError, SoftunicastError, UnknownNameError
from softunicast.core.onramps import Tun
from softunicast.observe.logs import Log
from softunicast.wire import descriptor as wire

REQUEST_S: Final = 2.0  # until a program that connected has said what it wants
REQUESTS_OF_USER_MAX: Final = 4
REST_S: Final = 0.1  # after the kernel had no descriptor for a connection


def holders_of(config: Config) -> dict[str, Holders]:
    """By on-ramp. Raises HostError."""
    return {name: Holders.of(f"on-ramp {name}", tun.users, tun.groups) for name, tun in config.tuns.items()}


class Descriptors:
    """Serves one daemon on one socket, which is there while it has on-ramps to open."""

    def __init__(self, daemon: Daemon, holders: Mapping[str, Holders], log: Log) -> None:
        self._daemon = daemon
        self._holders = holders
        self._path = Path(daemon.config.agent.fd_socket)
        self._log = log
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: Counter[int] = Counter()

    async def start(self) -> None:
        """Raises HostError when the socket cannot be made, or when another agent answers on it."""
        if not self._holders:
            return
        self._listener = listen(self._path, socket.SOCK_SEQPACKET, "fd_socket")
        self._listener.setblocking(False)
        self._begin(asyncio.create_task(self._accept(self._listener)))

    async def stop(self) -> None:
        """Ends what is under way and removes the socket. What was handed out stays so."""
        if self._listener is None:
            return
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        self._listener = None
        self._path.unlink(missing_ok=True)

    def _begin(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(REST_S)
                continue
            peer = Peer.of(connection)
            if len(self._tasks) > REQUESTS_MAX or self._asking[peer.uid] >= REQUESTS_OF_USER_MAX:
                connection.close()
                continue
            self._asking[peer.uid] += 1
            self._begin(asyncio.create_task(self._serve(connection, peer)))

    async def _serve(self, connection: socket.socket, peer: Peer) -> None:
        try:
            with connection:
                async with asyncio.timeout(REQUEST_S):
                    data = await asyncio.get_running_loop().sock_recv(connection, wire.REQUEST_BYTES_MAX + 1)
                if data:
                    await self._answer(connection, peer, data)
        except (TimeoutError, OSError) as error:  # it said nothing, or is gone
            self._log.debug("descriptor not delivered", uid=peer.uid, pid=peer.pid, why=str(error))
        finally:
            self._asking[peer.uid] -= 1
            if not self._asking[peer.uid]:
                del self._asking[peer.uid]

    async def _answer(self, connection: socket.socket, peer: Peer, data: bytes) -> None:
        try:
            name = wire.parse_request(data)
            tun = self._permitted(name, peer)
            descriptor = await self._daemon.kernel(self._daemon.effects.open_tun, name)
        except SoftunicastError as error:
            self._log.info("descriptor refused", uid=peer.uid, pid=peer.pid, why=error.what)
            connection.send(wire.refusal(error))
            return
        try:
            sources = self._daemon.config.sources[name]
            header_bytes = wire.HEADER_BYTES if tun.offload else 0
            answer = wire.grant(wire.Grant(name, tun.address, sources, tun.mtu, header_bytes, tun.address6))
            socket.send_fds(connection, [answer], [descriptor])
            self._log.info("descriptor handed out", onramp=name, uid=peer.uid, pid=peer.pid)
        finally:
            os.close(descriptor)

    def _permitted(self, name: str, peer: Peer) -> Tun:
        if name not in self._holders:
            raise UnknownNameError(
                f"no on-ramp {name[:32]!r} of kind fd", f"use one of {', '.join(sorted(self._holders))}"
            )
        if not self._holders[name].include(peer):
            raise HostError(
                f"user {peer.uid} may not open on-ramp {name}", "see users and groups of [[onramps]]"
            )
        return self._daemon.config.tuns[name]
