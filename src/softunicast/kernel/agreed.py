"""Sockets of other programs, put into an agreement by their descriptor (the map `agreed`, bpf/agreement.h).

A program hands one of its sockets over before it connects it; from then on the hooks of the kernel serve it. Only
what they can serve is taken: an unconnected TCP or UDP socket of this data path's network namespace. The check and
the writing are a handful of system calls that never wait.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable
from typing import Final

from softunicast.core.errors import KernelError
from softunicast.kernel import abi
from softunicast.kernel.maps import Map
from softunicast.kernel.socket_hooks import netns_cookie

_TCP_CLOSE: Final = 7  # enum in <net/tcp_states.h>; neither connected, nor connecting, nor listening
_STATE_BYTES: Final = 1  # the first field of struct tcp_info
_FIX: Final = "hand over a TCP or UDP socket before it is connected"
_KINDS: Final = {
    (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
}


def agree(agreed: Map, descriptors: Iterable[int], pool: int, cookie: int) -> None:
    """Every one of the sockets leaves from the pool with this number, or not at all. `cookie`: the namespace that
    they have to be of. Raises KernelError, with the number of an OSError, and then none of them has changed."""
    every = tuple(descriptors)
    for descriptor in every:
        _refuse_unfit(descriptor, cookie)
    value = abi.Agreement(abi.AgreementKind.POOL, pool).pack()
    done = list[int]()
    try:
        for descriptor in every:
            agreed.set(_key(descriptor), value)
            done.append(descriptor)
    except BaseException:
        for descriptor in done:
            agreed.delete(_key(descriptor))
        raise


def excuse(agreed: Map, descriptor: int) -> None:
    """This socket may use any port, and leaves as it would without softunicast."""
    agreed.set(_key(descriptor), abi.Agreement(abi.AgreementKind.EXCUSED, 0).pack())


def _refuse_unfit(descriptor: int, cookie: int) -> None:
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise KernelError("what was handed over is no socket", errno.ENOTSOCK, _FIX)
    with socket.socket(fileno=os.dup(descriptor)) as one:
        if one.family not in (socket.AF_INET, socket.AF_INET6) or (one.type, one.proto) not in _KINDS:
            raise KernelError(
                f"a socket of {_name(one.family)}, {_name(one.type)}, protocol {one.proto} has no ports of a pool",
                errno.EPROTONOSUPPORT,
                _FIX,
            )
        if netns_cookie(one) != cookie:
            raise KernelError(
                "the socket is of another network namespace", errno.EXDEV, "ask the agent of that namespace"
            )
        if _is_in_use(one):
            raise KernelError("the socket is connected, or listens", errno.EISCONN, _FIX)


def _is_in_use(one: socket.socket) -> bool:
    if one.type == socket.SOCK_STREAM:
        state = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _STATE_BYTES)
        return state[0] != _TCP_CLOSE
    try:
        one.getpeername()
    except OSError:
        return False
    return True


def _key(descriptor: int) -> bytes:
    return descriptor.to_bytes(4, "little")


def _name(number: int) -> str:
    return getattr(number, "name", str(number))
