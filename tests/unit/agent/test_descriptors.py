"""Handing out descriptors over the real socket: who gets one, who does not, and that nobody can ask too much."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import cast

import pytest
from tests.unit.agent.fakes import INVENTORY
from tests.unit.agent.node import Node, until

from softunicast.agent import descriptors as module
from softunicast.agent.descriptors import Descriptors
from softunicast.agent.listening import listen
from softunicast.agent.peers import Holders, Peer
from softunicast.core.errors import AgentUnreachableError, HostError, InputError
from softunicast.core.onramps import Tun
from softunicast.ledger.sqlite import SqliteLedger
from softunicast.observe.logs import Log
from softunicast.onramp import OpenTun, open_tun

DEVICE = Tun(IPv4Interface("10.9.0.1/24"), 1400, True, address6=IPv6Interface("fd00:9::1/64"))
EVERYBODY = Holders(frozenset({os.geteuid()}), frozenset())


class Service:
    """A node with the on-ramp `apps`, and the socket at `path`. The tests run as root, whom nobody refuses: as in
    `stranger`, a test says who is asking."""

    def __init__(self, node: Node, path: Path) -> None:
        self.node, self.path = node, path
        self.descriptors: Descriptors

    async def open(self, name: str = "apps") -> OpenTun:
        return await asyncio.to_thread(open_tun, name, str(self.path), 5.0)

    async def says(self, question: bytes) -> bytes:
        with self.connected() as asking:
            await asyncio.get_running_loop().sock_sendall(asking, question)
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asking, 1 << 16), 10)

    def connected(self) -> socket.socket:
        asking = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asking.connect(str(self.path))
        asking.setblocking(False)
        return asking


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    ledger = await SqliteLedger.open(tmp_path / "ledger.db")
    await ledger.apply_inventory(INVENTORY)
    await ledger.close()
    node, path = Node(tmp_path), tmp_path / "run" / "fd.sock"
    node.config = replace(
        node.config,
        agent=replace(node.config.agent, fd_socket=str(path)),
        onramps={"clients": "gb", "apps": "gb"},
        sources={"apps": (IPv4Network("10.9.0.0/24"), IPv6Network("fd00:9::/64"))},
        tuns={"apps": DEVICE},
    )
    async with node.running() as daemon:
        await until(lambda: "apps" in node.datapath.state.onramps)
        made = Service(node, path)
        made.descriptors = Descriptors(daemon, {"apps": EVERYBODY}, cast(Log, node.log))
        await made.descriptors.start()
        yield made
        await made.descriptors.stop()
        await made.descriptors.stop()
        assert not path.exists()
    assert node.calls.tuns == {}


def open_here() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> Peer:
    """Whoever asks is this one."""
    peer = Peer(7, 4711, frozenset({4712, 4713}))
    monkeypatch.setattr(Peer, "of", lambda _: peer)
    return peer


async def test_a_descriptor(service: Service) -> None:
    with await service.open() as tun:
        assert os.fstat(tun.fileno()).st_rdev == os.makedev(1, 3)  # /dev/null: the stand-in hands it out
        assert not os.get_inheritable(tun.descriptor)
        assert (tun.interface, tun.address, tun.sources) == (
            "apps",
            DEVICE.address,
            (IPv4Network("10.9.0.0/24"), IPv6Network("fd00:9::/64")),
        )
        assert tun.address6 == DEVICE.address6
        assert (tun.mtu, tun.header_bytes) == (1400, 10)
    assert "descriptor handed out" in service.node.log.names
    assert service.path.stat().st_mode & 0o777 == 0o666


async def test_the_agent_keeps_none(service: Service) -> None:
    before = open_here()
    for _ in range(5):
        (await service.open()).close()
    await until(lambda: open_here() <= before)


async def test_who_is_asking(service: Service) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        peer = Peer.of(here)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.groups == {os.getegid(), *os.getgroups()}


async def test_refusals(service: Service, stranger: Peer) -> None:
    with pytest.raises(InputError, match="no on-ramp 'clients' of kind fd; fix: use one of apps"):
        await service.open("clients")
    with pytest.raises(HostError, match="user 4711 may not open on-ramp apps"):
        await service.open()
    service.descriptors._holders = {"apps": Holders(frozenset(), frozenset({4713}))}
    (await service.open()).close()
    service.node.calls.tuns["apps"] = replace(service.node.calls.tuns["apps"], open=True)
    with pytest.raises(HostError, match="another program has on-ramp apps"):
        await service.open()
    assert service.node.log.names.count("descriptor refused") == 3


@pytest.mark.parametrize("question", [b"{}", b"x" * 5000, b"\xff", b'{"open": 1}', b"[" * 200])
async def test_questions_that_are_none(service: Service, question: bytes) -> None:
    assert b"that is no request for a descriptor" in await service.says(question)
    (await service.open()).close()


async def test_who_says_nothing_is_not_waited_for(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_S", 0.05)
    with service.connected() as asking:
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asking, 1), 10) == b""
    assert "descriptor not delivered" in service.node.log.names


async def test_one_user_cannot_keep_others_out(service: Service, stranger: Peer) -> None:
    service.descriptors._holders = {"apps": Holders(frozenset({stranger.uid, 5000}), frozenset())}
    waiting = [service.connected() for _ in range(module.REQUESTS_OF_USER_MAX)]
    try:
        await until(lambda: service.descriptors._callers._here[stranger.uid] == module.REQUESTS_OF_USER_MAX)
        with pytest.raises(AgentUnreachableError):
            await service.open()
        other = pytest.MonkeyPatch()
        with other.context() as patch:
            patch.setattr(Peer, "of", lambda _: replace(stranger, uid=5000))
            (await service.open()).close()
    finally:
        for one in waiting:
            one.close()
    await until(lambda: not service.descriptors._callers._here)
    (await service.open()).close()


async def test_a_socket_is_there_only_for_onramps(service: Service, tmp_path: Path) -> None:
    await service.descriptors.stop()
    none = Descriptors(service.node.daemon, {}, cast(Log, service.node.log))
    await none.start()
    assert not service.path.exists()
    await none.stop()


async def test_a_socket_in_use(service: Service) -> None:
    other = Descriptors(service.node.daemon, {"apps": EVERYBODY}, cast(Log, service.node.log))
    with pytest.raises(HostError, match=r"another agent answers on .*set another \[agent\] fd_socket"):
        await other.start()
    with pytest.raises(HostError, match="another agent answers"):
        listen(service.path, socket.SOCK_STREAM, "socket")
    (await service.open()).close()


def test_holders_by_name_and_number() -> None:
    users, groups = (pwd.getpwuid(0).pw_name, "1234"), (grp.getgrgid(0).gr_name, "77")
    found = Holders.of("on-ramp apps", users, groups)
    assert found == Holders(frozenset({0, 1234}), frozenset({0, 77}))
    for names in ((("no-such-one",), ()), ((), ("no-such-one",))):
        with pytest.raises(HostError, match=r"on-ramp apps: .*no-such-one.*; fix: make that user"):
            Holders.of("on-ramp apps", *names)


@pytest.mark.parametrize(
    ("uid", "gids", "may"),
    [(0, {0}, True), (5, {9}, True), (6, {7}, True), (6, {9, 7}, True), (6, {5}, False), (7, {6}, False)],
)
def test_who_may(uid: int, gids: set[int], may: bool) -> None:
    assert Holders(frozenset({5}), frozenset({7})).include(Peer(1, uid, frozenset(gids))) is may
