"""Programs that connect to a unix socket of the agent: let in, so many at a time, also of each user, who the kernel
says they are (SO_PEERCRED, SO_PEERGROUPS), and served each by a task of its own. What is said is not this module's
matter.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from softunicast.agent.listening import listen
from softunicast.agent.peers import Peer

REST_S: Final = 0.1  # after the kernel had no descriptor for a connection


class Callers:
    """Those of one socket. `serve` is called for each, whose connection is closed when it returns; `may_come` says
    whether one more may, by how many there are, and how many of them of that user."""

    def __init__(
        self,
        path: Path,
        setting: str,
        serve: Callable[[socket.socket, Peer], Awaitable[None]],
        may_come: Callable[[int, int], bool],
    ) -> None:
        self._path = path
        self._setting = setting
        self._serve = serve
        self._may_come = may_come
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._here: Counter[int] = Counter()  # by user

    async def start(self) -> None:
        """Raises HostError when the socket cannot be made, or when another agent answers on it."""
        self._listener = listen(self._path, socket.SOCK_SEQPACKET, self._setting)
        self._listener.setblocking(False)
        self._begin(asyncio.create_task(self._accept(self._listener)))

    async def stop(self) -> None:
        """Ends what is under way and removes the socket."""
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
            if not self._may_come(self._here.total(), self._here[peer.uid]):
                connection.close()
                continue
            self._here[peer.uid] += 1
            self._begin(asyncio.create_task(self._receive(connection, peer)))

    async def _receive(self, connection: socket.socket, peer: Peer) -> None:
        try:
            with connection:
                await self._serve(connection, peer)
        finally:
            self._here[peer.uid] -= 1
            if not self._here[peer.uid]:
                del self._here[peer.uid]
