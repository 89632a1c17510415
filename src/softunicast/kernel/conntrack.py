"""Entries of the kernel's connection tracking, over netlink: made, looked at, deleted.

For the strategy that reserves five-tuples there; the data path does not use connection tracking. TCP and IPv4.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any, Final

from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from softunicast.core.errors import HostError, KernelError

Endpoint = tuple[IPv4Address, int]

SYN_SENT, ESTABLISHED = 1, 3  # <linux/netfilter/nf_conntrack_tcp.h>


class Conntrack:
    """A netlink socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        with _translated("open a netlink socket"):
            self._netlink = NFCTSocket()

    def reserve(
        self, source: Endpoint, remote: Endpoint, timeout_s: int, *, translated: Endpoint | None = None
    ) -> bool:
        """Makes the entry of a connection from `source`, which leaves as `translated`, unless one is in the way.

        False when one is: the tuple is taken, as it is sent or as it is answered.
        """
        plain = _tuple(source, remote)
        more: dict[str, Any] = {"nat_src": _translation(*translated)} if translated else {}
        state = {"attrs": [["CTA_PROTOINFO_TCP", {"attrs": [["CTA_PROTOINFO_TCP_STATE", SYN_SENT]]}]]}
        try:
            self._entry(
                "add",
                timeout=timeout_s,
                tuple_orig=plain,
                tuple_reply=plain.reverse(),
                protoinfo=state,
                **more,
            )
        except KernelError as error:
            if error.errno == errno.EEXIST:
                return False
            raise
        return True

    def delete(self, source: Endpoint, remote: Endpoint) -> bool:
        """False when there was no such entry."""
        try:
            self._entry("del", tuple_orig=_tuple(source, remote))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def entries(self) -> tuple[tuple[Endpoint, Endpoint], ...]:
        """(source, remote) of every TCP connection that is tracked, as its first packet had them."""
        with _translated("list tracked connections"):
            found = list(self._netlink.dump())
        ends = (entry.get_attr("CTA_TUPLE_ORIG") for entry in found)
        return tuple(_ends(one) for one in ends if _protocol(one) == socket.IPPROTO_TCP)

    def close(self) -> None:
        """Lets go; the entries stay."""
        self._netlink.close()

    def _entry(self, command: str, **attributes: Any) -> None:
        with _translated(f"{command} a tracked connection"):
            self._netlink.entry(command, **attributes)


_ENDS: Final = (("CTA_IP_V4_SRC", "CTA_PROTO_SRC_PORT"), ("CTA_IP_V4_DST", "CTA_PROTO_DST_PORT"))


def _tuple(source: Endpoint, remote: Endpoint) -> Any:
    (saddr, sport), (daddr, dport) = source, remote
    return NFCTAttrTuple(
        saddr=str(saddr), daddr=str(daddr), proto=socket.IPPROTO_TCP, sport=sport, dport=dport
    )


def _translation(address: IPv4Address, port: int) -> dict[str, Any]:
    ports = {"attrs": [["CTA_PROTONAT_PORT_MIN", port], ["CTA_PROTONAT_PORT_MAX", port]]}
    text = str(address)
    return {"attrs": [["CTA_NAT_V4_MINIP", text], ["CTA_NAT_V4_MAXIP", text], ["CTA_NAT_PROTO", ports]]}


def _protocol(ends: Any) -> int:
    return int(ends.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_NUM"))


def _ends(ends: Any) -> tuple[Endpoint, Endpoint]:
    address, port = ends.get_attr("CTA_TUPLE_IP"), ends.get_attr("CTA_TUPLE_PROTO")
    source, remote = ((IPv4Address(address.get_attr(ip)), int(port.get_attr(at))) for ip, at in _ENDS)
    return source, remote


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code in (errno.EPERM, errno.EACCES):
            raise HostError(f"cannot {doing}: not permitted", "run as root") from error
        raise KernelError(f"cannot {doing}: {error.args[-1]}", error.code) from error
    except OSError as error:
        raise KernelError(f"cannot {doing}: {error.strerror}", error.errno or 0) from error
