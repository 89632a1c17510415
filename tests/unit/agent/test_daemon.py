"""The running agent on a stand-in kernel and a real ledger: what the kernel is told, and what a stop leaves."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.agent import fakes
from tests.unit.agent.fakes import INVENTORY, ME, NEIGHBOUR, POOL, SHARED, DataPath, part
from tests.unit.agent.node import TTL_S, WAIT_S, Node, until

from softunicast.agent import chores
from softunicast.agent import daemon as daemon_module
from softunicast.agent.sockets import Member
from softunicast.core.desired import KernelState
from softunicast.core.errors import HostError, LedgerError, UnknownNameError
from softunicast.core.leases import LeaseState
from softunicast.core.pools import Pool
from softunicast.core.records import Server, Snapshot
from softunicast.kernel.abi import Reason
from softunicast.kernel.flows import Drop
from softunicast.kernel.joining import Entry
from softunicast.kernel.usage import Usage
from softunicast.ledger.sqlite import SqliteLedger


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    ledger = await SqliteLedger.open(tmp_path / "ledger.db")
    await ledger.apply_inventory(INVENTORY)
    await ledger.close()
    return Node(tmp_path)


async def states(path: Path) -> dict[object, LeaseState]:
    ledger = await SqliteLedger.open(path / "ledger.db")
    try:
        return {lease.slice: lease.state for lease in (await ledger.snapshot()).leases}
    finally:
        await ledger.close()


async def test_takes_settles_opens_and_gives_back(node: Node) -> None:
    async with node.running() as daemon:
        # Known to the director at once, open for flows only when it has settled.
        assert daemon.keeper.deadlines().keys() == {part(1)}
        await until(lambda: node.datapath.state.addresses[SHARED].owners.keys() == {1})
        await until(lambda: node.opening() == (part(1),))
        assert daemon.keeper.usable() == {part(1)}
        assert node.calls.on_loopback == {SHARED}
        status = await daemon.status()
        assert (status["leases_held"], status["problems"]) == (1, [])
    assert node.calls.on_loopback == set()
    assert set(node.calls.settings.values()) == {0}
    assert node.datapath.done[-1] == "detach"
    assert await states(node.path) == {}


async def test_programs_that_run_on_without_a_pool_are_named(node: Node) -> None:
    node.sockets.found = [Member(Entry(77, "gb", Path("/sys/fs/cgroup/unit")), ((5, "squid"),))]
    async with node.running():
        pass
    [told] = [
        fields for name, fields in zip(node.log.names, node.log.fields, strict=True) if "programs" in name
    ]
    assert told == {"cgroups": ("/sys/fs/cgroup/unit",)}


async def test_new_slice_is_closed_until_it_settled(node: Node) -> None:
    node.config = replace(node.config, agent=replace(node.config.agent, settle_s=60.0))
    async with node.running() as daemon:
        await until(lambda: 1 in node.datapath.state.addresses[SHARED].owners)
        assert node.opening() == ()
        assert (await daemon.status())["leases_held"] == 0


async def test_ready_is_told_once_and_not_before_flows_open(node: Node) -> None:
    told: list[tuple[object, ...]] = []
    node.ready = lambda: told.append(node.opening())
    async with node.running() as daemon:
        await until(lambda: bool(told))
        turns = daemon.keeper.generation
        daemon.keeper.generation += 1  # something else to apply
        await until(lambda: daemon._applied[1] > turns)  # type: ignore[operator]
    assert told == [(part(1),)]


async def test_ready_is_told_in_the_end_of_an_agent_in_trouble(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd would end it, and start it anew, for ever."""
    node.config = replace(node.config, agent=replace(node.config.agent, settle_s=60.0))
    monkeypatch.setattr(daemon_module, "READY_MAX_S", -59.9)
    told: list[tuple[object, ...]] = []
    node.ready = lambda: told.append(node.opening())
    async with node.running():
        await until(lambda: bool(told))
    assert told == [()]


async def test_live_flows_make_a_stop_unclean(node: Node) -> None:
    async with node.running():
        await until(lambda: node.opening() == (part(1),))
        node.datapath.live = {part(1): 1}
    assert await states(node.path) == {part(1): LeaseState.QUARANTINED}


async def test_crash_and_restart_keep_the_slice(node: Node) -> None:
    async with node.running(restore=False):
        await until(lambda: node.opening() == (part(1),))
    kernel = node.datapath.state
    assert node.datapath.done[-1] == "close"
    assert node.calls.on_loopback == {SHARED}
    async with node.running() as daemon:
        assert daemon.adopted
        assert node.opening() == (part(1),)
        before, after = (state.addresses[SHARED].owners[1] for state in (kernel, node.datapath.state))
        assert before.epoch == after.epoch
        assert before.deadline_ns < after.deadline_ns
    assert set(node.calls.settings.values()) == {0}
    assert await states(node.path) == {}


async def test_kernel_without_the_slice_means_that_it_goes_back_unclean(node: Node) -> None:
    async with node.running(restore=False):
        await until(lambda: node.opening() == (part(1),))
    node.datapath = DataPath()
    async with node.running():
        await until(lambda: node.opening() == (part(2),))
    assert await states(node.path) == {part(1): LeaseState.QUARANTINED}


async def test_neighbours_are_seen_within_a_poll(node: Node) -> None:
    async with node.running():
        await node.ledger.register_server(NEIGHBOUR)
        await node.ledger.acquire("server2", part(7), TTL_S)
        await until(lambda: 7 in node.datapath.state.addresses[SHARED].owners)
        assert node.datapath.state.servers["server2"] == NEIGHBOUR.mac
        assert node.datapath.state.addresses[SHARED].owners[7].deadline_ns == 0


async def test_lost_lease_leaves_the_kernel_and_another_one_comes(node: Node) -> None:
    async with node.running() as daemon:
        await until(lambda: node.opening() == (part(1),))
        # An operator, or a clock that ran too fast, ended it.
        await node.ledger.release(daemon.keeper.holdings[part(1)].lease, clean=False)
        await until(lambda: node.opening() == (part(2),))
        assert "slice lost" in node.log.names


async def test_kernel_hears_of_a_lost_lease_before_the_ledger_is_asked_anything(node: Node) -> None:
    daemon = await node.make()
    await daemon.begin()
    assert node.datapath.state.addresses[SHARED].owners[1].deadline_ns > 0
    await node.ledger.release(daemon.keeper.holdings[part(1)].lease, clean=True)
    await node.ledger.register_server(NEIGHBOUR)
    await node.ledger.acquire("server2", part(1), TTL_S)
    daemon.keeper.holdings[part(1)].due_ns = 0
    asked = asyncio.Event()

    async def hang() -> int:
        asked.set()
        return await asyncio.Event().wait()

    node.ledger.version = hang  # type: ignore[method-assign]
    turn = asyncio.create_task(daemon._follow_ledger())
    await asyncio.wait_for(asked.wait(), WAIT_S)
    # The snapshot is an old one: the slot still names this server, but past its deadline.
    assert node.datapath.state.addresses[SHARED].owners[1].deadline_ns == 0
    turn.cancel()
    await asyncio.wait([turn])
    await daemon.end(restore=True)


async def test_silent_ledger_is_said_once_and_endured(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node.running() as daemon:
        await until(lambda: node.opening() == (part(1),))
        before = node.datapath.state

        async def fail() -> int:
            raise LedgerError("disk on fire")

        monkeypatch.setattr(node.ledger, "version", fail)
        await until(lambda: daemon.ledger_trouble.text is not None)
        assert "disk on fire" in (await daemon.status())["problems"]  # type: ignore[operator]
        assert node.datapath.state == before
        await until(lambda: daemon._failures > 2)
        assert node.log.names.count("ledger trouble") == 1
        monkeypatch.undo()
        await until(lambda: daemon.ledger_trouble.text is None)
        assert "ledger works again" in node.log.names


async def test_kernel_that_refuses_is_asked_again(node: Node) -> None:
    async with node.running() as daemon:
        await until(lambda: node.opening() == (part(1),))
        node.datapath.fails = {"apply"}
        await node.ledger.register_server(NEIGHBOUR)
        await until(lambda: daemon.kernel_trouble.text is not None)
        node.datapath.fails = set()
        await until(lambda: "server2" in node.datapath.state.servers)
        assert daemon.problems() == []


async def test_smaller_configuration_drains_and_waits_for_the_last_flow(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "DRAIN_S", 0.02)
    node.config = replace(node.config, pools=(replace(POOL, slices_max=2),))
    async with node.running(restore=False):
        await until(lambda: node.opening() == (part(1), part(2)))
    node.config = replace(node.config, pools=(POOL,))
    node.datapath.live = {part(2): 1}
    async with node.running():
        await until(lambda: node.opening() == (part(1),))
        assert 2 in node.datapath.state.addresses[SHARED].owners
        # Several turns later it is still there: its flow lives.
        version = await node.ledger.version()
        await until(lambda: node.datapath.done.count("count") > 5)
        assert await node.ledger.version() == version
        node.datapath.live = {}
        await until(lambda: 2 not in node.datapath.state.addresses[SHARED].owners)
    assert await states(node.path) == {}


async def test_the_kernel_lets_go_of_a_drained_slice_before_the_ledger(node: Node) -> None:
    node.config = replace(node.config, pools=(replace(POOL, slices_max=2),))
    async with node.running(restore=False):
        await until(lambda: node.opening() == (part(1), part(2)))
    node.config = replace(node.config, pools=(POOL,))
    seen: list[KernelState] = []
    node.stopping = asyncio.Event()
    daemon = await node.make()
    release = node.ledger.release

    async def watched(lease: object, clean: bool) -> None:
        seen.append(node.datapath.state)
        await release(lease, clean)  # type: ignore[arg-type]

    node.ledger.release = watched  # type: ignore[method-assign]
    await daemon.begin()
    run = asyncio.create_task(daemon.run(node.stopping))
    await until(lambda: bool(seen))
    node.stopping.set()
    await run
    await daemon.end(restore=True)
    assert seen[0].addresses[SHARED].owners[2].deadline_ns == 0


async def test_server_that_the_ledger_forgot_registers_again(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node.running() as daemon:
        await until(lambda: node.opening() == (part(1),))
        registered: list[Server] = []
        snapshot, register = node.ledger.snapshot, node.ledger.register_server

        async def forgotten() -> Snapshot:
            return replace(await snapshot(), servers=() if not registered else (ME,))

        async def noted(server: Server) -> None:
            registered.append(server)
            await register(server)

        monkeypatch.setattr(node.ledger, "snapshot", forgotten)
        monkeypatch.setattr(node.ledger, "register_server", noted)
        daemon.snapshot = None
        await until(lambda: registered == [ME])


async def test_lost_uplink_ends_the_agent(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "UPLINK_S", 0.02)
    daemon = await node.make()
    await daemon.begin()
    del node.indices["uplink"]
    with pytest.raises(HostError, match="uplink uplink is gone"):
        async with asyncio.timeout(WAIT_S):
            await daemon.run(asyncio.Event())
    await daemon.end(restore=False)
    assert node.calls.on_loopback == set(), "nobody watches what the kernel would answer for it"


async def test_unknown_tag_is_refused_with_nothing_changed(node: Node) -> None:
    node.config = replace(node.config, pools=(Pool("us", {"country": "us"}),))
    with pytest.raises(UnknownNameError, match="country=us"):
        async with node.running():
            pass
    assert node.calls.on_loopback == set()
    assert set(node.calls.settings.values()) == {0}
    assert await states(node.path) == {}


async def test_second_server_of_the_same_name_is_refused_and_harms_nobody(node: Node) -> None:
    async with node.running():
        await until(lambda: node.opening() == (part(1),))
        impostor = Node(node.path, me=replace(NEIGHBOUR, name=ME.name))
        with pytest.raises(HostError, match="already in the ledger"):
            async with impostor.running():
                pass
        assert await states(node.path) == {part(1): LeaseState.HELD}


async def test_two_servers_and_never_one_slice(node: Node) -> None:
    other = Node(node.path, me=NEIGHBOUR)
    async with node.running(), other.running():
        await until(lambda: len(node.opening()) == 1 and len(other.opening()) == 1)
        assert set(node.opening()).isdisjoint(other.opening())
        await until(lambda: len(node.datapath.state.addresses[SHARED].owners) == 2)


async def test_grant_that_the_stop_interrupted_is_given_back(node: Node) -> None:
    async with node.running():
        await until(lambda: node.opening() == (part(1),))
        await node.ledger.acquire(ME.name, part(9), TTL_S)
        node.stopping.set()
    assert await states(node.path) == {}


async def test_drops_become_events(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "DROPS_S", 0.02)
    node.datapath.counters = [Drop(Reason.SLICE_FULL, 10, None)]
    async with node.running():
        await until(lambda: node.opening() == (part(1),))
        assert "packets dropped" not in node.log.names
        node.datapath.counters = [Drop(Reason.SLICE_FULL, 25, None)]
        await until(lambda: "packets dropped" in node.log.names)
        fields = node.log.fields[node.log.names.index("packets dropped")]
        assert (fields["reason"], fields["packets"], fields["total"]) == ("slice_full", 15, 25)


async def test_a_full_pool_is_an_event_and_a_full_table_a_sweep(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep does not wait for its time, and what it counts is an event, too."""
    monkeypatch.setattr(chores, "DROPS_S", 0.02)
    node.datapath.counters = [Drop(reason, 10, None) for reason in (Reason.SLICE_FULL, Reason.TABLE_FULL)]
    async with node.running() as daemon:
        await until(lambda: node.opening() == (part(1),))
        node.datapath.used = {"gb": Usage(2000, 1900, "tcp 203.0.113.1:443")}
        node.datapath.counters = [replace(drop, packets=13) for drop in node.datapath.counters]
        await until(lambda: "pool nearly full" in node.log.names)
        kinds = {event.kind: event.count for event in daemon.event_log.book.since(0, 100)}
        assert (kinds["pool full"], kinds["table full"]) == (3, 3)
        assert daemon.problems() == ["pool gb is nearly full"]


async def test_audit_reads_what_the_kernel_really_holds(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "REAPPLY_S", 0.05)
    monkeypatch.setattr(daemon_module, "AUDIT_S", 0.05)
    async with node.running():
        await until(lambda: node.opening() == (part(1),))
        node.datapath.state = fakes.EMPTY
        await until(lambda: node.opening() == (part(1),))
