"""The agent while it runs: one loop that follows the ledger, and what it knows for whoever asks.

Each turn: renew what is due, read the ledger when its version changed, take and drain, compute the wanted kernel
state, apply it when anything changed (and every REAPPLY_S anyway, so that what others broke heals). A silent
ledger stops only the first half of this; a kernel that refuses is asked again. Chores run beside it (chores.py).

What is decided is in decisions.py and core; what is done to kernel and host is in effects.py.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from ipaddress import IPv4Network
from typing import Final, cast

from softunicast import __version__
from softunicast.agent import chores
from softunicast.agent.chores import Trouble
from softunicast.agent.decisions import adoption, backoff_s, check_identity
from softunicast.agent.effects import NodeEffects, Stopped
from softunicast.agent.keeper import LeaseKeeper, Timing
from softunicast.agent.kernel_thread import KernelThread
from softunicast.agent.views import owners
from softunicast.agent.watch import Watch
from softunicast.core.config import Config
from softunicast.core.desired import KernelState, desired
from softunicast.core.errors import LedgerError
from softunicast.core.ledger import Ledger
from softunicast.core.pools import select
from softunicast.core.records import Server, Snapshot
from softunicast.core.slices import Slice
from softunicast.observe.events import EventLog
from softunicast.observe.logs import Log

REAPPLY_S: Final = 5.0  # settings, addresses and on-ramps that others broke are whole again after this
AUDIT_S: Final = 60.0  # the same for the kernel's tables, which take longer to read
LOOK_AGAIN_S: Final = 2.0  # for free slices, while a pool has fewer than it may have, and for lapsed leases
DRAIN_S: Final = 1.0  # between two looks whether the last flow of a draining slice is over
RETRY_MAX_S: Final = 10.0  # between two tries to reach the ledger or the kernel
READY_MAX_S: Final = (
    5.0  # after the slices could be settled; whoever waits is better off with an agent in trouble than none
)


class Daemon:
    """One server's agent. `begin`, then `run` until stopped, then `end`."""

    def __init__(
        self,
        config: Config,
        me: Server,
        ledger: Ledger,
        kernel: KernelThread,
        effects: NodeEffects,
        timing: Timing,
        plain_log: Log,
        segment: tuple[IPv4Network, ...] | None = None,
    ) -> None:
        """`segment`: see core.desired."""
        self.event_log = EventLog(plain_log)
        log = cast(Log, self.event_log)  # the part of it that is used
        self.config = config
        self.me = me
        self.ledger = ledger
        self.effects = effects
        self.kernel = kernel
        self.keeper = LeaseKeeper(ledger, me.name, me.site, config.pools, timing, log)
        self.snapshot: Snapshot | None = None
        self._started_ns = timing.now_ns()
        self.adopted = effects.datapath.adopted
        self.watch = Watch(config.pools, config.limits, log)
        self.ledger_trouble = Trouble("ledger", log)
        self.kernel_trouble = Trouble("kernel", log)
        self._timing = timing
        self._log = log
        self._segment = segment
        self._applied: tuple[object, ...] = ()
        self._apply_again_ns = 0
        self._fill_again_ns = 0
        self._filled = (-1, -1)
        self._drain_again_ns = 0
        self._audit_ns = 0
        self._failures = 0
        self._expired: set[Slice] = set()
        self._identified = False  # the leases under our name are ours

    # -- life ------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Checks everything that can be refused, takes up what an earlier agent left, and brings the kernel to
        the wanted state once. Raises SoftunicastError; `end` then undoes what was done."""
        snapshot = await self.keeper.ask(self.ledger.snapshot())
        for pool in self.config.pools:
            select(pool, snapshot.addresses, self.me.site)
        actual = await self.kernel(self.effects.datapath.read)
        here = adoption(snapshot, self.me.name, actual).held
        check_identity(snapshot, self.me, here, self.ledger.now())
        self._identified = True
        await self.keeper.ask(self.ledger.register_server(self.me))
        await self.keeper.adopt(snapshot, actual)
        await self._follow_ledger()
        self.snapshot = await self.keeper.ask(self.ledger.snapshot())
        await self._apply()

    async def run(self, stop: asyncio.Event, ready: Callable[[], object] = lambda: None) -> None:
        """Until `stop` is set. Raises HostError when the uplink went away; a defect raises what it is. `ready` is
        called once: when the slices that there are open flows, and programs that leave from them can start."""
        kernel, effects = self.kernel, self.effects
        tasks = [
            asyncio.create_task(self._follow(ready)),
            asyncio.create_task(chores.sweep(kernel, effects, self.watch, self._log)),
            asyncio.create_task(chores.report_drops(kernel, effects, self.watch, self.event_log)),
            asyncio.create_task(chores.tidy(kernel, effects, self._log)),
            asyncio.create_task(chores.watch_uplink(kernel, effects)),
            asyncio.create_task(stop.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def end(self, restore: bool) -> bool:
        """With `restore`, gives leases back and leaves the host as it was found; without, the kernel carries on
        until the deadlines. Never raises SoftunicastError; True when nothing is left behind."""
        datapath, clean = self.effects.datapath, True
        if restore:
            stopped = await self.kernel(self.effects.stop, datapath.state, list(self.keeper.holdings))
            if stopped.orphans:
                self._log.warning("programs without a pool", cgroups=stopped.orphans)
            for error in stopped.errors:
                self._log.error("restoring failed", why=str(error))
            try:
                await self._release_all(stopped)
            except LedgerError as error:
                self._log.error("leases not released", why=str(error), until="they end")
            clean = not stopped.errors
        else:
            await self.kernel(datapath.close)
        self.kernel.close()
        await self.ledger.close()
        return clean

    async def _release_all(self, stopped: Stopped) -> None:
        """Also those that were taken by a request that the stop interrupted: nothing ever used them."""
        if not self._identified:
            return
        if not stopped.let_go:
            self._log.error("leases kept", why="the kernel may still use them", until="their deadlines")
            return
        snapshot = await self.keeper.ask(self.ledger.snapshot())
        for lease in snapshot.leases:
            if lease.server == self.me.name and lease.live:
                self.keeper.forget(lease.slice)
                await self.keeper.release(lease, clean=stopped.live.get(lease.slice, 0) == 0)

    # -- following the ledger --------------------------------------------------------------------------------

    async def _follow(self, ready: Callable[[], object]) -> None:
        is_ready = False
        while True:
            generation = self.keeper.generation
            await self.ledger_trouble.meet(self._follow_ledger)
            await self.kernel_trouble.meet(self._follow_kernel)
            self._note_expired()
            if not is_ready and self._opens_flows():
                is_ready = True
                ready()
            if self.ledger_trouble.text or self.kernel_trouble.text:
                self._failures += 1
                ceiling_s = min(RETRY_MAX_S, self._timing.ttl_s / 10)
                await asyncio.sleep(backoff_s(self._failures, ceiling_s, self._timing.jitter()))
                continue
            self._failures = 0
            # What was just taken or lost is to be seen in the kernel at once, not a poll later.
            await asyncio.sleep(self.config.agent.poll_s if self.keeper.generation == generation else 0)

    async def _follow_ledger(self) -> None:
        if await self.keeper.renew_due() and self.snapshot is not None:
            # The slice may be another server's already: the kernel hears it before the ledger is asked anything.
            await self.kernel_trouble.meet(self._apply)
        version = await self.keeper.ask(self.ledger.version())
        if self.snapshot is None or version != self.snapshot.version:
            self.snapshot = await self.keeper.ask(self.ledger.snapshot())
            self.keeper.doubt(self.snapshot)
        if all(server.name != self.me.name for server in self.snapshot.servers):
            await self.keeper.ask(self.ledger.register_server(self.me))
            return
        now_ns = self._timing.now_ns()
        basis = (self.snapshot.version, self.keeper.generation)
        if basis != self._filled or now_ns >= self._fill_again_ns:
            self._fill_again_ns = now_ns + int(LOOK_AGAIN_S * 1e9)
            await self.keeper.ask(self.ledger.lapse())
            short = {name: number for name, number in self.keeper.missing.items() if number}
            await self.keeper.fill(self.snapshot)
            self._filled = basis
            missing = {name: number for name, number in self.keeper.missing.items() if number}
            if missing and missing != short:
                self._log.warning("pools short of slices", missing=missing)
        await self._finish_drains()

    async def _finish_drains(self) -> None:
        """Gives back draining slices without live flows: first the kernel lets go of them, then the ledger."""
        started_ns = self._timing.now_ns()
        if started_ns < self._drain_again_ns:
            return
        state = self.effects.datapath.state
        opening = {slice_ for pool in state.pools.values() for slice_ in pool.slices}
        quiet = [slice_ for slice_ in self.keeper.draining() if slice_ not in opening]
        if not quiet:
            return
        counts = await self.kernel(self.effects.datapath.count_flows, quiet)
        # Counting walks the whole table: never more than a tenth of the time.
        now_ns = self._timing.now_ns()
        self._drain_again_ns = now_ns + max(int(DRAIN_S * 1e9), 10 * (now_ns - started_ns))
        for slice_ in quiet:
            if counts[slice_] == 0:
                lease = self.keeper.holdings[slice_].lease
                self.keeper.forget(slice_)
                await self._apply()
                await self.keeper.release(lease, clean=True)

    def _opens_flows(self) -> bool:
        """Whether the kernel opens flows in every slice that this server has, or it takes too long."""
        patience_ns = int((self._timing.settle_s + READY_MAX_S) * 1e9)
        usable = self.keeper.usable()
        settled = set(self.keeper.holdings) <= usable | set(self.keeper.draining())
        there = settled and self._applied == self._basis()
        return there or self._timing.now_ns() > self._started_ns + patience_ns

    def _note_expired(self) -> None:
        expired = set(self.keeper.expired())
        for slice_ in expired - self._expired:
            self._log.error(
                "slice past its deadline", slice=slice_, why=self.ledger_trouble.text or "not renewed"
            )
        self._expired = expired

    # -- following with the kernel ---------------------------------------------------------------------------

    async def _follow_kernel(self) -> None:
        now_ns = self._timing.now_ns()
        if self._basis() != self._applied or now_ns >= self._apply_again_ns:
            await self._apply()

    def _basis(self) -> tuple[object, ...]:
        """What the wanted state is computed from, briefly: equal means that nothing has changed."""
        version = self.snapshot.version if self.snapshot else None
        return version, self.keeper.generation, self.keeper.usable()

    def wanted(self) -> KernelState:
        """What the kernel should hold now. Raises InputError when the ledger lost this server."""
        assert self.snapshot is not None
        return desired(
            self.snapshot,
            self.me.name,
            self.config.pools,
            self.config.onramps,
            self.keeper.deadlines(),
            self.keeper.usable(),
            self._segment,
        )

    async def _apply(self) -> None:
        # The basis is taken in the same step as the state: what changes while the kernel works is applied next.
        basis, wanted = self._basis(), self.wanted()
        missing = self.effects.missing_onramps
        if self._timing.now_ns() >= self._audit_ns:
            await self.kernel(self.effects.datapath.read)
            self._audit_ns = self._timing.now_ns() + int(AUDIT_S * 1e9)
        try:
            changes = await self.kernel(self.effects.apply, wanted)
        except BaseException:
            self._audit_ns = 0  # what is really there is to be read before the next try
            raise
        self._applied = basis
        self._apply_again_ns = self._timing.now_ns() + int(REAPPLY_S * 1e9)
        if changes:
            self._log.debug("kernel changed", changes=changes)
        if gone := set(self.effects.missing_onramps) - set(missing):
            self._log.warning("on-ramps missing", interfaces=sorted(gone))
        if back := set(missing) - set(self.effects.missing_onramps):
            self._log.info("on-ramps are back", interfaces=sorted(back))

    # -- for whoever asks ------------------------------------------------------------------------------------

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC, which deadlines are counted in."""
        return self._timing.now_ns()

    def latest_snapshot(self) -> Snapshot:
        """The ledger as last read."""
        assert self.snapshot is not None
        return self.snapshot

    async def status(self) -> dict[str, object]:
        """How the agent does. `leases_held`: those that the data path works with, settled ones only."""
        _freed, flows = await self.kernel(self.effects.datapath.sweep)
        opening = self.keeper.usable() | set(self.keeper.draining())
        applied = {slice_ for slice_, owner in owners(self.effects.datapath.state) if owner.deadline_ns}
        uptime_s = (self.now_ns() - self._started_ns) / 1e9
        return {
            "name": self.me.name,
            "site": self.me.site,
            "version": __version__,
            "uplink": self.config.uplink.interface,
            "ledger": self.config.ledger.path,
            "pid": os.getpid(),
            "started_at": round(time.time() - uptime_s, 3),
            "uptime_s": round(uptime_s, 3),
            "flows": flows,
            "leases_held": len(opening & applied),
            "adopted": self.adopted,
            "problems": self.problems(),
        }

    def problems(self) -> list[str]:
        """What is not as it should be, in sentences."""
        found = [f"slice {slice_} is past its deadline" for slice_ in self.keeper.expired()]
        found += [f"on-ramp {name} is not there" for name in self.effects.missing_onramps]
        troubles = (self.keeper.refusal, self.ledger_trouble.text, self.kernel_trouble.text)
        found += [text for text in troubles if text]
        found += self.watch.problems()
        found += [
            f"pool {name} has {number} slices less than it may have: none are free"
            for name, number in self.keeper.missing.items()
            if number
        ]
        return found
