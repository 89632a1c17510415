"""[sockets] of the agent's configuration: whether programs of the host itself can be put into agreements, and which
ones may use shared addresses without. Read here, used by kernel/socket_hooks.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from softunicast.core.toml_reader import Section

EXCUSED_MAX: Final = 256


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
