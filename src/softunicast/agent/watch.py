"""Is anything full, or nearly? Turns what the sweep counted and which drop counters grew into events.

How full a pool is: the flows towards its busiest destination, as a share of its ports, because a port serves many
destinations and a client is refused when all ports are taken towards where it wants to go (bpf/usage.h).
Nothing here asks the kernel; the chores do, and tell what they found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

from softunicast.core.config import Limits
from softunicast.core.desired import KernelState
from softunicast.core.events import crosses
from softunicast.core.pools import Pool
from softunicast.kernel.abi import Reason
from softunicast.kernel.flows import Drop
from softunicast.kernel.usage import Usage
from softunicast.observe.logs import Log

_OF_CLIENTS: Final = (Reason.CLIENT_FLOWS, Reason.CLIENT_STATE, Reason.CLIENT_RATE)
_MEMORY: Final = (Reason.TABLE_FULL, Reason.CLIENT_TABLE, Reason.CLIENT_FLOWS, Reason.CLIENT_STATE)


class Watch:
    """What is full now. `usage`: as of the last sweep."""

    def __init__(self, pools: Iterable[Pool], limits: Limits, log: Log) -> None:
        self._pools = tuple(pools)
        self._limits = limits
        self._log = log
        self._high: set[str] = set()
        self._table_high = False
        self.usage: Mapping[str, Usage] = {}
        self.hurry = asyncio.Event()  # a sweep may help those who are refused

    def swept(self, flows: int, usage: Mapping[str, Usage], state: KernelState) -> None:
        """After a sweep: live flows of this server, and of its pools."""
        self.usage = usage
        for pool in self._pools:
            self._look_at(pool, usage.get(pool.name), state)
        limits, share = self._limits, flows / self._limits.flows_max
        high = crosses(self._table_high, share, limits.warn_at, limits.warn_clear_at)
        if high == self._table_high:
            return
        self._table_high = high
        if high:
            self._log.warning("table nearly full", flows=flows, flows_max=limits.flows_max)
        else:
            self._log.info("table has room again", flows=flows, flows_max=limits.flows_max)

    def _look_at(self, pool: Pool, usage: Usage | None, state: KernelState) -> None:
        held = state.pools[pool.name].slices if pool.name in state.pools else ()
        ports = sum(slice_.ports for slice_ in held)
        busiest = usage.busiest if usage is not None and ports else 0
        was_high = pool.name in self._high
        high = bool(ports) and crosses(was_high, busiest / ports, pool.warn_at, pool.warn_clear_at)
        if high == was_high:
            return
        self._high ^= {pool.name}
        destination = usage.destination if usage is not None else None
        about = {"pool": pool.name, "busiest": busiest, "ports": ports, "destination": destination}
        if high:
            self._log.warning("pool nearly full", **about)
        else:
            self._log.info("pool has room again", **about)

    def dropped(self, drop: Drop, more: int, state: KernelState) -> None:
        """A drop counter grew by `more`."""
        reason, last, log = drop.reason, drop.last, self._log
        if reason in _MEMORY:
            self.hurry.set()
        onramp = last.interface if last is not None else None
        pool = state.onramps.get(onramp) if onramp is not None else None
        client = last.source.rpartition(":")[0] if last is not None else None
        destination = f"{last.protocol} {last.destination}" if last is not None else None
        if reason is Reason.SLICE_FULL:
            log.warning("pool full", pool=pool, destination=destination, count=more)
        elif reason is Reason.NO_SLICE:
            log.warning("pool without slices", pool=pool, count=more)
        elif reason is Reason.TABLE_FULL:
            log.warning("table full", flows_max=self._limits.flows_max, count=more)
        elif reason is Reason.CLIENT_TABLE:
            log.warning("clients full", clients_max=self._limits.clients_max, count=more)
        elif reason in _OF_CLIENTS:
            limit = reason.name.lower()
            log.warning("client limited", pool=pool, client=client, onramp=onramp, reason=limit, count=more)

    def problems(self) -> list[str]:
        """What is nearly full now, in sentences."""
        found = [f"pool {name} is nearly full" for name in sorted(self._high)]
        return found + ["the table of flows is nearly full"] * self._table_high
