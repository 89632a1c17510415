"""For programs that choose where their connections leave from: sockets and ports of a pool, by this server's agent.

    with softunicast.connect(("example.com", 80), pool="gb") as connection: ...

    with softunicast.Pool(tags={"country": "gb"}) as pool, pool.lease() as source:
        requests' and others' source_address = source.address, source.port

No privilege is needed for it; the agent's configuration says who may (users and groups of [[pools]]). Needs nothing but
the standard library, and one round trip to the agent before a connection; none after it. What a pool cannot give is an
OSError: EADDRNOTAVAIL when nothing is free, EACCES when this user may not use it. A question that is wrong is an
InputError, and when nobody answers it is an AgentUnreachableError: softunicast.core.errors.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from types import TracebackType
from typing import Final

from softunicast.core.errors import AgentUnreachableError, InputError
from softunicast.wire import lending as wire

AGENT: Final = "/run/softunicast/pools.sock"
AGENT_ENV: Final = "SOFTUNICAST_POOL_SOCKET"
TIMEOUT_S: Final = 10.0  # the agent answers between two changes of its kernel tables
Socket = socket.socket  # Pool.socket has taken the name
_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def connect(
    address: tuple[str, int],
    *,
    pool: str | None = None,
    tags: Mapping[str, str] | None = None,
    timeout: float | None = None,
    protocol: str = "tcp",
    agent: str | None = None,
) -> socket.socket:
    """A socket that is connected to `address` (host and port) from a port of the pool, or of the only pool that carries
    all of `tags`. Like socket.create_connection: every address of the host is tried until one answers.

    `timeout`: seconds for all of it, and from then on the socket's own; None: as long as it takes. `agent`: where it
    listens ([agent] pool_socket), else as SOFTUNICAST_POOL_SOCKET says.
    """
    with Pool(pool, tags=tags, agent=agent, timeout=TIMEOUT_S if timeout is None else timeout) as one:
        return one.connect(address, timeout=timeout, protocol=protocol)


class Lease:
    """One end of a pool that is this program's: its sockets may be bound to (`address`, `port`), and nobody else's are,
    until `release`, the end of the `with`, or that of the Pool or program. `port` is 0 where any port of the pool at
    that address may be used (`Pool.lease_address`): bind to it, and the kernel chooses one.
    """

    __slots__ = ("_pool", "address", "pool", "port", "protocol")

    def __init__(self, pool: Pool, name: str, address: str, port: int, protocol: str) -> None:
        self._pool = pool
        self.pool = name
        self.address = address
        self.port = port
        self.protocol = protocol

    def release(self) -> None:
        """Gives it back. Sockets that are bound to it stay so; twice is no error."""
        self._pool.release(self)

    @property
    def held(self) -> bool:
        """Whether it still is this program's: an agent that stops takes back what it gave."""
        return self._pool.has(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Lease({self.protocol} {self.address} port {self.port} of pool {self.pool})"


class Pool:
    """A pool by `name`, or the only one that carries all of `tags`; several threads may use it. It has one connection
    to the agent, from the first question on until `close`: what was leased is given back then.

    A child process begins anew: what its parent leased stays the parent's.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        tags: Mapping[str, str] | None = None,
        agent: str | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        if (name is None) == (tags is None):
            raise InputError("neither a pool nor tags, or both", "give one of them")
        self._choice = wire.Choice(name, tags or {})
        self._agent = agent or os.environ.get(AGENT_ENV) or AGENT
        self._timeout_s = timeout
        self._lock = threading.Lock()
        self._connection: Socket | None = None
        self._leases: list[Lease] = []
        self._pid = os.getpid()

    # -- sockets ---------------------------------------------------------------------------------------------

    def connect(
        self, address: tuple[str, int], *, timeout: float | None = None, protocol: str = "tcp"
    ) -> Socket:
        """As the function `connect`, with the timeout of Pool for the agent's part."""
        kind, deadline_s = _kind(protocol), None if timeout is None else time.monotonic() + timeout
        found = socket.getaddrinfo(*address[:2], type=kind)[: wire.SOCKETS_MAX]
        sockets = self.sockets([one[0] for one in found], protocol)
        error: OSError | None = None
        try:
            for one, (*_, target) in zip(list(sockets), found, strict=True):
                try:
                    one.settimeout(_rest_s(deadline_s))
                    one.connect(target)
                    one.settimeout(timeout)
                except OSError as problem:
                    error = problem
                else:
                    sockets.remove(one)
                    return one
        finally:
            for one in sockets:
                one.close()
        raise error or OSError(f"getaddrinfo gave nothing for {address[0]}")

    def socket(self, family: int = socket.AF_INET, protocol: str = "tcp") -> Socket:
        """One that leaves from the pool when it is connected."""
        return self.sockets([family], protocol)[0]

    def sockets(self, families: Sequence[int], protocol: str = "tcp") -> list[Socket]:
        """One for each of the families, at the price of one."""
        made = [socket.socket(family, _kind(protocol)) for family in families]
        try:
            self.agree(*made)
        except BaseException:
            for one in made:
                one.close()
            raise
        return made

    def agree(self, *sockets: Socket) -> None:
        """TCP or UDP sockets that are not connected yet, as any library made them: they leave from the pool."""
        for at in range(0, len(sockets), wire.SOCKETS_MAX):
            part = sockets[at : at + wire.SOCKETS_MAX]
            asked = wire.Agree(len(part), self._choice)
            self._ask(asked.data(), [one.fileno() for one in part])

    # -- leases ----------------------------------------------------------------------------------------------

    def lease(self, protocol: str = "tcp", *, family: int = 4) -> Lease:
        """One port of the pool for this program alone, `family` 4 or 6, towards every destination."""
        return self._lease(protocol, family, any_port=False)

    def lease_address(self, protocol: str = "tcp", *, family: int = 4) -> Lease:
        """An address of the pool for programs that can choose no more than that: port 0, at each bind a free one."""
        return self._lease(protocol, family, any_port=True)

    def _lease(self, protocol: str, family: int, any_port: bool) -> Lease:
        _kind(protocol)
        if family not in wire.FAMILIES:
            raise InputError(f"no family {family!r}", "give 4 or 6")
        given = self._ask(wire.Take(protocol, family, any_port, self._choice).data())
        made = Lease(self, given.pool, str(given.address), given.port, protocol)
        self._leases.append(made)
        return made

    def release(self, lease: Lease) -> None:
        """Gives a lease back; one that is given back already, or was lost, is no error."""
        if not self.has(lease):
            return
        self._leases.remove(lease)
        with suppress(InputError, AgentUnreachableError):  # gone already, or about to end by itself
            self._ask(wire.Release(lease.protocol, ip_address(lease.address), lease.port).data())

    def has(self, lease: Lease) -> bool:
        """Not when it was given back, nor when the agent has ended the connection."""
        if lease not in self._leases or self._connection is None or self._pid != os.getpid():
            return False
        looking = select.poll()  # the agent says nothing unasked: what comes is the end
        looking.register(self._connection, select.POLLIN)
        return not looking.poll(0)

    def close(self) -> None:
        """Gives everything back. What is asked afterwards opens a connection anew."""
        with self._lock:
            self._hang_up()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the agent -------------------------------------------------------------------------------------------

    def _ask(self, data: bytes, descriptors: Sequence[int] = ()) -> wire.Given:
        with self._lock:
            if self._pid != os.getpid():
                self._hang_up()
                self._pid = os.getpid()
            try:
                answer = self._exchange(data, descriptors)
            except BaseException:
                self._hang_up()  # an answer that comes late must not be taken for the next one's
                raise
        if not answer:
            raise AgentUnreachableError(
                f"the agent on {self._agent} gave no answer",
                "it has too many to give, or was stopped: ask again",
            )
        return wire.parse_answer(answer)

    def _exchange(self, data: bytes, descriptors: Sequence[int]) -> bytes:
        """The answer; a connection that the agent ended meanwhile is made anew, without what was leased over it."""
        try:
            if self._connection is not None:
                if answer := self._try(self._connection, data, descriptors):
                    return answer
                self._hang_up()
            self._connection = self._reach()
            answer = self._try(self._connection, data, descriptors)
        except OSError as error:
            raise AgentUnreachableError(
                f"no agent answers on {self._agent}: {error.strerror or error}",
                "see that it runs, and [agent] pool_socket in its configuration",
            ) from error
        if not answer:
            self._hang_up()
        return answer

    def _reach(self) -> Socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            made.settimeout(self._timeout_s)
            made.connect(self._agent)
        except BaseException:
            made.close()
            raise
        return made

    def _try(self, connection: Socket, data: bytes, descriptors: Sequence[int]) -> bytes:
        """Nothing when the agent has ended the connection."""
        try:
            if descriptors:
                socket.send_fds(connection, [data], list(descriptors))
            else:
                connection.send(data)
            return connection.recv(wire.ANSWER_BYTES_MAX)
        except (BrokenPipeError, ConnectionResetError):
            return b""

    def _hang_up(self) -> None:
        self._leases.clear()
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _kind(protocol: str) -> socket.SocketKind:
    if protocol not in _KINDS:
        raise InputError(f"no protocol {protocol!r}", f"give one of {', '.join(_KINDS)}")
    return _KINDS[protocol]


def _rest_s(deadline_s: float | None) -> float | None:
    """Until then. Raises TimeoutError when it has passed."""
    if deadline_s is None:
        return None
    rest_s = deadline_s - time.monotonic()
    if rest_s <= 0:
        raise TimeoutError("timed out")
    return rest_s
