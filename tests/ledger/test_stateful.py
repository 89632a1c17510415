"""Random lives of a ledger against a naive model: a list of tenures, each with its times.

Servers take, renew, drain and release by what they remember (rightly or not); time passes, the wall clock jumps,
addresses are cut anew, handles are closed, the host reboots. At no time may two servers believe that they may
send from one port, nor two live leases overlap; epochs only grow.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from itertools import combinations
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from tests.ledger.backend import FakeClock

from softunicast.core.errors import InputError, LeaseError, OverlapError, SliceTakenError
from softunicast.core.leases import Lease, LeaseState, data_path_deadline
from softunicast.core.records import Address, Block, Inventory, Server
from softunicast.core.slices import Slice
from softunicast.ledger.sqlite import SqliteLedger

QUARANTINE_S = 60.0
SHARED = IPv4Address("198.51.100.10")
BLOCK = Block(Slice.parse("198.51.100.0/24"))
CUTS = (8192, 16384, 32768)
SERVERS = ("server1", "server2", "server3")
HANDLES = 2

servers = st.sampled_from(SERVERS)
handles = st.integers(0, HANDLES - 1)
ttls_s = st.integers(2, 200).map(float)
slices = st.sampled_from(
    [Slice.of(SHARED, first, ports) for ports in CUTS for first in range(0, 65536, ports)]
)


@dataclass
class Tenure:
    slice: Slice
    server: str
    epoch: int
    until: float
    free_from: float
    draining: bool = False


class LedgerLife(RuleBasedStateMachine):
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-life-"))
        self.runner = asyncio.Runner()
        self.clock = FakeClock()
        self.tenures: list[Tenure] = []
        self.deadlines: dict[int, tuple[Slice, float]] = {}  # by epoch: what some server's kernel runs on
        self.cut = CUTS[0]
        self.epoch_max = 0

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(call)

    def open(self) -> SqliteLedger:
        ledger: SqliteLedger = self.run(
            SqliteLedger.open(self.folder / "ledger.db", self.clock, QUARANTINE_S)
        )
        return ledger

    @initialize()
    def furnish(self) -> None:
        self.handles = [self.open() for _ in range(HANDLES)]
        self.run(self.handles[0].apply_inventory(self.inventory(self.cut)))
        for name in SERVERS:
            server = Server(name, "lab", IPv4Address("192.0.2.1"), "02:00:00:00:00:01")
            self.run(self.handles[0].register_server(server))

    def inventory(self, cut: int) -> Inventory:
        return Inventory((BLOCK,), (Address(SHARED, "lab", {}, cut),))

    def teardown(self) -> None:
        for ledger in getattr(self, "handles", ()):
            self.run(ledger.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    # -- the model -------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.clock.up_s

    def standing(self, lease: Lease) -> Tenure | None:
        """The tenure that makes this lease good now."""
        for tenure in self.tenures:
            if (tenure.server, tenure.epoch) == (lease.server, lease.epoch) and self.now < tenure.until:
                return tenure
        return None

    def live(self) -> list[Tenure]:
        return [tenure for tenure in self.tenures if self.now < tenure.until]

    # -- what servers do -------------------------------------------------------------------------------------

    @rule(target=leases, handle=handles, server=servers, slice=slices, ttl_s=ttls_s)
    def acquire(self, handle: int, server: str, slice: Slice, ttl_s: float) -> Any:
        is_unit = slice.ports == self.cut and slice.port_first > 0
        is_free = all(
            not tenure.slice.overlaps(slice) or tenure.free_from <= self.now for tenure in self.tenures
        )
        try:
            lease: Lease = self.run(self.handles[handle].acquire(server, slice, ttl_s))
        except InputError:
            assert not is_unit
            return multiple()
        except SliceTakenError:
            assert is_unit
            assert not is_free
            return multiple()
        assert is_unit
        assert is_free
        assert lease.epoch > self.epoch_max
        self.epoch_max = lease.epoch
        until = self.now + ttl_s
        assert lease == Lease(slice, server, lease.epoch, LeaseState.HELD, until)
        self.tenures.append(Tenure(slice, server, lease.epoch, until, until + QUARANTINE_S))
        self.deadlines[lease.epoch] = (slice, data_path_deadline(self.now, ttl_s))
        return lease

    @rule(handle=handles, lease=leases, ttl_s=ttls_s)
    def renew(self, handle: int, lease: Lease, ttl_s: float) -> None:
        tenure = self.standing(lease)
        try:
            renewed = self.run(self.handles[handle].renew(lease, ttl_s))
        except LeaseError:
            assert tenure is None
            return
        assert tenure is not None
        tenure.until = max(tenure.until, self.now + ttl_s)
        tenure.free_from = tenure.until + QUARANTINE_S
        assert renewed.expires_at == tenure.until
        # The answer may be lost, and the kernel run on the earlier promise: keep whichever ends later.
        _, before = self.deadlines[lease.epoch]
        self.deadlines[lease.epoch] = (lease.slice, max(before, data_path_deadline(self.now, ttl_s)))

    @rule(handle=handles, lease=leases)
    def drain(self, handle: int, lease: Lease) -> None:
        tenure = self.standing(lease)
        try:
            self.run(self.handles[handle].drain(lease))
        except LeaseError:
            assert tenure is None
            return
        assert tenure is not None
        tenure.draining = True

    @rule(handle=handles, lease=leases, clean=st.booleans())
    def release(self, handle: int, lease: Lease, clean: bool) -> None:
        tenure = self.standing(lease)
        self.deadlines.pop(lease.epoch, None)  # the kernel lets go first
        try:
            self.run(self.handles[handle].release(lease, clean))
        except LeaseError:
            assert tenure is None
            return
        assert tenure is not None
        tenure.until = self.now
        tenure.free_from = self.now if clean else self.now + QUARANTINE_S

    @rule(handle=handles, lease=leases, server=servers)
    def renew_what_another_holds(self, handle: int, lease: Lease, server: str) -> None:
        if server == lease.server:
            return
        try:
            self.run(self.handles[handle].renew(replace(lease, server=server), 100))
        except LeaseError:
            return
        raise AssertionError("renewed for a server that never held it")

    # -- what happens to them --------------------------------------------------------------------------------

    @rule(seconds=st.one_of(st.integers(0, 20), st.integers(0, 400)))
    def time_passes(self, seconds: int) -> None:
        self.clock.advance(float(seconds))

    @rule(seconds=st.sampled_from([-1e9, -3600.0, 3600.0, 1e8]))
    def the_wall_clock_jumps(self, seconds: float) -> None:
        self.clock.wall += seconds

    @rule(handle=handles)
    def lapse(self, handle: int) -> None:
        self.run(self.handles[handle].lapse())
        assert self.run(self.handles[handle].lapse()) == 0

    @rule(handle=handles, cut=st.sampled_from(CUTS))
    def cut_anew(self, handle: int, cut: int) -> None:
        try:
            self.run(self.handles[handle].apply_inventory(self.inventory(cut)))
        except OverlapError:
            assert cut != self.cut
            assert self.live()
            return
        assert cut == self.cut or not self.live()
        self.cut = cut

    @rule(handle=handles)
    def reopen(self, handle: int) -> None:
        self.run(self.handles[handle].close())
        self.handles[handle] = self.open()

    @precondition(lambda self: self.tenures)
    @rule(up_s=st.sampled_from([0.0, QUARANTINE_S / 2, QUARANTINE_S]))
    def reboot(self, up_s: float) -> None:
        known = {lease.epoch for lease in self.run(self.handles[0].snapshot()).leases}
        for ledger in self.handles:
            self.run(ledger.close())
        self.clock.reboot()
        self.clock.advance(up_s)
        self.deadlines.clear()
        for tenure in self.tenures:
            # How long the old boot lasted, nobody knows: all that was not known to be over ends now.
            tenure.until = min(tenure.until, 0.0)
            tenure.free_from = QUARANTINE_S if tenure.epoch in known else 0.0
        self.handles = [self.open() for _ in range(HANDLES)]

    # -- what must hold, always ------------------------------------------------------------------------------

    @invariant()
    def nobody_shares_a_port(self) -> None:
        believed = [slice for slice, deadline in self.deadlines.values() if self.now < deadline]
        assert not any(one.overlaps(other) for one, other in combinations(believed, 2))

    @invariant()
    def the_ledger_says_what_the_model_says(self) -> None:
        if not hasattr(self, "handles"):
            return
        views = [self.run(ledger.snapshot()) for ledger in self.handles]
        assert all(view == views[0] for view in views)
        rows = views[0].leases
        assert not any(one.slice.overlaps(other.slice) for one, other in combinations(rows, 2))
        found = {
            (row.slice, row.server, row.epoch, row.state is LeaseState.DRAINING, row.expires_at)
            for row in rows
            if row.is_live_at(self.now)
        }
        assert found == {
            (tenure.slice, tenure.server, tenure.epoch, tenure.draining, tenure.until)
            for tenure in self.live()
        }


TestLedgerLife = LedgerLife.TestCase
TestLedgerLife.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
