"""One server for tests of the agent: the real loop and ledger, on a stand-in kernel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from tests.unit.agent import fakes
from tests.unit.agent.fakes import ME, POOL, Calls, DataPath

from softunicast.agent.daemon import Daemon
from softunicast.agent.effects import NodeEffects
from softunicast.agent.host import HostChanges
from softunicast.agent.keeper import Timing
from softunicast.agent.kernel_thread import KernelThread
from softunicast.core.config import AgentConfig, Config, LedgerConfig, Limits, ServerConfig, UplinkConfig
from softunicast.core.pools import Pool
from softunicast.core.records import Server
from softunicast.ledger.sqlite import SqliteLedger
from softunicast.observe.logs import Log

TTL_S = 6.0  # none of these tests waits for it to pass
WAIT_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    """Waits for it; fails when it does not come."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


class Node:
    """One agent with everything around it."""

    def __init__(self, path: Path, *pools: Pool, me: Server = ME) -> None:
        self.path = path
        self.me = me
        self.config = Config(
            path="agent.toml",
            server=ServerConfig(me.name, me.site),
            uplink=UplinkConfig("uplink"),
            ledger=LedgerConfig("sqlite", str(path / "ledger.db")),
            agent=AgentConfig(ttl_s=TTL_S, quarantine_s=60, poll_s=0.02, settle_s=0.05),
            limits=Limits(),
            pools=pools or (POOL,),
            onramps={"clients": "gb"},
        )
        self.calls = Calls()
        self.calls.settings = {
            f"net/ipv4/conf/{name}/{key}": 0
            for name in ("uplink", "clients")
            for key in ("arp_ignore", "arp_announce", "forwarding")
        }
        self.datapath = DataPath()
        self.sockets = fakes.Sockets()
        self.indices = {"uplink": 2, "clients": 3}
        self.log = fakes.Log()
        self.stopping = asyncio.Event()
        self.ready: Callable[[], object] = lambda: None
        self.ledger: SqliteLedger
        self.daemon: Daemon

    def index_of(self, name: str) -> int | None:
        return 50 if name in self.calls.tuns else self.indices.get(name)

    async def make(self) -> Daemon:
        """A new process on what the kernel and the host have."""
        self.ledger = await SqliteLedger.open(self.path / "ledger.db", quarantine_s=60)
        host = HostChanges(self.path / f"{self.me.name}.json", "boot", self.calls)
        host._load()
        here = self.me.name, self.index_of, self.config.tuns
        effects = NodeEffects(self.datapath, host, self.sockets, "uplink", *here)
        timing = Timing(TTL_S, self.config.agent.settle_s, time.monotonic_ns, lambda: 0.5)
        log = cast(Log, self.log)
        self.daemon = Daemon(self.config, self.me, self.ledger, KernelThread(), effects, timing, log)
        return self.daemon

    @asynccontextmanager
    async def running(self, restore: bool = True) -> AsyncIterator[Daemon]:
        self.stopping = asyncio.Event()
        daemon = await self.make()
        try:
            await daemon.begin()
        except BaseException:
            await daemon.end(restore=not self.datapath.adopted)
            raise
        run = asyncio.create_task(daemon.run(self.stopping, self.ready))
        try:
            yield daemon
        finally:
            self.stopping.set()
            async with asyncio.timeout(WAIT_S):
                await asyncio.wait([run])
                await daemon.end(restore)
            self.datapath.adopted = not restore
        run.result()

    def opening(self) -> tuple[object, ...]:
        """The slices that the kernel may open flows from."""
        pool = self.datapath.state.pools.get("gb")
        return pool.slices if pool else ()
