"""Interfaces and addresses of the caller's network namespace, over netlink.

Every call opens a socket of its own in the calling thread, so that it speaks to the namespace that thread is
in, and is done in a few milliseconds. Netlink's errors leave here as HostError (privilege, no such interface)
or KernelError.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from softunicast.core.errors import HostError, KernelError

LOOPBACK: Final = "lo"
_AF_INET: Final = 2
_IFF_UP: Final = 1
_ARPHRD_ETHER: Final = 1
_ARPHRD_NONE: Final = 0xFFFE
# An address of this scope is good for receiving and for sockets bound to it, and for nothing else: the kernel
# never picks it as the source of a packet that leaves, nor of an ARP request.
_SCOPE_HOST: Final = 254


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface. `mac` is None unless it is Ethernet; `bare` when its packets are IP and nothing in front, as of
    a TUN or a WireGuard device; `kind` is None unless it is virtual ("veth", "tun"); `addresses` are in the kernel's
    order; `mtu` in bytes; `carrier`: a cable is in, or a program has the descriptor of a TUN."""

    name: str
    index: int
    mac: str | None
    bare: bool
    up: bool
    carrier: bool
    mtu: int
    kind: str | None
    addresses: tuple[IPv4Interface, ...]


def interface(name: str) -> Interface:
    """Raises HostError when there is none of that name."""
    with _netlink(f"look up interface {name}") as netlink:
        found = netlink.link_lookup(ifname=name)
        if not found:
            raise HostError(f"there is no interface {name}", "name one that `ip link` shows")
        index = int(found[0])
        link = netlink.get_links(index)[0]
        addresses = tuple(
            IPv4Interface((_attribute(message, "IFA_LOCAL"), message["prefixlen"]))
            for message in netlink.get_addr(family=_AF_INET, index=index)
        )
    return Interface(
        name=name,
        index=index,
        mac=_attribute(link, "IFLA_ADDRESS") if link["ifi_type"] == _ARPHRD_ETHER else None,
        bare=link["ifi_type"] == _ARPHRD_NONE,
        up=bool(link["flags"] & _IFF_UP),
        carrier=bool(_attribute(link, "IFLA_CARRIER")),
        mtu=int(_attribute(link, "IFLA_MTU")),
        kind=_attribute(info, "IFLA_INFO_KIND") if (info := _attribute(link, "IFLA_LINKINFO")) else None,
        addresses=addresses,
    )


def index_of(name: str) -> int | None:
    """The interface's number, or None when there is none of that name. Cheap; numbers are not used again soon."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def loopback_addresses() -> frozenset[IPv4Address]:
    """The addresses that `lo` has, other than 127.0.0.0/8."""
    addresses = (address.ip for address in interface(LOOPBACK).addresses)
    return frozenset(address for address in addresses if not address.is_loopback)


def add_loopback_address(address: IPv4Address) -> bool:
    """Gives `lo` the address, /32 and scope host. False when it was there already."""
    return _change_loopback("add", address, errno.EEXIST)


def remove_loopback_address(address: IPv4Address) -> bool:
    """Takes the /32 from `lo`. False when it was not there."""
    return _change_loopback("del", address, errno.EADDRNOTAVAIL)


def _change_loopback(command: str, address: IPv4Address, done_errno: int) -> bool:
    scope = {"scope": _SCOPE_HOST} if command == "add" else {}
    with _netlink(f"{command} {address}/32 on lo") as netlink:
        try:
            netlink.addr(
                command,
                index=netlink.link_lookup(ifname=LOOPBACK)[0],
                address=str(address),
                prefixlen=32,
                **scope,
            )
        except NetlinkError as error:
            if error.code == done_errno:
                return False
            raise
    return True


@contextmanager
def _netlink(doing: str) -> Iterator[Any]:
    """A netlink socket; what goes wrong while it is open is translated."""
    try:
        with IPRoute() as netlink:
            yield netlink
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise HostError(f"cannot {doing}: not permitted", "run as root") from error
        raise KernelError(f"cannot {doing}: {error.args[-1]}", error.code) from error
    except OSError as error:
        raise KernelError(f"cannot {doing}: {error.strerror}", error.errno or 0) from error


def _attribute(message: Any, name: str) -> Any:
    return message.get_attr(name)
