"""How programs of this host look names up, as far as the files say that all of them read: only where another process
does it for them is there something to say, because that one leaves from no pool. Nothing is asked of any resolver.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from ipaddress import ip_address
from pathlib import Path

from softunicast.core.slices import IPAddress

RESOLVERS = Path("/etc/resolv.conf")
SWITCH = Path("/etc/nsswitch.conf")
OWN_WAY = "looks names up, and asks from the host's own address"


def loopback_resolvers() -> tuple[IPAddress, ...]:
    """The name servers of /etc/resolv.conf that are processes of this host."""
    found = list[IPAddress]()
    for line in _lines(RESOLVERS):
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                address = ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            if address.is_loopback or address.is_unspecified:
                found.append(address)
    return tuple(found)


def asks_resolved() -> bool:
    """Whether the C library asks systemd-resolved, by no socket that could be sent elsewhere (nss-resolve)."""
    for line in _lines(SWITCH):
        database, colon, services = line.partition("#")[0].partition(":")
        if colon and database.strip() == "hosts":
            return "resolve" in services.split()
    return False


def outside(pool: str, dns: Collection[str]) -> Iterator[str]:
    """What programs in this pool, which has these resolvers, do not ask them, in sentences."""
    for resolver in loopback_resolvers():
        if not dns:
            yield f"{RESOLVERS} names {resolver}: another process {OWN_WAY} (no dns for pool {pool})"
            break
        if resolver.version not in {ip_address(one).version for one in dns}:
            what = f"{RESOLVERS} names {resolver}, and dns of pool {pool} no address of IPv{resolver.version}"
            yield f"{what}: lookups there are refused"
    if asks_resolved():
        yield f"{SWITCH} names resolve: systemd-resolved {OWN_WAY}, whatever dns says"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
