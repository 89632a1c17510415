"""What one program has of the pools: the ports that it leased over its connection, kept while that is open.

Each is good for GRANT_S in the kernel and prolonged long before that is over, so what an agent that dies leaves behind
ends by itself. A port in a slice that this server is to give up is not prolonged: new sockets cannot be bound there
from then on, and the slice gets free.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections import Counter
from collections.abc import Iterator
from typing import Final

from softunicast.agent.daemon import Daemon
from softunicast.agent.peers import Peer
from softunicast.core.errors import InputError, KernelError
from softunicast.core.slices import Slice
from softunicast.kernel.grants import ANY_PORT, Grant, Grants
from softunicast.observe.logs import Log
from softunicast.wire.lending import Given, Release, Take

GRANT_S: Final = 30.0  # until what is not prolonged ends
PROLONG_S: Final = 10.0
LEASES_OF_USER_MAX: Final = 256
LEASES_MAX: Final = 4096


class Leases:
    """All that is leased, and how much of it each user has."""

    def __init__(self, daemon: Daemon, grants: Grants, log: Log) -> None:
        self._daemon = daemon
        self._log = log
        self._grants = grants
        self._of: dict[object, list[Grant]] = {}
        self._users: Counter[int] = Counter()

    def any_of(self, borrower: object) -> bool:
        return bool(self._of.get(borrower))

    async def take(self, borrower: object, peer: Peer, pool: str, asked: Take) -> Given:
        """Raises KernelError when nothing is free, or when this user has too many."""
        if self._users[peer.uid] >= LEASES_OF_USER_MAX or self._users.total() >= LEASES_MAX:
            raise KernelError(
                f"user {peer.uid} has {self._users[peer.uid]} ports leased of this server's {self._users.total()}",
                errno.ENOBUFS,
                f"release some: at most {LEASES_OF_USER_MAX} for a user, {LEASES_MAX} in all",
            )
        self._users[peer.uid] += 1  # before anything is waited for
        grant = None
        try:
            grant = await self._daemon.kernel(self._grant, peer.uid, pool, asked)
            self._of.setdefault(borrower, []).append(grant)
        finally:
            if grant is None:
                self._forget(peer.uid)
        return Given(pool, grant.address, grant.port)

    def _grant(self, uid: int, pool: str, asked: Take) -> Grant:
        slices = list(self._slices(pool, asked.family))
        number = self._grants.number_of(pool)
        until_ns = self._until_ns()
        if not slices or number is None:
            raise KernelError(
                f"pool {pool} holds no slice of IPv{asked.family} now",
                errno.EADDRNOTAVAIL,
                "see softunicast pools",
            )
        random.shuffle(slices)
        if asked.any_port:
            return self._grants.open(slices[0].address, asked.protocol, uid, number, until_ns)
        grant = self._grants.take(slices, asked.protocol, uid, number, until_ns, random.random)
        if grant is None:
            raise KernelError(
                f"pool {pool} has no free {asked.protocol} port",
                errno.EADDRNOTAVAIL,
                "release one, or raise slices_max",
            )
        return grant

    def _slices(self, pool: str, version: int) -> Iterator[Slice]:
        """Those that open new flows now."""
        found = self._daemon.effects.datapath.state.pools.get(pool)
        return (part for part in (found.slices if found else ()) if part.version == version)

    def _until_ns(self) -> int:
        return self._daemon.now_ns() + int(GRANT_S * 1e9)

    async def release(self, borrower: object, asked: Release) -> None:
        """Raises InputError when the borrower does not have it."""
        for grant in self._of.get(borrower, ()):
            if (grant.protocol, grant.address, grant.port) == (asked.protocol, asked.address, asked.port):
                await self._end(borrower, grant)
                return
        raise InputError(
            f"{asked.protocol} {asked.address} port {asked.port} is not leased here",
            "release what you leased",
        )

    async def release_all(self, borrower: object) -> None:
        """Its connection is closed."""
        for grant in list(self._of.get(borrower, ())):
            await self._end(borrower, grant)

    async def end(self) -> None:
        """Nobody has anything any more, also of what an interrupted `release_all` has left."""
        for borrower in list(self._of):
            await self.release_all(borrower)
        await self._daemon.kernel(self._grants.none_left)

    async def _end(self, borrower: object, grant: Grant) -> None:
        if self._every().count(grant) == 1:  # an address with any port may be leased several times
            await self._daemon.kernel(self._grants.end, grant)
        self._of[borrower].remove(grant)
        if not self._of[borrower]:
            del self._of[borrower]
        self._forget(grant.uid)
        if not self._users:
            await self._daemon.kernel(self._grants.none_left)

    def _forget(self, uid: int) -> None:
        self._users[uid] -= 1
        if not self._users[uid]:
            del self._users[uid]

    def _every(self) -> list[Grant]:
        return [grant for grants in self._of.values() for grant in grants]

    async def prolong(self) -> None:
        """For ever: what is leased stays so, in slices that are to stay."""
        while True:
            await asyncio.sleep(PROLONG_S)
            await self._daemon.kernel_trouble.meet(self._prolong)

    async def _prolong(self) -> None:
        # In one step: what is released meanwhile is ended after it.
        kept = [grant for grant in set(self._every()) if self._stays(grant)]
        for grant in await self._daemon.kernel(self._grants.extend_all, kept, self._until_ns()):
            self._log.warning("leased port lost", address=grant.address, port=grant.port, uid=grant.uid)

    def _stays(self, grant: Grant) -> bool:
        pools = self._daemon.effects.datapath.state.pools.values()
        return any(_has(part, grant) for pool in pools for part in pool.slices)


def _has(part: Slice, grant: Grant) -> bool:
    if part.address != grant.address:
        return False
    return grant.port == ANY_PORT or part.port_first <= grant.port <= part.port_last
