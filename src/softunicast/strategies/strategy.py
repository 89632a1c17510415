"""What every strategy is: a way in which forwarded flows and sockets of one server leave from one slice.

Rules. Everything happens in the network namespace of the thread that calls. `set_up` notes how to undo each step before
it goes on, and `tear_down` leaves the host as it was. IPv4 and TCP, whatever the idea behind a strategy could do
besides (`protocols`, `ipv6`): enough to use each, to see it fail, and to measure it. Nothing here knows a lab or the
agent.
"""

from __future__ import annotations

import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import ClassVar, Final, Self

from softunicast.core.errors import HostError
from softunicast.core.slices import Slice
from softunicast.kernel import links, sysctl

CONNECT_TIMEOUT_S: Final = 10.0

Endpoint = tuple[IPv4Address, int]

TRIAL_REMOTE: Final[Endpoint] = (IPv4Address("127.0.0.1"), 80)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a strategy works: whose ports, which interfaces. `gateway` is the clients' end of the on-ramp, `folder`
    a directory for pins."""

    slice: Slice
    uplink: str
    onramp: str
    clients: IPv4Network
    gateway: IPv4Address
    folder: Path

    @property
    def address(self) -> IPv4Address:
        """The shared address."""
        return IPv4Address(str(self.slice.address))

    @property
    def ports(self) -> range:
        """The ports of the slice."""
        return range(self.slice.port_first, self.slice.port_last + 1)

    def ports_in_turn(self) -> Iterator[int]:
        """All of them, from a random one on."""
        start = random.randrange(len(self.ports))
        yield from self.ports[start:]
        yield from self.ports[:start]


class Strategy(ABC):
    """See the module. `about`: the idea; `protocols`, `ipv6`: what the idea can do; `restart`: what a restart of the
    program that runs it leaves of its flows; `offered`: whether it is built."""

    name: ClassVar[str]
    about: ClassVar[str]
    protocols: ClassVar[tuple[str, ...]] = ("tcp",)
    ipv6: ClassVar[bool] = True
    restart: ClassVar[str]
    offered: ClassVar[bool] = True

    def __init__(self, place: Place) -> None:
        self.place = place
        self._undo = ExitStack()

    @classmethod
    @abstractmethod
    def attempt(cls) -> None:
        """Tries what it needs, in a network namespace that nobody else sees. Raises SoftunicastError or OSError: why
        it cannot run here."""

    def set_up(self) -> None:
        """Prepares the host. After an error everything is as before."""
        for name in (self.place.uplink, self.place.onramp):
            links.interface(name)  # nftables would wait for one that is not there
        try:
            if links.add_loopback_address(self.place.address):
                self._undo.callback(links.remove_loopback_address, self.place.address)
            self._set_up()
        except BaseException:
            self.tear_down()
            raise

    @abstractmethod
    def _set_up(self) -> None:
        """What is particular to it, each step with its undoing in `_undo`."""

    def forward(self, client: Endpoint, remote: Endpoint) -> int | None:
        """Makes a client's TCP flow leave from the slice: its port, or None when the kernel picks one at its first
        packet. KernelError with EADDRNOTAVAIL when no port is free."""
        return None

    def release(self, client: Endpoint, remote: Endpoint) -> None:
        """The forwarded flow is over. A strategy that has to be told loses the port otherwise."""
        return

    @abstractmethod
    def connect(self, remote: Endpoint, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
        """A TCP socket of this host that leaves from the slice; with `timeout_s` 0 it has only begun to connect.
        Raises OSError like any connect."""

    def socket(self, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket of a program that this strategy serves: one like any other, unless it has to be told."""
        return socket.socket(socket.AF_INET, kind)

    def tear_down(self) -> None:
        """Takes everything back, the last step first. Nothing happens the second time."""
        self._undo.close()

    def __enter__(self) -> Self:
        self.set_up()
        return self

    def __exit__(self, *_: object) -> None:
        self.tear_down()

    def _setting(self, name: str, value: int) -> None:
        """Changes a sysctl until `tear_down`."""
        before = sysctl.read(name)
        if before is None:
            raise HostError(f"there is no sysctl {name}", "boot a kernel that has it")
        sysctl.write(name, value)
        self._undo.callback(sysctl.write, name, before)


def begun(made: socket.socket, remote: Endpoint, timeout_s: float) -> socket.socket:
    """Connects `made`, or closes it. OSError as it comes."""
    try:
        made.settimeout(timeout_s)
        made.connect((str(remote[0]), remote[1]))
    except BlockingIOError:
        pass
    except BaseException:
        made.close()
        raise
    return made


def trial_place() -> Place:
    """A place on loopback, for attempts in a namespace of their own. Brings `lo` up."""
    links.bring_up(links.LOOPBACK)
    loopback = IPv4Network("127.0.0.0/8")
    shared, gateway = IPv4Address("198.51.100.10"), IPv4Address("192.0.2.1")
    return Place(Slice.of(shared, 40960, 8), links.LOOPBACK, links.LOOPBACK, loopback, gateway, Path())
