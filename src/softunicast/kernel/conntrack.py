"""Entries of the kernel's connection tracking, over netlink: made, deleted, counted.

For the strategy that reserves five-tuples there; the data path does not use connection tracking. TCP and IPv4. The
messages are made here and not by pyroute2, which takes a millisecond and a half for each: what is measured shall be the
kernel's price. Numbers are those of <linux/netfilter/nfnetlink_conntrack.h>.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError, KernelError

Endpoint = tuple[IPv4Address, int]

COUNT: Final = Path("/proc/sys/net/netfilter/nf_conntrack_count")

_NETLINK_NETFILTER: Final = 12
_NEW, _DELETE = 0x100, 0x102  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_...
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_NESTED: Final = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY, _PROTOINFO, _NAT_SRC, _TIMEOUT = 1, 2, 4, 6, 7
_SYN_SENT: Final = 1  # TCP_CONNTRACK_SYN_SENT
_ANSWER_BYTES: Final = 4096


class Conntrack:
    """A netlink socket in the network namespace of the thread that makes it."""

    def __init__(self) -> None:
        try:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            self._netlink.bind((0, 0))
        except OSError as error:
            raise HostError(
                f"no netlink to netfilter: {error.strerror}", "boot a kernel that has it"
            ) from error

    def reserve(
        self, source: Endpoint, remote: Endpoint, timeout_s: int, *, translated: Endpoint | None = None
    ) -> bool:
        """Makes the entry of a connection from `source`, which leaves as `translated`, unless one is in the way.

        False when one is: the tuple is taken, as it is sent or as it is answered.
        """
        parts = [
            _nested(_TUPLE_ORIG, _tuple(source, remote)),
            _nested(_TUPLE_REPLY, _tuple(remote, source)),
            _nested(_PROTOINFO, _nested(1, _attribute(1, struct.pack("B", _SYN_SENT)))),
            _attribute(_TIMEOUT, struct.pack("!I", timeout_s)),
        ]
        if translated is not None:
            address, port = translated[0].packed, struct.pack("!H", translated[1])
            ports = _nested(3, _attribute(1, port) + _attribute(2, port))
            parts.append(_nested(_NAT_SRC, _attribute(1, address) + _attribute(2, address) + ports))
        return self._ask(_NEW, _CREATE | _EXCL, b"".join(parts), errno.EEXIST, "make")

    def delete(self, source: Endpoint, remote: Endpoint) -> bool:
        """False when there was no such entry."""
        return self._ask(_DELETE, 0, _nested(_TUPLE_ORIG, _tuple(source, remote)), errno.ENOENT, "delete")

    def close(self) -> None:
        """Lets go; the entries stay."""
        self._netlink.close()

    def _ask(self, kind: int, flags: int, body: bytes, expected: int, verb: str) -> bool:
        # struct nlmsghdr, then struct nfgenmsg: family, version, resource.
        head = struct.pack("=IHHII", 20 + len(body), kind, _REQUEST | _ACK | flags, 0, 0)
        self._netlink.send(head + struct.pack("!BBH", socket.AF_INET, 0, 0) + body)
        answer = self._netlink.recv(_ANSWER_BYTES)
        number = -int(struct.unpack_from("=i", answer, 16)[0])
        if number in (errno.EPERM, errno.EACCES):
            raise HostError(f"cannot {verb} a tracked connection: not permitted", "run as root")
        if number not in (0, expected):
            raise KernelError(f"cannot {verb} a tracked connection: {os.strerror(number)}", number)
        return number == 0


def tracked() -> int:
    """Connections that are tracked in the thread's network namespace."""
    try:
        return int(COUNT.read_text())
    except (OSError, ValueError) as error:
        raise HostError(
            f"no connection is tracked here: {error}", "boot a kernel with nf_conntrack"
        ) from error


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _nested(kind: int, payload: bytes) -> bytes:
    return _attribute(kind | _NESTED, payload)


def _tuple(source: Endpoint, remote: Endpoint) -> bytes:
    addresses = _attribute(1, source[0].packed) + _attribute(2, remote[0].packed)
    protocol = _attribute(1, struct.pack("B", socket.IPPROTO_TCP))
    ports = _attribute(2, struct.pack("!H", source[1])) + _attribute(3, struct.pack("!H", remote[1]))
    return _nested(1, addresses) + _nested(2, protocol + ports)
