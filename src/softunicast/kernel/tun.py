"""TUN devices that outlive the programs that use them: made, described, opened for a program, removed.

A device is persistent, has one queue and no packet information header. Whoever holds the queue's descriptor reads
and writes IP packets with it, needs no privilege for that, and can change the device as little as its owner can:
the owner is root, set anew whenever a queue is handed out, because the holder of a queue may set it, too.
Acts in the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from softunicast.core.errors import HostError, KernelError
from softunicast.core.onramps import Tun
from softunicast.kernel import sysctl

CLONE_DEVICE: Final = "/dev/net/tun"

# <linux/if_tun.h>
_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOWNER: Final = 0x400454CC
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_IFF_TUN_EXCL: Final = 0x8000
_IFREQ: Final = struct.Struct("16sH22x")
_IFF_UP: Final = 1
_KIND_TUN: Final = 1  # IFLA_TUN_TYPE
_ROOT: Final = 0
_ADDR_GEN_NONE: Final = 1  # no link-local address


@dataclass(frozen=True, slots=True)
class Found:
    """What there is under a name. `open`: a program holds the queue."""

    is_tun: bool
    persistent: bool
    owner: int | None
    offload: bool
    up: bool
    mtu: int
    open: bool
    addresses: tuple[IPv4Interface, ...]
    addresses6: tuple[IPv6Interface, ...] = ()  # but for those of the link alone

    def is_as_made(self, tun: Tun) -> bool:
        """Whether `make` would make the same device, and nobody changed whom it belongs to since."""
        made = Found(True, True, _ROOT, tun.offload, True, tun.mtu, self.open, (tun.address,), _address6(tun))
        return self == made


def make(name: str, tun: Tun) -> None:
    """Makes the device, up and with its addresses. KernelError (EBUSY) when there is an interface of that name."""
    descriptor = _open(name, tun, _IFF_TUN_EXCL)
    try:
        fcntl.ioctl(descriptor, _TUNSETOWNER, _ROOT)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
        _prepare_ipv6(name, tun)
        with IPRoute() as netlink:
            index = netlink.link_lookup(ifname=name)[0]
            addresses: tuple[IPv4Interface | IPv6Interface, ...] = (tun.address, *_address6(tun))
            for address in addresses:
                netlink.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)
            netlink.link("set", index=index, mtu=tun.mtu, state="up")
    except (OSError, NetlinkError) as error:
        with suppress(OSError):
            fcntl.ioctl(descriptor, _TUNSETPERSIST, 0)
        raise _failed(f"make {name}", error) from error
    finally:
        os.close(descriptor)


def _address6(tun: Tun) -> tuple[IPv6Interface, ...]:
    return () if tun.address6 is None else (tun.address6,)


def _prepare_ipv6(name: str, tun: Tun) -> None:
    """Without an IPv6 address of the configuration, its packets are IPv4. With one, that is the only one: a program
    must not be believed to be a router, and is not told of the link's own addresses."""
    with suppress(HostError):  # a kernel without IPv6; where it is needed, the address says so
        sysctl.write(f"net/ipv6/conf/{name}/disable_ipv6", int(tun.address6 is None))
        sysctl.write(f"net/ipv6/conf/{name}/accept_ra", 0)
        sysctl.write(f"net/ipv6/conf/{name}/addr_gen_mode", _ADDR_GEN_NONE)


def attach(name: str, tun: Tun) -> int:
    """A descriptor of the device's queue. KernelError with EBUSY while another program has it."""
    descriptor = _open(name, tun, 0)
    try:
        fcntl.ioctl(descriptor, _TUNSETOWNER, _ROOT)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    except OSError as error:
        os.close(descriptor)
        raise _failed(f"open {name}", error) from error
    return descriptor


def find(name: str) -> Found | None:
    """None when there is no interface of that name."""
    try:
        with IPRoute() as netlink:
            indices = netlink.link_lookup(ifname=name)
            if not indices:
                return None
            link = netlink.get_links(indices[0])[0]
            addresses = tuple(
                IPv4Interface((message.get_attr("IFA_LOCAL"), message["prefixlen"]))
                for message in netlink.get_addr(family=socket.AF_INET, index=indices[0])
            )
            addresses6 = (
                IPv6Interface((message.get_attr("IFA_ADDRESS"), message["prefixlen"]))
                for message in netlink.get_addr(family=socket.AF_INET6, index=indices[0])
            )
            known6 = tuple(address for address in addresses6 if not address.is_link_local)
    except (OSError, NetlinkError) as error:
        if isinstance(error, NetlinkError) and error.code == errno.ENODEV:
            return None
        raise _failed(f"look at {name}", error) from error
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    details: Any = info.get_attr("IFLA_INFO_DATA") if kind == "tun" else None

    def detail(attribute: str) -> Any:
        return details.get_attr(attribute) if details else None

    return Found(
        is_tun=detail("IFLA_TUN_TYPE") == _KIND_TUN,
        persistent=bool(detail("IFLA_TUN_PERSIST")),
        owner=detail("IFLA_TUN_OWNER"),
        offload=bool(detail("IFLA_TUN_VNET_HDR")),
        up=bool(link["flags"] & _IFF_UP),
        mtu=int(link.get_attr("IFLA_MTU")),
        open=bool(link.get_attr("IFLA_CARRIER")),
        addresses=addresses,
        addresses6=known6,
    )


def remove(name: str) -> None:
    """Programs that hold the queue get errors from then on. Nothing happens when there is none."""
    try:
        with IPRoute() as netlink:
            for index in netlink.link_lookup(ifname=name):
                netlink.link("del", index=index)
    except (OSError, NetlinkError) as error:
        if not isinstance(error, NetlinkError) or error.code != errno.ENODEV:
            raise _failed(f"remove {name}", error) from error


def _open(name: str, tun: Tun, flags: int) -> int:
    flags |= _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if tun.offload else 0)
    try:
        descriptor = os.open(CLONE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"cannot open {CLONE_DEVICE}: {error.strerror}", "modprobe tun, and run as root"
        ) from error
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError as error:
        os.close(descriptor)
        raise _failed(f"open {name}", error) from error
    return descriptor


def _failed(doing: str, error: OSError | NetlinkError) -> HostError | KernelError:
    code = error.code if isinstance(error, NetlinkError) else error.errno
    if code in (errno.EPERM, errno.EACCES):
        return HostError(f"cannot {doing}: not permitted", "run as root")
    return KernelError(f"cannot {doing}: {os.strerror(code or 0)}", code or 0)
