"""What the agent's configuration says of programs of the host itself. [sockets]: whether they can be put into
agreements, and which ones may use shared addresses without; used by kernel/socket_hooks.py. `dns` of a pool: whom they
ask for names; used by kernel/resolvers.py."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from softunicast.core.slices import IPAddress
from softunicast.core.toml_reader import Section

EXCUSED_MAX: Final = 256
RESOLVERS_MAX: Final = 4  # the same number as in bpf/abi.h


@dataclass(frozen=True, slots=True)
class SocketsConfig:
    """`enabled`: None means where there is a cgroup2. `cgroup`: the root of it that is to be used; None: the one that
    is mounted. `excused`: cgroups from that root, as /proc/PID/cgroup shows them, whose programs may bind as they
    like."""

    enabled: bool | None = None
    cgroup: str | None = None
    excused: tuple[str, ...] = ()


def parse_sockets(section: Section) -> SocketsConfig:
    """The section, which may be missing."""
    found = SocketsConfig(
        section.flag("enabled", True) if section.have("enabled") else None,
        section.path("cgroup") if section.have("cgroup") else None,
        tuple(section.list_of_texts("excused", EXCUSED_MAX)),
    )
    for cgroup in found.excused:
        if not cgroup.startswith("/") or ".." in cgroup.split("/") or not cgroup.strip("/"):
            section.wrong(
                "excused", f"{cgroup!r} is not a cgroup", "write it like /system.slice/haproxy.service"
            )
    section.done()
    return found


def resolvers(section: Section) -> tuple[IPAddress, ...]:
    """`dns` of a pool: addresses of resolvers that this server reaches by its uplink."""
    found = list[IPAddress]()
    for text in section.list_of_texts("dns", RESOLVERS_MAX):
        try:
            address = ip_address(text)
        except ValueError:
            section.wrong("dns", f"{text!r} is not an address", "write it like 192.0.2.53 or 2001:db8::53")
            continue
        if address.is_loopback or address.is_unspecified:
            what = f"{text} is this server itself, which asks from its own address"
            section.wrong(
                "dns", what, "name a resolver elsewhere; without dns, lookups on loopback are left alone"
            )
        elif not _is_reached(address):
            section.wrong(
                "dns", f"no resolver is reached at {text}", "name one like 192.0.2.53 or 2001:db8::53"
            )
        elif address in found:
            section.wrong("dns", f"{text} is there twice", "leave one out")
        found.append(address)
    return tuple(found)


def _is_reached(address: IPAddress) -> bool:
    """By a route, from an address of a pool."""
    if isinstance(address, IPv6Address) and (
        address.is_link_local or address.ipv4_mapped or address.scope_id
    ):
        return False
    return not address.is_multicast and not (address.version == 4 and address.is_reserved)
