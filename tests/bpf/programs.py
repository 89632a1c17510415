"""Programs of the host for tests of sockets: this process, moved into a cgroup of its own and back, and the sockets
that it makes there, of IPv4, IPv6, or IPv4 by sockets of IPv6 ("mapped")."""

from __future__ import annotations

import errno
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from tests.bpf import families
from tests.bpf.world import ADDRESS, World

from softunicast.kernel import cgroups
from softunicast.kernel.agreements import Agreements

HOWS = ("ipv4", "ipv6", "mapped")
REMOTE = "203.0.113.1:443"
ELSEWHERE = "203.0.113.2:443"
KINDS = ("tcp", "udp")
PORTS = 16  # in a slice of the fixture `small`
SLOT = 128
SLICE = set(range(SLOT * PORTS, (SLOT + 1) * PORTS))
IP_BIND_ADDRESS_NO_PORT = 24
RTN_LOCAL = 2
DEADLINE_S = 5.0
_numbers = itertools.count()


def cgroup_root() -> Path:
    root = cgroups.find_root()
    assert root is not None
    return root


@contextmanager
def cgroup(parent: Path | None = None) -> Iterator[Path]:
    """A new one, empty; gone afterwards."""
    made = (parent or cgroup_root()) / f"sutest-{os.getpid()}-{next(_numbers)}"
    made.mkdir()
    try:
        yield made
    finally:
        made.rmdir()


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """This process is in it."""
    before = cgroup_root() / Path("/proc/self/cgroup").read_text().rsplit("::/", 1)[1].strip()
    (folder / "cgroup.procs").write_text(str(os.getpid()))
    try:
        yield
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def refusal_of(code: int) -> Iterator[None]:
    """What is done in it is refused, with this errno."""
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as raised:
        yield
    assert raised.value.errno == code


def counted(world: World, before: dict[str, int]) -> dict[str, int]:
    return {name: value - before[name] for name, value in world.counters().items() if value != before[name]}


@contextmanager
def agreed(world: World, pool: str | None = "gb") -> Iterator[Path]:
    """This process is in a cgroup that is in an agreement."""
    folder = world.datapath.folder
    with cgroup() as made, Agreements.open(folder) as agreements:
        if pool is None:
            agreements.excuse(cgroups.number(made))
        else:
            agreements.set(cgroups.number(made), pool)
        try:
            with inside(made):
                yield made
        finally:
            agreements.remove(cgroups.number(made))


def excused(world: World) -> AbstractContextManager[Path]:
    """This process is in a cgroup that may do as it likes."""
    return agreed(world, None)


@contextmanager
def on_loopback(*addresses: str) -> Iterator[None]:
    """The host has these (of the chosen family)."""
    with IPRoute() as netlink, ExitStack() as stack:
        if families.chosen == 6:
            Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6").write_text("0")
        for address in addresses:
            there = {"index": 1, "address": families.current(address)}
            there["prefixlen"] = 32 if families.chosen == 4 else 128
            netlink.addr("add", **there, flags=0x02)
            stack.callback(lambda there=there: netlink.addr("del", **there))
            if families.chosen == 6:
                wait_until_local(netlink, there["address"])
        yield


def wait_until_local(netlink: IPRoute, address: str) -> None:
    """IPv6 adds the route of an address a moment later, also without looking for duplicates. Until then the one of its
    prefix says that it is unreachable: to whom its neighbour on this host wants to connect."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with suppress(NetlinkError):
            if netlink.route("get", family=socket.AF_INET6, dst=address)[0]["type"] == RTN_LOCAL:
                return
        assert time.monotonic() < deadline, address


class Program:
    """Makes sockets in one of HOWS, and keeps them until the end."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.family = socket.AF_INET if how == "ipv4" else socket.AF_INET6
        self.made = list[socket.socket]()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self.made:
            self.made.pop().close()

    def end(self, text: str) -> tuple[str, int]:
        """An end as its sockets want it."""
        address, _, port = text.rpartition(":")
        if self.how == "mapped" and ":" not in address:
            address = f"::ffff:{address}" if address != "0.0.0.0" else "::"
        elif self.how == "ipv6":
            address = "::" if address == "0.0.0.0" else families.current(address)
        return address, int(port)

    def socket(self, kind: str) -> socket.socket:
        made = socket.socket(self.family, {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[kind])
        made.setblocking(False)
        self.made.append(made)
        return made

    def local(self, made: socket.socket) -> tuple[str, int]:
        """Where it is, as IPv4."""
        address, port = made.getsockname()[:2]
        if self.how == "mapped":
            address = address.removeprefix("::ffff:")
        elif self.how == "ipv6":
            address = families.as_ipv4(f"[{address}]:0").removesuffix(":0")
        return address, port

    def connect(self, kind: str, remote: str = REMOTE, made: socket.socket | None = None) -> tuple[str, int]:
        """A socket's local end once it is connected, or on its way. OSError when it is refused."""
        made = made or self.socket(kind)
        code = made.connect_ex(self.end(remote))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        return self.local(made)

    def refused(self, code: int, kind: str, remote: str = REMOTE) -> None:
        """It cannot be connected."""
        with refusal_of(code):
            self.connect(kind, remote)

    def bind(self, kind: str, local: str, reuse: bool = False) -> socket.socket:
        made = self.socket(kind)
        if reuse:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(self.end(local))
        return made

    def bind_refused(self, code: int, kind: str, local: str, reuse: bool = False) -> None:
        with refusal_of(code):
            self.bind(kind, local, reuse)

    def bind_late(self, kind: str) -> socket.socket:
        """To the shared address, without a port until it connects."""
        made = self.socket(kind)
        made.setsockopt(socket.SOL_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind(self.end(f"{ADDRESS}:0"))
        return made

    def fill(self, kind: str, count: int, remote: str = REMOTE) -> set[int]:
        """Connects so many; each must get a port of ADDRESS for itself."""
        ends = [self.connect(kind, remote) for _ in range(count)]
        assert {address for address, _ in ends} == {str(ADDRESS)}
        ports = {port for _, port in ends}
        assert len(ports) == count
        return ports
