"""Handing out descriptors of TUN on-ramps over a unix socket of their own (HTTP has no place for them).

Everybody may connect; who gets what is decided by what the kernel says of the other end (SO_PEERCRED,
SO_PEERGROUPS) and by `users` and `groups` of the on-ramp. Root may always. The agent keeps no copy of what it hands
out. Number, size and duration of what strangers may ask are bounded, also for each user.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from softunicast.agent.callers import Callers
from softunicast.agent.daemon import Daemon
from softunicast.agent.listening import REQUESTS_MAX
from softunicast.agent.peers import Holders, Peer
from softunicast.core.config import Config
from softunicast.core.errors import HostError, SoftunicastError, UnknownNameError
from softunicast.core.onramps import Tun
from softunicast.observe.logs import Log
from softunicast.wire import descriptor as wire

REQUEST_S: Final = 2.0  # until a program that connected has said what it wants
REQUESTS_OF_USER_MAX: Final = 4


def holders_of(config: Config) -> dict[str, Holders]:
    """By on-ramp. Raises HostError."""
    return {name: Holders.of(f"on-ramp {name}", tun.users, tun.groups) for name, tun in config.tuns.items()}


class Descriptors:
    """Serves one daemon on one socket, which is there while it has on-ramps to open."""

    def __init__(self, daemon: Daemon, holders: Mapping[str, Holders], log: Log) -> None:
        self._daemon = daemon
        self._holders = holders
        self._log = log
        self._callers = Callers(
            Path(daemon.config.agent.fd_socket),
            "fd_socket",
            self._serve,
            lambda all_, of_user: all_ < REQUESTS_MAX and of_user < REQUESTS_OF_USER_MAX,
        )

    async def start(self) -> None:
        """Raises HostError when the socket cannot be made, or when another agent answers on it."""
        if self._holders:
            await self._callers.start()

    async def stop(self) -> None:
        """Ends what is under way and removes the socket. What was handed out stays so."""
        await self._callers.stop()

    async def _serve(self, connection: socket.socket, peer: Peer) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                data = await asyncio.get_running_loop().sock_recv(connection, wire.REQUEST_BYTES_MAX + 1)
            if data:
                await self._answer(connection, peer, data)
        except (TimeoutError, OSError) as error:  # it said nothing, or is gone
            self._log.debug("descriptor not delivered", uid=peer.uid, pid=peer.pid, why=str(error))

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
