"""The leases of this server: taking, renewing, draining and giving back, and until when each may be used.

A holding is a lease together with what this process knows of its time: the data path's deadline is counted from
the moment before the last successful request was sent, so neither a slow answer nor a process that was frozen
meanwhile makes it later. A lease that the ledger calls lost is dropped in the same step. A slice that was just
taken opens new flows only after `settle_s`, when every neighbour had time to learn whose it is.

States of a holding: settling -> usable -> draining -> gone. The ledger's silence changes nothing here: the kernel
stops by itself at the deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from softunicast.agent.decisions import Wants, adoption, renewal_due_ns, wants
from softunicast.core.desired import KernelState
from softunicast.core.errors import InputError, LeaseError, LedgerError, SliceTakenError
from softunicast.core.leases import Lease, LeaseState, data_path_deadline
from softunicast.core.ledger import Ledger
from softunicast.core.placement import choose
from softunicast.core.pools import Pool
from softunicast.core.records import Snapshot
from softunicast.core.slices import Slice
from softunicast.observe.logs import Log

T = TypeVar("T")

ANSWER_TIMEOUT_S: Final = 5.0  # for one ledger call; less when the TTL is so short that several must fit
SPARE_PROPOSALS: Final = 8  # further slices to try when other servers were faster, before looking again


@dataclass(slots=True)
class Holding:
    """One lease of this server. Times are CLOCK_MONOTONIC ns."""

    lease: Lease
    deadline_ns: int
    usable_ns: int
    due_ns: int


@dataclass(frozen=True, slots=True)
class Timing:
    """How the keeper times things, and where it gets time (CLOCK_MONOTONIC) and chance (0 to 1) from."""

    ttl_s: float
    settle_s: float
    now_ns: Callable[[], int]
    jitter: Callable[[], float]


class LeaseKeeper:
    """Talks to the ledger for one server. One task at a time may call its async methods."""

    def __init__(
        self,
        ledger: Ledger,
        server: str,
        site: str,
        pools: tuple[Pool, ...],
        timing: Timing,
        log: Log,
    ) -> None:
        self.holdings: dict[Slice, Holding] = {}
        self.missing: Mapping[str, int] = {pool.name: pool.slices_max for pool in pools}
        self.refusal: str | None = None  # why nothing can be taken: a tag that left the ledger
        self.generation = 0  # grows whenever a deadline or a holding changes
        self._ledger, self._server, self._site, self._pools = ledger, server, site, pools
        self._timing = timing
        self._log = log

    # -- what the rest of the agent asks ---------------------------------------------------------------------

    def deadlines(self) -> dict[Slice, int]:
        return {slice_: holding.deadline_ns for slice_, holding in self.holdings.items()}

    def usable(self) -> frozenset[Slice]:
        """Slices that may open new flows: settled, and not draining."""
        now_ns = self._timing.now_ns()
        return frozenset(
            slice_
            for slice_, holding in self.holdings.items()
            if holding.usable_ns <= now_ns and holding.lease.state is LeaseState.HELD
        )

    def expired(self) -> list[Slice]:
        """Slices past their deadline: the kernel has stopped using them."""
        now_ns = self._timing.now_ns()
        return sorted(slice_ for slice_, holding in self.holdings.items() if holding.deadline_ns <= now_ns)

    def draining(self) -> list[Slice]:
        return [s for s, holding in self.holdings.items() if holding.lease.state is LeaseState.DRAINING]

    # -- steps; all of them raise LedgerError when the ledger fails or is silent -----------------------------

    async def adopt(self, snapshot: Snapshot, actual: KernelState) -> None:
        """Takes up what an earlier agent left: what the kernel works with is due for renewal, the rest goes
        back. `actual` is what the kernel holds."""
        found = adoption(snapshot, self._server, actual)
        for slice_, (lease, deadline_ns) in found.held.items():
            self.holdings[slice_] = Holding(lease, deadline_ns, usable_ns=0, due_ns=0)
            self._log.info("slice adopted", slice=slice_, epoch=lease.epoch, state=lease.state)
        self.generation += 1
        for lease in found.orphans:
            self._log.warning("slice not in the kernel", slice=lease.slice, epoch=lease.epoch)
            await self.release(lease, clean=False)

    def doubt(self, snapshot: Snapshot) -> None:
        """What a new snapshot does not have in our name is due at once: the ledger then says why."""
        ours = {lease.slice for lease in snapshot.leases if lease.server == self._server and lease.live}
        for slice_, holding in self.holdings.items():
            if slice_ not in ours:
                holding.due_ns = 0

    async def renew_due(self) -> int:
        """Renews what is due, the earliest deadline first; forgets what is lost, and returns how many that is."""
        now_ns, lost = self._timing.now_ns(), 0
        due = [item for item in self.holdings.items() if item[1].due_ns <= now_ns]
        for slice_, holding in sorted(due, key=lambda item: item[1].deadline_ns):
            sent_ns = self._timing.now_ns()
            try:
                lease = await self.ask(self._ledger.renew(holding.lease, self._timing.ttl_s))
            except LeaseError as error:
                self.forget(slice_)
                lost += 1
                self._log.error("slice lost", slice=slice_, epoch=holding.lease.epoch, why=str(error))
                continue
            self._confirm(lease, sent_ns, holding.usable_ns)
        return lost

    async def fill(self, snapshot: Snapshot) -> None:
        """Takes what the pools may still have, as far as slices are free, and starts to drain what is too much."""
        await self._take_up(snapshot)
        try:
            for lease in self._wants(snapshot).surplus:
                await self._drain(lease)
            for pool in self._pools:
                for version in (4, 6):
                    if missing := self._wants(snapshot).missing.get((pool.name, version)):
                        await self._take(snapshot, pool, version, missing)
            self.missing = self._wants(snapshot).by_pool
            self.refusal = None
        except InputError as error:
            self.refusal = str(error)

    async def release(self, lease: Lease, clean: bool) -> None:
        """Gives a lease back. The kernel must have stopped using it: `forget` it and apply that first."""
        try:
            await self.ask(self._ledger.release(lease, clean))
        except LeaseError as error:
            self._log.warning("slice was lost before", slice=lease.slice, epoch=lease.epoch, why=str(error))
        else:
            self._log.info("slice released", slice=lease.slice, epoch=lease.epoch, clean=clean)

    def forget(self, slice_: Slice) -> None:
        """Drops a holding: what is applied to the kernel from now on does not let it use the slice."""
        self.generation += 1
        self.holdings.pop(slice_, None)

    async def ask(self, call: Awaitable[T]) -> T:
        """One call of the ledger, with a deadline: silence is LedgerError. What was asked may happen still."""
        timeout_s = min(ANSWER_TIMEOUT_S, self._timing.ttl_s / 6)
        try:
            async with asyncio.timeout(timeout_s):
                return await call
        except TimeoutError as error:
            raise LedgerError(f"the ledger did not answer within {timeout_s:g} s") from error

    # -- inside ----------------------------------------------------------------------------------------------

    def _wants(self, snapshot: Snapshot) -> Wants:
        held = (holding.lease for holding in self.holdings.values())
        return wants(snapshot, self._pools, self._site, held)

    def _confirm(self, lease: Lease, sent_ns: int, usable_ns: int) -> None:
        """The ledger granted `lease` to a request sent at `sent_ns`, and everything is counted from then."""
        ttl_s = self._timing.ttl_s
        self.holdings[lease.slice] = Holding(
            lease=lease,
            deadline_ns=int(data_path_deadline(sent_ns / 1e9, ttl_s) * 1e9),
            usable_ns=usable_ns,
            due_ns=renewal_due_ns(sent_ns, ttl_s, self._timing.jitter()),
        )
        self.generation += 1

    def _settled_ns(self) -> int:
        return self._timing.now_ns() + int(self._timing.settle_s * 1e9)

    async def _take_up(self, snapshot: Snapshot) -> None:
        """Leases in our name that we do not know: the answer to a request was lost, and nothing used them yet."""
        for lease in snapshot.leases:
            if lease.server == self._server and lease.live and lease.slice not in self.holdings:
                sent_ns = self._timing.now_ns()
                try:
                    renewed = await self.ask(self._ledger.renew(lease, self._timing.ttl_s))
                except LeaseError:
                    continue  # an old snapshot: we lost it or gave it back ourselves
                self._confirm(renewed, sent_ns, self._settled_ns())
                self._log.warning("slice taken up", slice=lease.slice, epoch=lease.epoch)

    async def _take(self, snapshot: Snapshot, pool: Pool, version: int, missing: int) -> None:
        proposals = choose(
            snapshot,
            pool,
            self._server,
            self._site,
            missing + SPARE_PROPOSALS,
            self._ledger.now(),
            version,
        )
        for slice_ in proposals:
            if missing == 0:
                break
            if slice_ in self.holdings:
                continue
            sent_ns = self._timing.now_ns()
            try:
                lease = await self.ask(self._ledger.acquire(self._server, slice_, self._timing.ttl_s))
            except SliceTakenError:
                continue
            self._confirm(lease, sent_ns, self._settled_ns())
            self._log.info("slice acquired", slice=slice_, epoch=lease.epoch, pool=pool.name)
            missing -= 1

    async def _drain(self, lease: Lease) -> None:
        try:
            drained = await self.ask(self._ledger.drain(lease))
        except LeaseError:
            return  # lost: the next renewal says so, and why
        self.holdings[lease.slice].lease = drained
        self.generation += 1
        self._log.info("slice draining", slice=lease.slice, epoch=lease.epoch)
