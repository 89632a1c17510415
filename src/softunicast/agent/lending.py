"""Sockets and ports of the pools for programs of this host, over a unix socket of their own (`[agent] pool_socket`).

Everybody may connect; who gets what is decided by what the kernel says of the other end (peers.py) and by `users` and
`groups` of the pool. Root may always. A program hands over sockets that it made, and they leave from the pool when it
connects them; or it leases a port, which it has until its connection closes (borrowing.py). Everything that strangers
may ask is bounded, also for each user: connections, messages, descriptors, ports, and how long they may be silent.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from softunicast.agent.borrowing import Leases
from softunicast.agent.callers import Callers
from softunicast.agent.daemon import Daemon
from softunicast.agent.peers import Holders, Peer
from softunicast.core.agreements import choose
from softunicast.core.config import Config
from softunicast.core.errors import InputError, KernelError, SoftunicastError
from softunicast.kernel.grants import Grants
from softunicast.observe.logs import Log
from softunicast.wire import lending as wire

REQUEST_S: Final = 2.0  # until a program that connected has said what it wants
IDLE_S: Final = 30.0  # between two questions of one that has leased nothing
CONNECTIONS_MAX: Final = 256
CONNECTIONS_OF_USER_MAX: Final = 64
_BYTES_OF_DESCRIPTOR: Final = 4


def borrowers_of(config: Config) -> dict[str, Holders]:
    """Who may have sockets and ports, by pool. Raises HostError for a name that this host does not have."""
    return {pool.name: Holders.of(f"pool {pool.name}", pool.users, pool.groups) for pool in config.pools}


class Lending:
    """Serves one daemon on one socket."""

    def __init__(self, daemon: Daemon, grants: Grants, borrowers: Mapping[str, Holders], log: Log) -> None:
        self._daemon = daemon
        self._grants = grants
        self._leases = Leases(daemon, grants, log)
        self._borrowers = borrowers
        self._log = log
        self._prolonging: asyncio.Task[None] | None = None
        self._callers = Callers(
            Path(daemon.config.agent.pool_socket),
            "pool_socket",
            self._serve,
            lambda all_, of_user: all_ < CONNECTIONS_MAX and of_user < CONNECTIONS_OF_USER_MAX,
        )

    async def start(self) -> None:
        """Raises HostError when the socket cannot be made, or when another agent answers on it."""
        await self._callers.start()
        self._prolonging = asyncio.create_task(self._leases.prolong())

    async def stop(self) -> None:
        """Ends what is under way, takes back what is leased, and removes the socket."""
        if self._prolonging is None:
            return
        self._prolonging.cancel()
        await asyncio.gather(self._prolonging, return_exceptions=True)
        self._prolonging = None
        await self._callers.stop()
        await self._leases.end()

    async def _serve(self, connection: socket.socket, peer: Peer) -> None:
        wait_s = REQUEST_S
        try:
            while True:
                async with asyncio.timeout(None if self._leases.any_of(connection) else wait_s):
                    data, descriptors = await _receive(connection)
                if not data:
                    break
                # A program that does not read its answers is not waited for: BlockingIOError.
                connection.send(await self._answer(connection, peer, data, descriptors))
                wait_s = IDLE_S
        except (TimeoutError, OSError) as error:  # it says nothing, or is gone
            self._log.debug("borrower left", uid=peer.uid, pid=peer.pid, why=str(error))
        finally:
            await self._leases.release_all(connection)

    async def _answer(
        self, connection: socket.socket, peer: Peer, data: bytes, descriptors: list[int]
    ) -> bytes:
        try:
            asked = wire.parse_request(data)
            if isinstance(asked, wire.Release):
                await self._leases.release(connection, asked)
                return wire.answer(wire.Given(""))
            pool = self._permitted(asked.choice, peer)
            self._grants.require_hooks()
            if isinstance(asked, wire.Take):
                given = await self._leases.take(connection, peer, pool, asked)
                self._log.debug(
                    "port leased", pool=pool, address=given.address, port=given.port, uid=peer.uid
                )
                return wire.answer(given)
            self._agree(asked, pool, descriptors)
            return wire.answer(wire.Given(pool))
        except SoftunicastError as error:
            self._log.info("pool refused", uid=peer.uid, pid=peer.pid, why=error.what)
            return wire.refusal(error)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _agree(self, asked: wire.Agree, pool: str, descriptors: list[int]) -> None:
        """Not in the kernel thread: it does not wait, and connections should not, for those who list flows."""
        if len(descriptors) != asked.count:
            raise InputError(
                f"{len(descriptors)} descriptors came for {asked.count} sockets",
                f"send as many as you say, at most {wire.SOCKETS_MAX}, with the message",
            )
        number = self._grants.number_of(pool)
        if number is None:
            raise KernelError(
                f"pool {pool} is not in the kernel", errno.EADDRNOTAVAIL, "ask again in a moment"
            )
        self._grants.agree(descriptors, number)

    def _permitted(self, choice: wire.Choice, peer: Peer) -> str:
        """The name of the pool. Nobody learns which pools there are who may use none of them."""
        mine = [pool for pool in self._daemon.config.pools if self._borrowers[pool.name].include(peer)]
        if not mine:
            raise _denied(f"user {peer.uid} may use no pool")
        if choice.name in self._borrowers and choice.name not in {pool.name for pool in mine}:
            raise _denied(f"user {peer.uid} may not use pool {choice.name}")
        return choose(mine, choice.name, choice.tags).name


def _denied(what: str) -> KernelError:
    return KernelError(what, errno.EACCES, "see users and groups of [[pools]] in the agent's configuration")


async def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """The next message and its descriptors; none at the end. Raises OSError when more came than may."""
    connection.setblocking(False)
    beside_bytes = socket.CMSG_SPACE(wire.SOCKETS_MAX * _BYTES_OF_DESCRIPTOR)
    while True:
        await _readable(connection)
        with suppress(BlockingIOError):
            data, beside, flags, _ = connection.recvmsg(
                wire.REQUEST_BYTES_MAX + 1, beside_bytes, socket.MSG_CMSG_CLOEXEC
            )
            break
    found = array.array("i")
    for level, kind, part in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(part[: len(part) - len(part) % _BYTES_OF_DESCRIPTOR])
    if flags & socket.MSG_CTRUNC or not data:
        for descriptor in found:
            os.close(descriptor)
        if data:
            raise OSError(errno.E2BIG, "more descriptors than fit a message")
        return b"", []
    return data, list(found)


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def come() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(connection, come)
    try:
        await ready
    finally:
        loop.remove_reader(connection)
