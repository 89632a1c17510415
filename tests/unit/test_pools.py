"""The library for programs, against agents of every kind of manners, and against its page of the reference. With the
real agent: tests/unit/agent/test_lending.py, tests/netns/test_pair_library.py.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.unit.pages import entries, page, section

import softunicast
from softunicast import aio, pools
from softunicast.core.errors import (
    AgentUnreachableError,
    HostError,
    InputError,
    KernelError,
    UnknownNameError,
)
from softunicast.pools import Lease, Pool
from softunicast.wire import lending as wire

GIVEN = wire.answer(wire.Given("gb", IPv4Address("198.51.100.10"), 2049))
DONE = wire.answer(wire.Given("gb"))
Agent = Callable[[socket.socket, bytes, list[int]], None]


class Manners:
    """An agent that answers each question by `answer`; `questions` are those so far, `connections` how many came."""

    def __init__(self, path: Path, answer: Agent) -> None:
        self.path = str(path / "pools.sock")
        self.questions: list[wire.Request] = []
        self.connections = 0
        self.answer = answer

    def serve(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, suppress(ConnectionError):  # a program need not wait for its answer
                self.talk(connection)

    def talk(self, connection: socket.socket) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 32)
            if not data:
                return
            self.questions.append(wire.parse_request(data))
            self.answer(connection, data, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            if connection.fileno() < 0:
                return


@contextmanager
def agent(path: Path, answer: Agent) -> Iterator[Manners]:
    made = Manners(path, answer)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(made.path)
        listener.listen()
        thread = threading.Thread(target=made.serve, args=(listener,))
        thread.start()
        yield made
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        assert not thread.is_alive()


def says(answer: bytes) -> Agent:
    return lambda connection, *_: connection.send(answer) and None


def willing(connection: socket.socket, data: bytes, _: list[int]) -> None:
    connection.send(GIVEN if b"lease" in data and b"release" not in data else DONE)


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()


# -- connecting ----------------------------------------------------------------------------------------------


def test_a_connection(tmp_path: Path, echo: tuple[str, int]) -> None:
    with agent(tmp_path, willing) as manners:
        with softunicast.connect(echo, pool="gb", timeout=5, agent=manners.path) as one:
            assert one.getpeername() == echo
            assert one.gettimeout() == 5
            assert not os.get_inheritable(one.fileno())
        assert manners.questions == [wire.Agree(1, wire.Choice("gb"))]


def test_the_socket_that_is_handed_over_is_the_one_that_connects(
    tmp_path: Path, echo: tuple[str, int]
) -> None:
    inodes = []

    def look(connection: socket.socket, data: bytes, descriptors: list[int]) -> None:
        inodes.extend(os.fstat(one).st_ino for one in descriptors)
        connection.send(DONE)

    with agent(tmp_path, look) as manners:
        with softunicast.connect(echo, tags={"country": "gb"}, agent=manners.path) as one:
            assert inodes == [os.fstat(one.fileno()).st_ino]
        assert manners.questions == [wire.Agree(1, wire.Choice(None, {"country": "gb"}))]


def test_where_the_agent_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with agent(tmp_path, willing) as manners:
        monkeypatch.setenv(pools.AGENT_ENV, manners.path)
        with Pool("gb") as pool:
            pool.socket().close()
    assert softunicast.Pool("gb", agent="elsewhere")._agent == "elsewhere"


def test_every_address_is_tried(
    tmp_path: Path, echo: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one question for all of them."""
    nowhere = ("127.0.0.1", 1)
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", end) for end in (nowhere, echo, nowhere)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with agent(tmp_path, willing) as manners:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with softunicast.connect(("many.example", 80), pool="gb", agent=manners.path) as one:
            assert one.getpeername() == echo
        assert manners.questions == [wire.Agree(3, wire.Choice("gb"))]
        found[1:] = []
        with pytest.raises(ConnectionRefusedError):
            softunicast.connect(("many.example", 80), pool="gb", agent=manners.path)
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2  # the agent's ends may close still


def test_a_timeout_is_for_all_of_it(tmp_path: Path, echo: tuple[str, int]) -> None:
    with agent(tmp_path, willing) as manners, pytest.raises(TimeoutError):
        softunicast.connect(echo, pool="gb", timeout=1e-9, agent=manners.path)


def test_a_connection_of_asyncio(tmp_path: Path, echo: tuple[str, int]) -> None:
    async def main(path: str) -> None:
        with await aio.connect(echo, pool="gb", agent=path) as one:
            assert one.getpeername() == echo
            assert one.getblocking() is False
        with Pool("gb", agent=path) as pool:
            for _ in range(2):
                _, writer = await aio.open_connection(*echo, pool=pool, timeout=5)
                assert writer.get_extra_info("peername") == echo
                writer.close()
            with pytest.raises(InputError, match="both a pool and tags"):
                await aio.connect(echo, pool=pool, tags={})
        with pytest.raises(ConnectionRefusedError):
            await aio.connect(("127.0.0.1", 1), tags={"country": "gb"}, agent=path)

    with agent(tmp_path, willing) as manners:
        asyncio.run(main(manners.path))
        assert manners.connections == 3


# -- manners -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (wire.refusal(UnknownNameError("no pool", "another")), InputError, "no pool; fix: another"),
        (wire.refusal(HostError("not here")), HostError, "not here"),
        (wire.refusal(KernelError("not you", errno.EACCES, "ask")), PermissionError, "not you; fix: ask"),
        (b"HTTP/1.1 200 OK", HostError, r"what answered is no agent; fix: see \[agent\] pool_socket"),
        (json.dumps({"port": 1}).encode(), HostError, "what answered is no agent"),
    ],
)
def test_a_refusal(tmp_path: Path, answer: bytes, error: type[Exception], text: str) -> None:
    with agent(tmp_path, says(answer)) as manners, Pool("gb", agent=manners.path) as pool:
        for ask in (pool.socket, pool.lease, pool.lease_address):
            with pytest.raises(error, match=text):
                ask()


def test_an_agent_that_hangs_up(tmp_path: Path) -> None:
    """It is asked once more by a new connection, and then given up."""
    with agent(tmp_path, lambda connection, *_: connection.close()) as manners:
        with (
            Pool("gb", agent=manners.path) as pool,
            pytest.raises(AgentUnreachableError, match="gave no answer"),
        ):
            pool.socket()
        manners.answer = willing
        with Pool("gb", agent=manners.path) as pool:
            pool.socket().close()
            manners.answer = lambda connection, *_: connection.close()
            lease = Lease(pool, "gb", "198.51.100.10", 2049, "tcp")
            pool._leases.append(lease)
            with pytest.raises(AgentUnreachableError, match="gave no answer"):
                pool.socket()
            assert not lease.held


def test_an_agent_that_says_nothing(tmp_path: Path) -> None:
    """What it says later is not taken for the answer to the next question."""
    late = threading.Event()

    def wait(connection: socket.socket, *_: object) -> None:
        late.wait(10)
        connection.send(GIVEN)

    with agent(tmp_path, wait) as manners:
        with Pool("gb", agent=manners.path, timeout=0.05) as pool:
            with pytest.raises(
                AgentUnreachableError, match=r"no agent answers on .*: timed out; fix: see that"
            ):
                pool.socket()
            assert pool._connection is None
        late.set()


def test_nobody_answers(tmp_path: Path) -> None:
    with (
        Pool("gb", agent=str(tmp_path / "x")) as pool,
        pytest.raises(AgentUnreachableError, match=r"no agent answers on .*: No such file.*pool_socket"),
    ):
        pool.lease()


def test_questions_that_are_wrong(tmp_path: Path) -> None:
    for more in ({}, {"name": "gb", "tags": {}}):
        with pytest.raises(InputError, match="give one of them"):
            Pool(**more)  # type: ignore[arg-type]
    pool = Pool("gb", agent=str(tmp_path / "x"))
    for ask in (pool.socket, pool.lease):
        with pytest.raises(InputError, match="no protocol 'sctp'; fix: give one of tcp, udp"):
            ask(protocol="sctp")
    with pytest.raises(InputError, match="no family 5"):
        pool.lease(family=5)


# -- leases --------------------------------------------------------------------------------------------------


def test_leases(tmp_path: Path) -> None:
    with agent(tmp_path, willing) as manners, Pool("gb", agent=manners.path) as pool:
        with pool.lease("udp", family=4) as lease:
            assert (lease.pool, lease.address, lease.port, lease.protocol) == (
                "gb",
                "198.51.100.10",
                2049,
                "udp",
            )
            assert repr(lease) == "Lease(udp 198.51.100.10 port 2049 of pool gb)"
            assert lease.held
            assert pool.has(lease)
        assert not lease.held
        lease.release()
        assert manners.questions == [
            wire.Take("udp", 4, False, wire.Choice("gb")),
            wire.Release("udp", IPv4Address("198.51.100.10"), 2049),
        ]
        assert manners.connections == 1


def test_a_child_begins_anew(tmp_path: Path) -> None:
    with agent(tmp_path, willing) as manners, Pool("gb", agent=manners.path) as pool:
        lease = pool.lease()
        child = os.fork()
        if child == 0:
            held = lease.held
            lease.release()
            os._exit(1 if held else 0)
        assert os.waitpid(child, 0)[1] == 0
        assert lease.held
        assert manners.connections == 1


# -- the page ------------------------------------------------------------------------------------------------


def said(heading: str) -> dict[str, list[str]]:
    """name -> parameters, as the page has them."""
    found = {}
    for text in entries(section(page("library"), heading)):
        if match := re.fullmatch(r"(\w+)\((.*)\)", text):
            names = re.findall(r"\w+|\.\.\.", match[2])
            found[match[1]] = names
    return found


def parameters(function: Callable[..., object]) -> list[str]:
    found = inspect.signature(function).parameters.values()
    return ["..." if one.kind is one.VAR_KEYWORD else one.name for one in found if one.name != "self"]


@pytest.mark.parametrize(
    ("heading", "holder", "others"),
    [
        ("softunicast", softunicast, {"Lease"}),
        ("Pool", Pool, set()),
        ("Lease", Lease, set()),
        ("softunicast.aio", aio, set()),
    ],
)
def test_every_name_of_the_library(heading: str, holder: object, others: set[str]) -> None:
    mine = getattr(holder, "__name__", "")
    names = (
        softunicast.__all__ if holder is softunicast else [name for name in vars(holder) if name[0] != "_"]
    )
    real = {
        name: parameters(getattr(holder, name))
        for name in names
        if inspect.isfunction(getattr(holder, name))
        and getattr(holder, name).__module__.startswith("softunicast.")
    }
    if holder is softunicast:
        real["Pool"] = parameters(Pool.__init__)
    if holder is aio:
        real = {name: found for name, found in real.items() if getattr(aio, name).__module__ == mine}
    assert said(heading) == real
    assert others <= set(entries(section(page("library"), heading)))


def test_the_version_costs_nothing() -> None:
    assert softunicast.__version__
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        softunicast.nonsense  # noqa: B018
