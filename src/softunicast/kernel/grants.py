"""Ends that users of this host were granted: one address and port, or one address and any port, for a bounded time.

A granted port is claimed towards all (bpf/grant.bpf.c), so that no flow and no other socket gets it, and then
written to the map `granted`, which the bind hook asks (bpf/granted.h). Both end by themselves at their deadline: an
agent that dies leaves nothing behind. Call it from the kernel thread.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from softunicast.core.errors import KernelError
from softunicast.core.slices import IPAddress, Slice
from softunicast.kernel import abi
from softunicast.kernel.agreed import agree, excuse
from softunicast.kernel.families import family_of
from softunicast.kernel.maps import Map
from softunicast.kernel.words import address_word, be16, index_key

ANY_PORT: Final = 0
SYSTEM_PORTS: Final = 1024  # as in bpf/abi.h: those below are never given out
NUMBERS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_TYPES: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(frozen=True, slots=True)
class Grant:
    """`uid` may bind sockets of `protocol` there; they leave from pool number `pool`. `port` 0: any."""

    address: IPAddress
    port: int
    protocol: str
    uid: int
    pool: int

    @property
    def key(self) -> bytes:
        number, version = NUMBERS[self.protocol], self.address.version
        packed = self.address.packed.ljust(16, b"\0")
        return abi.GrantKey(packed, self.uid, be16(self.port), number, version).pack()


class Programs(Protocol):
    """What is needed of softunicast.kernel.datapath.Datapath."""

    def map(self, name: str) -> Map: ...
    def run(self, name: str, context: bytes) -> bytes: ...
    def pool_number(self, name: str) -> int | None: ...


class Grants:
    """Makes, prolongs and ends grants; who has which is for the caller to know."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    def number_of(self, pool: str) -> int | None:
        """What stands for it in the kernel; None while it is not there."""
        return self._programs.pool_number(pool)

    def require_hooks(self) -> None:
        """Raises KernelError where the sockets of this host are not looked after: nothing would come of a promise."""
        if not self._settings().netns_cookie:
            raise KernelError(
                "the agent does not look after the sockets of this host",
                errno.EOPNOTSUPP,
                "mount a cgroup2, and see [sockets] in the agent's configuration",
            )

    def agree(self, descriptors: Iterable[int], pool: int) -> None:
        """As kernel.agreed.agree. Waits for nothing, and may be called from any thread."""
        agree(self._programs.map("agreed"), descriptors, pool, self._settings().netns_cookie)

    def take(
        self,
        slices: Iterable[Slice],
        protocol: str,
        uid: int,
        pool: int,
        until_ns: int,
        chance: Callable[[], float],
    ) -> Grant | None:
        """A port of these slices that nobody has; None when there is none. `chance`: from 0 to 1, below it."""
        self._asked_for(True)
        for part in slices:
            first = max(part.port_first, SYSTEM_PORTS)
            count = part.port_first + part.ports - first
            start = int(chance() * count)
            for step in range(count):
                port = first + (start + step) % count
                grant = Grant(part.address, port, protocol, uid, pool)
                if self._claim(grant, abi.GrantStep.TAKE, until_ns):
                    if self._is_free(grant):
                        self._write(grant, until_ns)
                        return grant
                    self._claim(grant, abi.GrantStep.END, 0)
        return None

    def open(self, address: IPAddress, protocol: str, uid: int, pool: int, until_ns: int) -> Grant:
        """The address with any port: the bind hook chooses one."""
        grant = Grant(address, ANY_PORT, protocol, uid, pool)
        self._write(grant, until_ns)
        return grant

    def extend(self, grant: Grant, until_ns: int) -> bool:
        """False when it had ended already: then it is gone, and perhaps somebody else's."""
        if grant.port and not self._claim(grant, abi.GrantStep.EXTEND, until_ns):
            self._programs.map("granted").delete(grant.key)
            return False
        self._write(grant, until_ns)
        return True

    def extend_all(self, grants: Iterable[Grant], until_ns: int) -> list[Grant]:
        """Those that had ended."""
        return [grant for grant in grants if not self.extend(grant, until_ns)]

    def end(self, grant: Grant) -> None:
        """Sockets that are bound there stay so; no new one is."""
        self._programs.map("granted").delete(grant.key)
        if grant.port:
            self._claim(grant, abi.GrantStep.END, 0)

    def none_left(self) -> None:
        """The search for ports need not ask for grants any more."""
        self._asked_for(False)

    def _settings(self) -> abi.Settings:
        return abi.Settings.unpack(
            self._programs.map("settings").get(index_key(0)) or bytes(abi.SETTINGS_BYTES)
        )

    def _asked_for(self, asked: bool) -> None:
        """Whether the search for a port asks if a user was granted it."""
        before = self._settings()
        if bool(before.granted) != asked:
            self._programs.map("settings").set(index_key(0), before._replace(granted=int(asked)).pack())

    def _write(self, grant: Grant, until_ns: int) -> None:
        self._programs.map("granted").set(grant.key, abi.Grant(until_ns, grant.pool).pack())

    def _claim(self, grant: Grant, step: abi.GrantStep, until_ns: int) -> bool:
        family = family_of(grant.address)
        key = family.claim_key(
            address_word(grant.address), family.nowhere, be16(grant.port), 0, NUMBERS[grant.protocol]
        ).pack()
        asked = family.granting(until_ns, key, grant.pool, step, 0).pack()
        answered = self._programs.run(family.named("grant"), asked)
        return bool(family.granting.unpack(answered).done)

    def _is_free(self, grant: Grant) -> bool:
        """Could a socket that shares its port be bound there? A listener, or one that does not share, is in the way."""
        kind = socket.AF_INET if grant.address.version == 4 else socket.AF_INET6
        with socket.socket(kind, _TYPES[grant.protocol]) as probe:
            excuse(self._programs.map("agreed"), probe.fileno())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((str(grant.address), grant.port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
                raise KernelError(
                    f"cannot bind to {grant.address}: {error.strerror}",
                    error.errno or 0,
                    "see that the address is on this host",
                ) from error
        return True
