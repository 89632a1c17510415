"""Programs that ask the agent for something over a unix socket, as the kernel knows them, and who may have it."""

from __future__ import annotations

import grp
import pwd
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from softunicast.core.errors import HostError

_SO_PEERGROUPS: Final = 59  # <asm-generic/socket.h>
_CREDENTIALS: Final = struct.Struct("iII")
_GROUPS_BYTES: Final = 1024  # the most that Python asks for: 256 groups
_ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """The program at the other end, as it was when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(data)
        more = b""
        with suppress(OSError):  # more of them than fit: then only the first one counts
            more = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_BYTES)
        return cls(pid, uid, frozenset((gid, *struct.unpack(f"{len(more) // 4}I", more))))


@dataclass(frozen=True, slots=True)
class Holders:
    """Who may have something of this server, in numbers; root always."""

    users: frozenset[int]
    groups: frozenset[int]

    @classmethod
    def of(cls, what: str, users: Iterable[str], groups: Iterable[str]) -> Holders:
        """Raises HostError for a name that this host does not have."""
        try:
            return cls(
                frozenset(int(one) if one.isdigit() else pwd.getpwnam(one).pw_uid for one in users),
                frozenset(int(one) if one.isdigit() else grp.getgrnam(one).gr_gid for one in groups),
            )
        except KeyError as error:
            raise HostError(
                f"{what}: {error.args[0]}", "make that user or group, or name another one"
            ) from error

    def include(self, peer: Peer) -> bool:
        return peer.uid == _ROOT or peer.uid in self.users or not self.groups.isdisjoint(peer.groups)
