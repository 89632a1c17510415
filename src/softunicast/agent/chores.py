"""What the agent does now and then, beside following the ledger: sweep, tidy up, report drops, look after the uplink.

Each chore is a loop that never ends by itself. What goes wrong is logged when it begins and when it ends, not
every time it is met; only a lost uplink ends the agent, because nothing but a new start can help.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Final, cast

from softunicast.agent.decisions import grown
from softunicast.agent.effects import NodeEffects
from softunicast.agent.kernel_thread import KernelThread
from softunicast.agent.watch import Watch
from softunicast.core.errors import HostError, SoftunicastError
from softunicast.observe.events import EventLog
from softunicast.observe.logs import Log

SWEEP_S: Final = 10.0
DROPS_S: Final = 1.0
UPLINK_S: Final = 1.0  # cheap to ask, and until then nobody watches what leaves by a new interface


class Trouble:
    """Something that can fail for a while. `text` says how it fails now, None when it works."""

    def __init__(self, what: str, log: Log) -> None:
        self.text: str | None = None
        self._what = what
        self._log = log

    async def meet(self, step: Callable[[], Awaitable[None]]) -> None:
        """Does the step. OSError counts: interfaces come and go between two system calls."""
        try:
            await step()
        except (SoftunicastError, OSError) as error:
            if self.text is None:
                self._log.error(f"{self._what} trouble", why=str(error))
            self.text = str(error)
            return
        if self.text is not None:
            self._log.info(f"{self._what} works again")
        self.text = None


async def sweep(kernel: KernelThread, effects: NodeEffects, watch: Watch, log: Log) -> None:
    """Frees what expired claims keep of the kernel's memory, and looks how full everything is. Ports are free without
    it; when clients are refused for lack of memory, it does not wait for its time."""
    trouble = Trouble("sweep", log)

    async def once() -> None:
        watch.hurry.clear()
        freed, live = await kernel(effects.datapath.sweep)
        watch.swept(live, await kernel(effects.datapath.usage), effects.datapath.state)
        log.debug("claims swept", freed=freed, live=live)

    while True:
        await asyncio.sleep(DROPS_S)
        with suppress(TimeoutError):
            await asyncio.wait_for(watch.hurry.wait(), SWEEP_S - DROPS_S)
        await trouble.meet(once)


async def report_drops(kernel: KernelThread, effects: NodeEffects, watch: Watch, log: EventLog) -> None:
    """One event a second at most for each reason whose counter grew, with the last such packet."""
    counts = {drop.reason: drop.packets for drop in await kernel(effects.datapath.drops)}

    async def once() -> None:
        drops = await kernel(effects.datapath.drops)
        for drop, more in grown(counts, drops):
            last = asdict(drop.last) if drop.last else None
            reason = drop.reason.name.lower()
            log.warning("packets dropped", reason=reason, packets=more, total=drop.packets, last=last)
            watch.dropped(drop, more, effects.datapath.state)
        log.flush()
        counts.update({drop.reason: drop.packets for drop in drops})

    await _every(DROPS_S, once, Trouble("drop counters", cast(Log, log)))


async def tidy(kernel: KernelThread, effects: NodeEffects, log: Log) -> None:
    """Agreements of cgroups that are gone, and cgroups of programs that have ended: nobody tells of either."""

    async def once() -> None:
        if number := await kernel(effects.sockets.tidy):
            log.debug("agreements over", agreements=number)

    await _every(SWEEP_S, once, Trouble("agreements", log))


async def watch_uplink(kernel: KernelThread, effects: NodeEffects) -> None:
    """Director and guard went with the interface: takes the addresses from `lo`, and raises HostError."""
    while True:
        await asyncio.sleep(UPLINK_S)
        if await kernel(effects.uplink_is_gone):
            await kernel(effects.leave_addresses)
            raise HostError(
                f"the uplink {effects.uplink} is gone, or is another interface now",
                "start the agent again when it is back",
            )


async def _every(period_s: float, step: Callable[[], Awaitable[None]], trouble: Trouble) -> None:
    while True:
        await asyncio.sleep(period_s)
        await trouble.meet(step)
