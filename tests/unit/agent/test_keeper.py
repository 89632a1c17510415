"""The lease keeper against a real ledger on a clock that moves when told: when may the data path use what?"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.agent import fakes
from tests.unit.agent.fakes import EMPTY, INVENTORY, ME, NEIGHBOUR, POOL, SHARED, Time, part

from softunicast.agent import keeper as keeper_module
from softunicast.agent.keeper import LeaseKeeper, Timing
from softunicast.core.desired import AddressTable, KernelState, SlotOwner
from softunicast.core.errors import LeaseError, LedgerError
from softunicast.core.leases import Lease, LeaseState
from softunicast.core.pools import Pool
from softunicast.core.slices import Slice
from softunicast.ledger.sqlite import SqliteLedger
from softunicast.observe.logs import Log

TTL_S, SETTLE_S = 30.0, 0.5


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def ledger(tmp_path: Path, time: Time) -> AsyncIterator[SqliteLedger]:
    ledger = await SqliteLedger.open(tmp_path / "ledger.db", clock=time, quarantine_s=10)
    await ledger.apply_inventory(INVENTORY)
    await ledger.register_server(ME)
    await ledger.register_server(NEIGHBOUR)
    yield ledger
    await ledger.close()


def make(ledger: object, time: Time, *pools: Pool) -> LeaseKeeper:
    timing = Timing(TTL_S, SETTLE_S, time.now_ns, lambda: 0.5)
    log = cast(Log, fakes.Log())
    return LeaseKeeper(cast(Any, ledger), ME.name, ME.site, pools or (POOL,), timing, log)


def deadline_s(keeper: LeaseKeeper, slice_: Slice) -> float:
    return keeper.holdings[slice_].deadline_ns / 1e9


class Slow:
    """A ledger whose answers take time on the way back: `delay_s` after it has done what was asked."""

    def __init__(self, ledger: SqliteLedger, time: Time) -> None:
        self._ledger, self._time, self.delay_s = ledger, time, 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)
        if name == "now":
            return method

        async def late(*args: Any) -> Any:
            try:
                return await method(*args)
            finally:
                self._time.now_s += self.delay_s

        return late


class Silent:
    """A ledger that fails, or never answers, or does what was asked and then says that it failed."""

    def __init__(self, ledger: SqliteLedger, how: str = "works") -> None:
        self._ledger, self.how = ledger, how

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._ledger, name)
        if name == "now":
            return method

        async def call(*args: Any) -> Any:
            if self.how == "fails":
                raise LedgerError("no such luck")
            if self.how == "hangs":
                await asyncio.Event().wait()
            answer = await method(*args)
            if self.how == "loses answers":
                raise LedgerError("the answer was lost")
            return answer

        return call


async def test_takes_the_first_free_slice(ledger: SqliteLedger, time: Time) -> None:
    await ledger.acquire("server2", part(1), TTL_S)
    keeper = make(ledger, time)
    await keeper.fill(await ledger.snapshot())
    assert list(keeper.holdings) == [part(2)]
    assert keeper.missing == {"gb": 0}
    await keeper.fill(await ledger.snapshot())
    assert list(keeper.holdings) == [part(2)]


async def test_new_slice_settles_before_it_opens_flows(ledger: SqliteLedger, time: Time) -> None:
    keeper = make(ledger, time)
    await keeper.fill(await ledger.snapshot())
    assert keeper.usable() == frozenset()
    assert keeper.deadlines() == {part(1): int((1000 + TTL_S - 1) * 1e9)}  # in the table at once
    time.now_s += SETTLE_S
    assert keeper.usable() == {part(1)}


async def test_deadline_counts_from_before_the_request_was_sent(ledger: SqliteLedger, time: Time) -> None:
    slow = Slow(ledger, time)
    keeper = make(slow, time)
    slow.delay_s = 7.0
    await keeper.fill(await ledger.snapshot())
    assert deadline_s(keeper, part(1)) == 1000 + TTL_S - 1
    lease = (await ledger.snapshot()).leases[0]
    assert deadline_s(keeper, part(1)) < lease.expires_at
    time.now_s = 1010.0
    await keeper.renew_due()
    assert deadline_s(keeper, part(1)) == 1010 + TTL_S - 1  # though the answer came at 1017


async def test_frozen_past_the_deadline_is_lost_not_revived(ledger: SqliteLedger, time: Time) -> None:
    """The process stops between sending a renewal and reading the answer, and wakes after the deadline."""
    slow = Slow(ledger, time)
    keeper = make(slow, time)
    await keeper.fill(await ledger.snapshot())
    time.now_s = 1010.0
    slow.delay_s = 1000.0
    await keeper.renew_due()
    assert keeper.expired() == [part(1)]
    assert deadline_s(keeper, part(1)) == 1010 + TTL_S - 1
    slow.delay_s = 0.0
    await keeper.renew_due()
    assert keeper.holdings == {}


async def test_renews_when_due_and_not_before(ledger: SqliteLedger, time: Time) -> None:
    keeper = make(ledger, time)
    await keeper.fill(await ledger.snapshot())
    version = await ledger.version()
    time.now_s += TTL_S / 3 - 0.1
    await keeper.renew_due()
    assert await ledger.version() == version
    time.now_s += 0.2
    await keeper.renew_due()
    assert deadline_s(keeper, part(1)) == pytest.approx(1010.1 + TTL_S - 1)


async def test_lost_lease_is_forgotten_at_once_and_another_taken(ledger: SqliteLedger, time: Time) -> None:
    keeper = make(ledger, time)
    await keeper.fill(await ledger.snapshot())
    generation = keeper.generation
    time.now_s += TTL_S
    await ledger.lapse()
    await keeper.renew_due()
    assert keeper.deadlines() == {}
    assert keeper.generation > generation
    await keeper.fill(await ledger.snapshot())
    assert list(keeper.holdings) == [part(2)]  # the first is quarantined


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_silence_changes_nothing(
    ledger: SqliteLedger, time: Time, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "ANSWER_TIMEOUT_S", 0.05)
    silent = Silent(ledger)
    keeper = make(silent, time)
    await keeper.fill(await ledger.snapshot())
    before = dict(keeper.deadlines())
    silent.how = how
    time.now_s += TTL_S / 2
    with pytest.raises(LedgerError):
        await keeper.renew_due()
    assert keeper.deadlines() == before
    silent.how = "works"
    await keeper.renew_due()
    assert deadline_s(keeper, part(1)) == 1015 + TTL_S - 1


async def test_renewal_whose_answer_was_lost_counts_only_when_answered(
    ledger: SqliteLedger, time: Time
) -> None:
    silent = Silent(ledger)
    keeper = make(silent, time)
    await keeper.fill(await ledger.snapshot())
    silent.how = "loses answers"
    time.now_s = 1012.0
    with pytest.raises(LedgerError):
        await keeper.renew_due()
    assert (await ledger.snapshot()).leases[0].expires_at == 1012 + TTL_S
    assert deadline_s(keeper, part(1)) == 1000 + TTL_S - 1


async def test_lease_whose_grant_was_lost_is_taken_up(ledger: SqliteLedger, time: Time) -> None:
    silent = Silent(ledger, "loses answers")
    keeper = make(silent, time)
    with pytest.raises(LedgerError):
        await keeper.fill(await ledger.snapshot())
    assert keeper.holdings == {}
    silent.how = "works"
    time.now_s = 1003.0
    await keeper.fill(await ledger.snapshot())
    assert deadline_s(keeper, part(1)) == 1003 + TTL_S - 1
    assert keeper.usable() == frozenset()
    assert len((await ledger.snapshot()).leases) == 1


async def test_others_were_faster(ledger: SqliteLedger, time: Time) -> None:
    keeper = make(ledger, time)
    old = await ledger.snapshot()
    for number in (1, 2, 3):
        await ledger.acquire("server2", part(number), TTL_S)
    await keeper.fill(old)
    assert list(keeper.holdings) == [part(4)]


async def test_nothing_free(ledger: SqliteLedger, time: Time) -> None:
    for number in range(1, 32):
        await ledger.acquire("server2", part(number), TTL_S)
    keeper = make(ledger, time)
    await keeper.fill(await ledger.snapshot())
    assert keeper.missing == {"gb": 1}
    assert keeper.refusal is None


async def test_tag_that_left_the_ledger_is_said_and_nothing_dropped(ledger: SqliteLedger, time: Time) -> None:
    keeper = make(ledger, time)
    await keeper.fill(await ledger.snapshot())
    gone = replace(await ledger.snapshot(), addresses=INVENTORY.addresses[1:])
    await keeper.fill(gone)
    assert "country=gb" in (keeper.refusal or "")
    assert list(keeper.holdings) == [part(1)]
    await keeper.fill(await ledger.snapshot())
    assert keeper.refusal is None


async def test_surplus_is_drained_and_still_renewed(ledger: SqliteLedger, time: Time) -> None:
    await make(ledger, time, replace(POOL, slices_max=2)).fill(await ledger.snapshot())
    keeper = make(ledger, time)  # started again with a smaller slices_max
    await keeper.adopt(await ledger.snapshot(), kernel_with({1: 1, 2: 2}))
    await keeper.renew_due()
    await keeper.fill(await ledger.snapshot())
    assert keeper.draining() == [part(2)]
    assert keeper.usable() == {part(1)}
    time.now_s += TTL_S / 2
    await keeper.renew_due()
    assert deadline_s(keeper, part(2)) == 1015 + TTL_S - 1
    assert keeper.holdings[part(2)].lease.state is LeaseState.DRAINING


def kernel_with(epochs: dict[int, int]) -> KernelState:
    owners = {number: SlotOwner(ME.name, epoch, int(1029e9)) for number, epoch in epochs.items()}
    return replace(EMPTY, addresses={SHARED: AddressTable(2048, owners)})


async def test_adopts_what_the_kernel_works_with_and_gives_back_the_rest(
    ledger: SqliteLedger, time: Time
) -> None:
    await make(ledger, time, replace(POOL, slices_max=2)).fill(await ledger.snapshot())
    time.now_s += 3
    keeper = make(ledger, time, replace(POOL, slices_max=2))
    await keeper.adopt(await ledger.snapshot(), kernel_with({2: 2}))
    assert keeper.deadlines() == {part(2): int(1029e9)}  # until the ledger answered, the kernel's word
    assert keeper.usable() == {part(2)}  # the neighbours know it already
    states = {lease.slice: lease.state for lease in (await ledger.snapshot()).leases}
    assert states == {part(1): LeaseState.QUARANTINED, part(2): LeaseState.HELD}
    await keeper.renew_due()
    assert deadline_s(keeper, part(2)) == 1003 + TTL_S - 1


async def test_release(ledger: SqliteLedger, time: Time) -> None:
    keeper = make(ledger, time, replace(POOL, slices_max=2))
    await keeper.fill(await ledger.snapshot())
    first, second = (keeper.holdings[part(number)].lease for number in (1, 2))
    for lease in (first, second):
        keeper.forget(lease.slice)
    await keeper.release(first, clean=True)
    await keeper.release(second, clean=False)
    await keeper.release(second, clean=False)  # lost before: no error
    left: tuple[Lease, ...] = (await ledger.snapshot()).leases
    assert [(lease.slice, lease.state) for lease in left] == [(part(2), LeaseState.QUARANTINED)]
    with pytest.raises(LeaseError):
        await ledger.renew(first, TTL_S)
