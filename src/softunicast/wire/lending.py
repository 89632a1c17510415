"""Asking the agent for sockets and ports of a pool, over a unix socket of type SOCK_SEQPACKET, which keeps messages
apart. Any number of questions on one connection, each answered before the next is read. JSON objects in UTF-8
(messages.py); descriptors travel beside a question (SCM_RIGHTS). The pool is named, or chosen by tags.

    {"agree": N, "pool" | "tags"}           with N descriptors       -> {"pool"}
    {"lease": PROTOCOL, "family", "any_port", "pool" | "tags"}       -> {"pool", "address", "port"}
    {"release": PROTOCOL, "address", "port"}                         -> {"pool": ""}
    whatever cannot be                      -> {"error": {"what", "fix", "exit_code", "errno"}}

`errno`, where it is not 0: what a system call would have said. What is leased is given back when the connection
closes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from softunicast.core.errors import HostError, InputError, KernelError, SoftunicastError
from softunicast.wire import messages

SOCKETS_MAX: Final = 16  # in one message; a name rarely has more addresses to try
REQUEST_BYTES_MAX: Final = 4096  # more tags than anybody uses
ANSWER_BYTES_MAX: Final = 4096
PROTOCOLS: Final = ("tcp", "udp")
FAMILIES: Final = (4, 6)
TAGS_MAX: Final = 32
_FIX: Final = (
    'send {"agree": 1, "pool": "NAME"} or {"lease": "tcp", "family": 4, "any_port": false, "pool": "NAME"}'
)

IPAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Choice:
    """A pool by its name, or by tags."""

    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, object]:
        return {"tags": dict(self.tags)} if self.name is None else {"pool": self.name}


@dataclass(frozen=True, slots=True)
class Agree:
    """`count` sockets, beside the message, are to leave from the pool."""

    count: int
    choice: Choice

    def data(self) -> bytes:
        return json.dumps({"agree": self.count} | self.choice.fields()).encode()


@dataclass(frozen=True, slots=True)
class Take:
    """An end of the pool is to be the caller's: one port, or an address with any port."""

    protocol: str
    family: int
    any_port: bool
    choice: Choice

    def data(self) -> bytes:
        asked = {"lease": self.protocol, "family": self.family, "any_port": self.any_port}
        return json.dumps(asked | self.choice.fields()).encode()


@dataclass(frozen=True, slots=True)
class Release:
    """It is not needed any more."""

    protocol: str
    address: IPAddress
    port: int

    def data(self) -> bytes:
        asked = {"release": self.protocol, "address": str(self.address), "port": self.port}
        return json.dumps(asked).encode()


Request = Agree | Take | Release


@dataclass(frozen=True, slots=True)
class Given:
    """What the agent gave. `address`: None when no end was asked for."""

    pool: str
    address: IPAddress | None = None
    port: int = 0


def parse_request(data: bytes) -> Request:
    """Raises InputError for anything that is none."""
    value = dict(messages.read(data)) if len(data) <= REQUEST_BYTES_MAX else {}
    try:
        if "release" in value:
            return _release(value)
        choice = _choice(value)
        if "agree" in value:
            found: Request = Agree(_number(value.pop("agree"), 1, SOCKETS_MAX), choice)
        else:
            protocol, any_port = value.pop("lease"), value.pop("any_port")
            if protocol not in PROTOCOLS or not isinstance(any_port, bool):
                raise ValueError
            found = Take(protocol, _number(value.pop("family"), 4, 6), any_port, choice)
            if found.family not in FAMILIES:
                raise ValueError
        if value:
            raise ValueError
    except (KeyError, ValueError, TypeError) as error:
        raise InputError("that is no request for sockets or ports", _FIX) from error
    return found


def answer(given: Given) -> bytes:
    """What was asked for is done."""
    if given.address is None:
        return json.dumps({"pool": given.pool}).encode()
    return json.dumps({"pool": given.pool, "address": str(given.address), "port": given.port}).encode()


def refusal(error: SoftunicastError) -> bytes:
    """It is not."""
    return messages.refusal(error, errno=error.errno if isinstance(error, KernelError) else 0)


def parse_answer(data: bytes) -> Given:
    """Raises what the agent refused: OSError where it gave an errno, else InputError or HostError. HostError, too,
    when it said something else."""
    try:
        value = messages.read(data)
        error = messages.refused(value)
        number = _number(value["error"]["errno"], 0, 1 << 16) if error else 0
        given = None if error else _given(value)
    except (KeyError, TypeError, ValueError) as problem:
        raise HostError(
            "what answered is no agent", "see [agent] pool_socket in the configuration"
        ) from problem
    if number:
        raise OSError(number, str(error))  # a PermissionError, where it is one
    if error:
        raise error
    assert given is not None
    return given


def _given(value: Mapping[str, Any]) -> Given:
    if not isinstance(value["pool"], str):
        raise ValueError
    if "address" not in value:
        return Given(value["pool"])
    return Given(value["pool"], _address(value["address"]), _number(value["port"], 0, 65535))


def _release(value: dict[str, Any]) -> Release:
    protocol, address, port = value.pop("release"), value.pop("address"), value.pop("port")
    if protocol not in PROTOCOLS or value:
        raise ValueError
    return Release(protocol, _address(address), _number(port, 0, 65535))


def _choice(value: dict[str, Any]) -> Choice:
    if "pool" in value:
        name = value.pop("pool")
        if not isinstance(name, str) or "tags" in value:
            raise ValueError
        return Choice(name)
    tags = value.pop("tags")
    if not isinstance(tags, dict) or not all(isinstance(text, str) for text in tags.values()):
        raise ValueError
    if len(tags) > TAGS_MAX:
        raise ValueError
    return Choice(None, tags)


def _address(text: object) -> IPAddress:
    if not isinstance(text, str) or "%" in text:
        raise ValueError
    return ip_address(text)


def _number(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError
    return value
