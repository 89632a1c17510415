"""Asking the agent for a descriptor: one message each way over a unix socket of type SOCK_SEQPACKET, which keeps
messages apart. Both are JSON objects in UTF-8; the descriptor travels beside the answer (SCM_RIGHTS).

    request   {"open": "NAME"}
    answer    {"interface", "address", "address6", "sources", "mtu", "header_bytes"}      with one descriptor
              {"error": {"what", "fix", "exit_code"}}                                     with none
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_network
from typing import Final

from softunicast.core.errors import HostError, InputError
from softunicast.wire import messages

REQUEST_BYTES_MAX: Final = 256  # a name of 15 characters needs 40
ANSWER_BYTES_MAX: Final = 4096  # 16 prefixes and an error's sentence fit
HEADER_BYTES: Final = 10  # struct virtio_net_hdr


@dataclass(frozen=True, slots=True)
class Grant:
    """What the holder of a descriptor has to know. `address`: the server's own, with its prefix length; `address6`:
    likewise, None where there is no IPv6; `sources`: prefixes that its packets may come from; `header_bytes`: of the
    virtio_net header in front of each packet, 0: there is none."""

    interface: str
    address: IPv4Interface
    sources: tuple[IPv4Network | IPv6Network, ...]
    mtu: int
    header_bytes: int
    address6: IPv6Interface | None = None


def request(name: str) -> bytes:
    """Asks for the descriptor of an on-ramp."""
    return json.dumps({"open": name}).encode()


def parse_request(data: bytes) -> str:
    """The on-ramp's name. Raises InputError for anything that is no request."""
    value = messages.read(data)
    name = value.get("open")
    if set(value) != {"open"} or not isinstance(name, str):
        raise InputError("that is no request for a descriptor", 'send {"open": "NAME"} in one message')
    return name


def grant(granted: Grant) -> bytes:
    """The answer that the descriptor goes with."""
    texts = {
        "address": str(granted.address),
        "address6": granted.address6 and str(granted.address6),
        "sources": [str(one) for one in granted.sources],
    }
    return json.dumps(asdict(granted) | texts).encode()


refusal = messages.refusal


def parse_answer(data: bytes) -> Grant:
    """What was granted. Raises InputError or HostError as the agent said, HostError when it said something else."""
    try:
        value = messages.read(data)
        if error := messages.refused(value):
            raise error
        return Grant(
            str(value["interface"]),
            IPv4Interface(str(value["address"])),
            tuple(ip_network(str(one)) for one in value["sources"]),
            int(value["mtu"]),
            int(value["header_bytes"]),
            None if value.get("address6") is None else IPv6Interface(str(value["address6"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        raise HostError(
            "what answered is no agent", "see [agent] fd_socket in the configuration"
        ) from problem
