"""Giving sockets and ports over the real socket, by the library that programs use: who gets what, for how long, and
that nobody can ask too much. The kernel is a stand-in; tests/bpf and tests/netns have the real one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast

import pytest
from tests.unit.agent.fakes import INVENTORY
from tests.unit.agent.lender import NUMBER, Kernel, Service
from tests.unit.agent.node import Node, until

from softunicast.agent import borrowing, lending
from softunicast.agent.lending import Lending, borrowers_of
from softunicast.agent.peers import Holders, Peer
from softunicast.core.errors import AgentUnreachableError, HostError, InputError, KernelError
from softunicast.kernel.grants import Grant, Grants
from softunicast.ledger.sqlite import SqliteLedger
from softunicast.observe.logs import Log
from softunicast.pools import Lease
from softunicast.wire import lending as wire

EVERYBODY = Holders(frozenset({os.geteuid()}), frozenset())


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    ledger = await SqliteLedger.open(tmp_path / "ledger.db")
    await ledger.apply_inventory(INVENTORY)
    await ledger.close()
    node, path, kernel = Node(tmp_path), tmp_path / "run" / "pools.sock", Kernel()
    node.config = replace(node.config, agent=replace(node.config.agent, pool_socket=str(path)))
    async with node.running() as daemon:
        await until(lambda: bool(node.datapath.state.pools["gb"].slices))
        made = Service(node, path, kernel)
        made.lending = Lending(daemon, cast(Grants, kernel), {"gb": EVERYBODY}, cast(Log, node.log))
        await made.lending.start()
        yield made
        await made.lending.stop()
        await made.lending.stop()
        assert not path.exists()
        assert kernel.granted == []
        assert not kernel.asked


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> Peer:
    """Whoever asks is this one: the tests run as root, whom nobody refuses."""
    peer = Peer(7, 4711, frozenset({4712}))
    monkeypatch.setattr(Peer, "of", lambda _: peer)
    return peer


def open_here() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- sockets -------------------------------------------------------------------------------------------------


async def test_sockets_of_every_kind_in_one_message(service: Service) -> None:
    with service.pool() as pool:
        before = open_here()
        found = await service.do(pool.sockets, [socket.AF_INET, socket.AF_INET6, socket.AF_INET], "udp")
        assert service.kernel.agreed == [(os.fstat(one.fileno()).st_ino, NUMBER) for one in found]
        assert [(one.family, one.type) for one in found] == [
            (socket.AF_INET, socket.SOCK_DGRAM),
            (socket.AF_INET6, socket.SOCK_DGRAM),
            (socket.AF_INET, socket.SOCK_DGRAM),
        ]
        for one in found:
            one.close()
        # One end of the connection here, one at the agent; nothing else stays.
        await until(lambda: open_here() <= before + 2)
    assert service.path.stat().st_mode & 0o777 == 0o666


async def test_more_sockets_than_a_message_takes(service: Service) -> None:
    with service.pool() as pool:
        found = await service.do(pool.sockets, [socket.AF_INET] * (2 * wire.SOCKETS_MAX + 1))
        assert len(service.kernel.agreed) == len(found)
        for one in found:
            one.close()


@pytest.mark.parametrize(("said", "sent"), [(1, 0), (1, 2), (3, 2)])
async def test_another_number_of_descriptors_than_said(service: Service, said: int, sent: int) -> None:
    with service.connected() as asking:
        before = open_here()
        socket.send_fds(asking, [wire.Agree(said, wire.Choice("gb")).data()], [asking.fileno()] * sent)
        with pytest.raises(InputError, match=f"{sent} descriptors came for {said} sockets"):
            wire.parse_answer(await service.heard(asking))
        await until(lambda: open_here() <= before + 1)
    assert service.kernel.agreed == []


async def test_a_flood_of_descriptors(service: Service) -> None:
    """More than fit a message end the connection; none of them stays open."""
    before = open_here()
    for _ in range(5):
        with service.connected() as asking:
            socket.send_fds(asking, [wire.Agree(1, wire.Choice("gb")).data()], [asking.fileno()] * 200)
            assert await service.heard(asking) == b""
    await until(lambda: open_here() <= before)


async def test_descriptors_beside_any_question_are_closed(service: Service) -> None:
    before = open_here()
    with service.connected() as asking:
        for question in (b"nonsense", wire.Take("tcp", 4, False, wire.Choice("gb")).data()):
            socket.send_fds(asking, [question], [asking.fileno()] * wire.SOCKETS_MAX)
            await service.heard(asking)
        await until(lambda: open_here() <= before + 2)


async def test_a_pool_that_is_not_in_the_kernel_yet(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.kernel, "number_of", lambda _: None)
    with service.pool() as pool, pytest.raises(OSError, match="pool gb is not in the kernel") as caught:
        await service.do(pool.socket)
    assert caught.value.errno == errno.EADDRNOTAVAIL


# -- leases --------------------------------------------------------------------------------------------------


async def test_a_lease_lives_as_long_as_its_connection(service: Service) -> None:
    pool = service.pool(None, tags={"country": "gb"})
    lease = await service.do(pool.lease)
    other = await service.do(pool.lease, "udp")
    assert (lease.pool, lease.protocol, other.protocol) == ("gb", "tcp", "udp")
    assert [(str(one.address), one.port, one.uid) for one in service.kernel.granted] == [
        (lease.address, lease.port, os.geteuid()),
        (other.address, other.port, os.geteuid()),
    ]
    assert lease.held
    assert other.held
    await service.do(lease.release)
    assert [one.port for one in service.kernel.granted] == [other.port]
    assert not lease.held
    await service.do(lease.release)
    assert other.held
    pool.close()
    await until(lambda: not service.kernel.granted)
    assert not other.held
    await until(lambda: not service.kernel.asked)


async def test_an_address_with_any_port(service: Service) -> None:
    """The same may be leased twice; it ends with the last."""
    with service.pool() as pool:
        first, second = await service.do(pool.lease_address), await service.do(pool.lease_address)
        assert (first.address, first.port) == (second.address, 0)
        await service.do(first.release)
        assert service.kernel.granted
        await service.do(second.release)
        await until(lambda: not service.kernel.granted)


async def test_a_lease_of_somebody_else_is_not_released(service: Service) -> None:
    with service.pool() as pool, service.pool() as thief:
        lease = await service.do(pool.lease)
        stolen = Lease(thief, "gb", lease.address, lease.port, "tcp")
        await service.do(thief.lease)
        with pytest.raises(InputError, match="is not leased here"):
            await service.do(thief._ask, wire.Release("tcp", IPv4Address(lease.address), lease.port).data())
        await service.do(stolen.release)
        assert lease.held
        assert len(service.kernel.granted) == 2


async def test_nothing_free(service: Service) -> None:
    service.kernel.full = True
    with service.pool() as pool:
        with pytest.raises(OSError, match="pool gb has no free tcp port; fix: release one") as caught:
            await service.do(pool.lease)
        assert caught.value.errno == errno.EADDRNOTAVAIL
        with pytest.raises(OSError, match="pool gb holds no slice of IPv6 now"):
            await service.do(lambda: pool.lease(family=6))


async def test_leases_of_a_user_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borrowing, "LEASES_OF_USER_MAX", 2)
    with service.pool() as pool, service.pool() as another:
        await service.do(pool.lease)
        last = await service.do(pool.lease)
        with pytest.raises(OSError, match=r"has 2 ports leased .* release some") as caught:
            await service.do(another.lease)
        assert caught.value.errno == errno.ENOBUFS
        await service.do(last.release)
        await service.do(another.lease)


async def test_what_is_leased_is_prolonged(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not in a slice that is no longer for new flows; and what is lost is said."""
    with service.pool() as pool:
        lease = await service.do(pool.lease)
        leases = service.lending._leases
        await leases._prolong()
        assert service.kernel.extended == 1
        service.kernel.lost = list(service.kernel.granted)
        await leases._prolong()
        assert "leased port lost" in service.node.log.names
        monkeypatch.setattr(borrowing, "_has", lambda *_: False)
        kept: list[Grant] = []
        monkeypatch.setattr(service.kernel, "extend_all", lambda grants, _: kept.extend(grants) or [])
        await leases._prolong()
        assert kept == []
        assert lease.held


# -- who may, and how much -----------------------------------------------------------------------------------


async def test_who_may_not(service: Service, stranger: Peer) -> None:
    for name, says in (("gb", "user 4711 may use no pool"), ("de", "user 4711 may use no pool")):
        with service.pool(name) as pool, pytest.raises(PermissionError, match=says):
            await service.do(pool.socket)
    others = Holders(frozenset(), frozenset({4712}))
    service.lending._borrowers = {"gb": others}
    with service.pool() as pool:
        await service.do(pool.socket)
        (made,) = await service.do(pool.sockets, [socket.AF_INET])
        made.close()
    with (
        service.pool("de") as pool,
        pytest.raises(InputError, match="there is no pool 'de'; fix: known pools: gb"),
    ):
        await service.do(pool.socket)
    assert service.node.log.names.count("pool refused") == 3


async def test_root_always_may(service: Service) -> None:
    service.lending._borrowers = {"gb": Holders(frozenset(), frozenset())}
    with service.pool() as pool:
        (await service.do(pool.socket)).close()


async def test_borrowers_by_configuration(service: Service) -> None:
    config = service.node.config
    pools = tuple(replace(one, users=("0", "4711"), groups=("7",)) for one in config.pools)
    assert borrowers_of(replace(config, pools=pools))["gb"] == Holders(frozenset({0, 4711}), frozenset({7}))
    pools = tuple(replace(one, users=("no-such-one",)) for one in config.pools)
    with pytest.raises(HostError, match=r"pool gb: .*no-such-one.*; fix: make that user"):
        borrowers_of(replace(config, pools=pools))


async def test_connections_of_a_user_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "CONNECTIONS_OF_USER_MAX", 3)
    many = [service.connected() for _ in range(5)]
    for one in many[3:]:
        assert await service.heard(one) == b""
    with (
        service.pool() as pool,
        pytest.raises(AgentUnreachableError, match=r"gave no answer; fix: .* ask again"),
    ):
        await service.do(pool.socket)
    for one in many:
        one.close()
    await until(lambda: not service.lending._callers._here)
    with service.pool() as pool:
        (await service.do(pool.socket)).close()


async def test_who_says_nothing_is_not_waited_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it has leased something."""
    monkeypatch.setattr(lending, "REQUEST_S", 0.05)
    monkeypatch.setattr(lending, "IDLE_S", 0.05)
    with service.connected() as silent:
        assert await service.heard(silent) == b""
    with service.connected() as asking:
        await asyncio.get_running_loop().sock_sendall(
            asking, wire.Take("tcp", 4, False, wire.Choice("gb")).data()
        )
        given = wire.parse_answer(await service.heard(asking))
        await asyncio.sleep(0.2)  # four times as long as it would have
        assert service.kernel.granted
        assert given.address is not None
        asking.send(wire.Release("tcp", given.address, given.port).data())
        await service.heard(asking)
        assert await service.heard(asking) == b""


async def test_who_does_not_read_is_not_waited_for(service: Service) -> None:
    with service.connected() as asking:
        loop = asyncio.get_running_loop()
        for _ in range(10_000):
            try:
                async with asyncio.timeout(10):
                    await loop.sock_sendall(asking, b"nonsense")
            except OSError:
                break
        else:
            raise AssertionError("the agent still answers")
    await until(lambda: not service.lending._callers._here)


async def test_a_program_that_asks_again_after_the_agent_ended_its_connection(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "IDLE_S", 0.05)
    with service.pool() as pool:
        (await service.do(pool.socket)).close()
        await until(lambda: not service.lending._callers._here)
        (await service.do(pool.socket)).close()


async def test_the_agent_stops(service: Service) -> None:
    with service.pool() as pool:
        lease = await service.do(pool.lease)
        await service.lending.stop()
        assert service.kernel.granted == []
        assert not lease.held
        await service.do(lease.release)
        with pytest.raises(AgentUnreachableError, match=r"no agent answers on .*pool_socket"):
            await service.do(pool.lease)


async def test_where_sockets_are_not_looked_after(service: Service) -> None:
    service.kernel.off = True
    with service.pool() as pool:
        for ask in (pool.socket, pool.lease):
            with pytest.raises(OSError, match=r"does not look after; fix: see \[sockets\]") as caught:
                await service.do(ask)
            assert caught.value.errno == errno.EOPNOTSUPP


async def test_a_kernel_that_refuses(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KernelError("the socket is connected, or listens", errno.EISCONN, "hand it over before")

    monkeypatch.setattr(service.kernel, "agree", refuse)
    with (
        service.pool() as pool,
        pytest.raises(OSError, match="is connected, or listens; fix: hand") as caught,
    ):
        await service.do(pool.socket)
    assert caught.value.errno == errno.EISCONN
