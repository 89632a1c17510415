"""Tags and pools: traffic chooses its egress by tag, never by address.

An address carries tags (`country=gb`); a pool names a set of tags, and stands for every address of this
server's site that carries all of them. A tag that no address of the ledger carries is a mistake, not an empty
choice: it is refused by name, and nothing falls back to another egress.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from softunicast.core.errors import InputError, UnknownNameError
from softunicast.core.records import Address
from softunicast.core.slices import IPAddress

TAG_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_KNOWN_SHOWN_MAX: Final = 10  # names an error lists: enough to spot the typing mistake, few enough for a line


@dataclass(frozen=True, slots=True)
class Timers:
    """How long an idle flow keeps its port, in seconds. Defaults are the least that the RFCs on NAT allow.

    TCP: RFC 5382 REQ-5 (2 h 4 min established, 4 min while opening or closing); UDP: RFC 4787 REQ-5
    (the recommended 5 min); ICMP queries: RFC 5508 REQ-2 (60 s). `rest_s`: after its mapping, the port of a
    client to which anybody could send is nobody's for so long (RFC 6888 REQ-8).
    """

    tcp_opening_s: int = 240
    tcp_established_s: int = 7440
    tcp_closing_s: int = 240
    udp_s: int = 300
    icmp_s: int = 60
    rest_s: int = 120


PROTOCOLS: Final = ("tcp", "udp", "icmp")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How a pool maps and filters, by protocol, in the words of RFC 4787, 5382 and 5508.

    `independent_mapping`: these use one port for all destinations, and nobody else uses it. The others are
    mapped address-and-port-dependent: a port serves many clients, each with another destination.
    `independent_filtering`: of those, these let anybody send to the port; the others only who was sent to.
    """

    independent_mapping: frozenset[str] = frozenset({"udp", "icmp"})
    independent_filtering: frozenset[str] = frozenset()


BEHAVIOUR_DEFAULT: Final = Behaviour()


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What one client of a pool may take, 0 for no limit (RFC 6888 REQ-4 and 5).

    `flows_max`: flows (and mappings) at once, `tcp_max` and so on: of these by protocol; a TCP conversation that
    is over is none. `state_max`: entries of the kernel's table, those of ended conversations included.
    `new_per_s`: new flows per second, a second's worth at once.
    """

    flows_max: int = 0
    tcp_max: int = 0
    udp_max: int = 0
    icmp_max: int = 0
    state_max: int = 0
    new_per_s: int = 0


NO_LIMITS: Final = ClientLimits()
ICMP_ERRORS_PER_S: Final = 100  # many more than a person or a program can use, few enough to cost nothing
WHEN_FULL: Final = ("another", "refuse")
WARN_AT, WARN_CLEAR_AT = 0.8, 0.7


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses by tag, and the policy for them. A server holds up to `slices_max` slices for the pool.

    `icmp_errors_per_s`: how many of the server's own ICMP errors one client is sent per second; 0: none
    (RFC 5508 REQ-9 and REQ-10 f).

    `warn_at`: the share of the pool's ports, taken towards its busiest destination, from which on the operator is
    warned; down to `warn_clear_at` again, told that it is over.

    `when_full`: what a client gets whose address has no free port towards a destination: "another" address, or
    "refuse" (RFC 6888 REQ-2, RFC 7857 section 4).

    `users`, `groups`: whose programs may have sockets and ports of the pool (names or numbers); root's always.

    `dns`: the resolvers that its programs ask in place of those on loopback; none: these, which ask from elsewhere.
    """

    name: str
    tags: Mapping[str, str]
    slices_max: int = 1
    timers: Timers = Timers()
    behaviour: Behaviour = BEHAVIOUR_DEFAULT
    client_limits: ClientLimits = NO_LIMITS
    icmp_errors_per_s: int = ICMP_ERRORS_PER_S
    when_full: str = WHEN_FULL[0]
    warn_at: float = WARN_AT
    warn_clear_at: float = WARN_CLEAR_AT
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    dns: tuple[IPAddress, ...] = ()

    def matches(self, address: Address) -> bool:
        """Whether the address carries every tag of the pool. Says nothing about its site."""
        return all(address.tags.get(key) == value for key, value in self.tags.items())


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises InputError when a key or value is not 1-32 of a-z 0-9 . _ - starting with a letter or digit."""
    for key, value in tags.items():
        for what, text in (("key", key), ("value", value)):
            if not TAG_PATTERN.fullmatch(text):
                raise InputError(
                    f"tag {what} {text[:40]!r} is not a name",
                    "use 1-32 of a-z 0-9 . _ - starting with a letter or digit",
                )


def select(pool: Pool, addresses: Iterable[Address], site: str) -> tuple[Address, ...]:
    """The addresses of `site` that carry all of the pool's tags, lowest first.

    `addresses` is the whole ledger's: a key or value that none of them carries, at any site, raises
    UnknownNameError. Known tags that no single address of the site combines give an empty tuple.
    """
    every = tuple(addresses)
    known: dict[str, set[str]] = {}
    for address in every:
        for key, value in address.tags.items():
            known.setdefault(key, set()).add(value)
    for key, value in pool.tags.items():
        if key not in known:
            raise UnknownNameError(
                f"pool {pool.name}: no address has a tag {key!r}", _known_fix("tags", known)
            )
        if value not in known[key]:
            raise UnknownNameError(
                f"pool {pool.name}: no address has {key}={value}", _known_fix(f"values of {key}", known[key])
            )
    chosen = (address for address in every if address.site == site and pool.matches(address))
    return tuple(sorted(chosen, key=lambda item: (item.address.version, int(item.address))))


def check_dns(pool: Pool, addresses: Iterable[Address]) -> None:
    """InputError when a resolver of the pool cannot be asked from any of `addresses`, those that `select` gave."""
    families = {address.address.version for address in addresses}
    for resolver in pool.dns:
        if families and resolver.version not in families:
            raise InputError(
                f"pool {pool.name}: dns has {resolver}, and no IPv{resolver.version} address could ask there",
                "take it from dns, or give such an address the pool's tags in the ledger",
            )


def _known_fix(what: str, names: Iterable[str]) -> str:
    ordered = sorted(names)
    if not ordered:
        return "give addresses tags with `softunicast ledger apply FILE`"
    more = ", ..." if len(ordered) > _KNOWN_SHOWN_MAX else ""
    return f"known {what}: {', '.join(ordered[:_KNOWN_SHOWN_MAX])}{more}"
