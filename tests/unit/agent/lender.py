"""The service that gives sockets and ports, for tests of it: on a stand-in kernel."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from tests.unit.agent.node import Node

from softunicast.agent.lending import Lending
from softunicast.core.errors import KernelError
from softunicast.core.slices import Slice
from softunicast.kernel.grants import Grant
from softunicast.pools import Pool

T = TypeVar("T")
NUMBER = 7


class Kernel:
    """A stand-in for softunicast.kernel.grants.Grants."""

    def __init__(self) -> None:
        self.agreed: list[tuple[int, int]] = []  # (inode of the socket, pool)
        self.granted: list[Grant] = []
        self.asked = False
        self.full = False
        self.off = False
        self.lost: list[Grant] = []
        self.extended = 0

    def number_of(self, pool: str) -> int | None:
        return NUMBER if pool == "gb" else None

    def require_hooks(self) -> None:
        if self.off:
            raise KernelError("the agent does not look after", errno.EOPNOTSUPP, "see [sockets]")

    def agree(self, descriptors: Iterable[int], pool: int) -> None:
        for descriptor in descriptors:
            self.agreed.append((os.fstat(descriptor).st_ino, pool))

    def take(
        self,
        slices: Iterable[Slice],
        protocol: str,
        uid: int,
        pool: int,
        until_ns: int,
        chance: Callable[[], float],
    ) -> Grant | None:
        part = next(iter(slices))
        taken = {grant.port for grant in self.granted}
        port = next(port for port in range(part.port_first, part.port_last) if port not in taken)
        if self.full:
            return None
        self.asked = True
        self.granted.append(Grant(part.address, port, protocol, uid, pool))
        return self.granted[-1]

    def open(self, address: IPv4Address, protocol: str, uid: int, pool: int, until_ns: int) -> Grant:
        self.granted.append(Grant(address, 0, protocol, uid, pool))
        return self.granted[-1]

    def extend_all(self, grants: Iterable[Grant], until_ns: int) -> list[Grant]:
        self.extended += 1
        return [grant for grant in grants if grant in self.lost]

    def end(self, grant: Grant) -> None:
        self.granted = [one for one in self.granted if one != grant]

    def none_left(self) -> None:
        self.asked = False


class Service:
    def __init__(self, node: Node, path: Path, kernel: Kernel) -> None:
        self.node, self.path, self.kernel = node, path, kernel
        self.lending: Lending

    def pool(self, name: str | None = "gb", **more: object) -> Pool:
        return Pool(name, agent=str(self.path), timeout=5.0, **more)  # type: ignore[arg-type]

    async def do(self, what: Callable[..., T], *args: object) -> T:
        return await asyncio.to_thread(what, *args)

    def connected(self) -> socket.socket:
        asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asking.connect(str(self.path))
        asking.setblocking(False)
        return asking

    async def heard(self, asking: socket.socket) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asking, 1 << 16), 10)
