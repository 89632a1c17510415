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
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from softunicast.core.errors import HostError, KernelError
from softunicast.core.slices import IPAddress

LOOPBACK: Final = "lo"
_AF_INET: Final = 2
_AF_INET6: Final = 10
_IFF_UP: Final = 1
_ARPHRD_ETHER: Final = 1
_ARPHRD_NONE: Final = 0xFFFE
# An address of this scope is good for receiving and for sockets bound to it, and for nothing else: the kernel
# never picks it as the source of a packet that leaves, nor of an ARP request.
_SCOPE_HOST: Final = 254
# IPv6 has no such scope. What comes closest: no detection of duplicates, and deprecated from the start, so that the
# kernel picks any other address before it. Neighbour discovery is answered by the interface that has the address.
_IPV6_QUIET: Final = {"flags": 0x02, "preferred": 0, "valid": 0xFFFFFFFF}


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface. `mac` is None unless it is Ethernet; `bare` when its packets are IP and nothing in front, as of
    a TUN or a WireGuard device; `kind` is None unless it is virtual ("veth", "tun"); `addresses` (IPv4) and
    `addresses6` are in the kernel's order; `mtu` in bytes; `carrier`: a cable is in, or a program has the descriptor
    of a TUN."""

    name: str
    index: int
    mac: str | None
    bare: bool
    up: bool
    carrier: bool
    mtu: int
    kind: str | None
    addresses: tuple[IPv4Interface, ...]
    addresses6: tuple[IPv6Interface, ...] = ()


def interface(name: str) -> Interface:
    """Raises HostError when there is none of that name."""
    with netlink_socket(f"look up interface {name}") as netlink:
        found = netlink.link_lookup(ifname=name)
        if not found:
            raise HostError(f"there is no interface {name}", "name one that `ip link` shows")
        index = int(found[0])
        link = netlink.get_links(index)[0]
        addresses = tuple(
            IPv4Interface((_attribute(message, "IFA_LOCAL"), message["prefixlen"]))
            for message in netlink.get_addr(family=_AF_INET, index=index)
        )
        addresses6 = tuple(
            IPv6Interface((_attribute(message, "IFA_ADDRESS"), message["prefixlen"]))
            for message in netlink.get_addr(family=_AF_INET6, index=index)
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
        addresses6=addresses6,
    )


def index_of(name: str) -> int | None:
    """The interface's number, or None when there is none of that name. Cheap; numbers are not used again soon."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def bring_up(name: str) -> None:
    """As `ip link set NAME up` does. Raises HostError when there is none of that name."""
    index = interface(name).index
    with netlink_socket(f"bring up {name}") as netlink:
        netlink.link("set", index=index, state="up")


def source_addresses(device: Interface) -> tuple[IPAddress, ...]:
    """What the interface's own packets may come from: of IPv6, those that are good beyond the link come first."""
    known = sorted((address.ip for address in device.addresses6), key=lambda address: address.is_link_local)
    return (*(address.ip for address in device.addresses), *known)


def loopback_addresses() -> frozenset[IPAddress]:
    """The addresses that `lo` has, other than 127.0.0.0/8 and ::1."""
    device = interface(LOOPBACK)
    addresses: list[IPAddress] = [address.ip for address in device.addresses]
    addresses += [address.ip for address in device.addresses6]
    return frozenset(address for address in addresses if not address.is_loopback)


def add_loopback_address(address: IPAddress) -> bool:
    """Gives `lo` the address, with the longest prefix and such that the kernel does not use it for its own packets.
    False when it was there already."""
    return _change_loopback("add", address, errno.EEXIST)


def remove_loopback_address(address: IPAddress) -> bool:
    """Takes the address from `lo`. False when it was not there."""
    return _change_loopback("del", address, errno.EADDRNOTAVAIL)


def _change_loopback(command: str, address: IPAddress, done_errno: int) -> bool:
    scope: dict[str, Any] = {}
    if command == "add":
        scope = {"scope": _SCOPE_HOST} if address.version == 4 else _IPV6_QUIET
    with netlink_socket(f"{command} {address}/{address.max_prefixlen} on lo") as netlink:
        try:
            netlink.addr(
                command,
                index=netlink.link_lookup(ifname=LOOPBACK)[0],
                address=str(address),
                prefixlen=address.max_prefixlen,
                **scope,
            )
        except NetlinkError as error:
            if error.code == done_errno:
                return False
            if error.code == errno.EACCES and address.version == 6:
                raise HostError(
                    f"cannot {command} {address} on lo: IPv6 is off there",
                    "sysctl -w net.ipv6.conf.lo.disable_ipv6=0",
                ) from error
            raise
    return True


@contextmanager
def netlink_socket(doing: str) -> Iterator[Any]:
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
