"""For programs that bring their own packets: the descriptor of an on-ramp, asked of this server's agent.

    with open_tun("tun0") as tun:
        os.write(tun.descriptor, packet)              # a whole IP packet whose source lies in tun.sources
        answer = os.read(tun.descriptor, tun.mtu)     # whole packets come back

No privilege is needed for it; the agent's configuration says who may. Needs nothing but the standard library.
"""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from types import TracebackType
from typing import Final

from softunicast.core.errors import AgentUnreachableError, HostError
from softunicast.wire import descriptor as wire

SOCKET_DEFAULT: Final = "/run/softunicast/fd.sock"
_DESCRIPTOR: Final = struct.Struct("i")
TIMEOUT_S: Final = 10.0  # the agent answers between two changes of its kernel tables


@dataclass(frozen=True, slots=True)
class OpenTun:
    """An open on-ramp. Reading and writing the descriptor moves one packet each; with `header_bytes`, there is a
    virtio_net header in front of it. Closing it, or the end of the program, gives the on-ramp back: the next
    program that opens it finds the conversations going on."""

    descriptor: int
    interface: str
    address: IPv4Interface
    sources: tuple[IPv4Network | IPv6Network, ...]
    mtu: int
    header_bytes: int
    address6: IPv6Interface | None = None

    def fileno(self) -> int:
        return self.descriptor

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> OpenTun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_tun(name: str, path: str = SOCKET_DEFAULT, timeout_s: float = TIMEOUT_S) -> OpenTun:
    """The on-ramp `name`, of kind "fd", of the agent that listens on `path` ([agent] fd_socket).

    Raises InputError when there is none of that name, HostError when this user may not open it or another program
    has it, AgentUnreachableError when nobody answers.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(path)
            connection.send(wire.request(name))
            # Not socket.recv_fds: it takes flags and ignores them, and children would inherit the descriptor.
            answer, beside, _, _ = connection.recvmsg(
                wire.ANSWER_BYTES_MAX, socket.CMSG_LEN(_DESCRIPTOR.size), socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            raise AgentUnreachableError(
                f"no agent answers on {path}: {error.strerror or error}",
                "see that it runs and has an on-ramp of kind fd",
            ) from error
    if not answer:
        raise AgentUnreachableError(
            f"the agent on {path} gave no answer", "it has too many to give: ask again"
        )
    descriptors = [
        _DESCRIPTOR.unpack(data)[0]
        for level, kind, data in beside
        if (level, kind, len(data)) == (socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.size)
    ]
    try:
        granted = wire.parse_answer(answer)
        if not descriptors:
            raise HostError("the agent sent no descriptor", "see the agent's log")
        return OpenTun(
            descriptors[0],
            granted.interface,
            granted.address,
            granted.sources,
            granted.mtu,
            granted.header_bytes,
            granted.address6,
        )
    except BaseException:
        for one in descriptors:
            os.close(one)
        raise
