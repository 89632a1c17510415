"""Routing rules by mark, in an order in which no packet ever misses the table `local`.

For the strategy `placeholder-rules`. The kernel's rule for its own addresses comes first of all (priority 0), so a
reply to a shared address would never be forwarded. It is moved behind a rule for marked packets: added there before
it is removed in front, and put back in the opposite order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from typing import Any, Final

from softunicast.kernel import links

MARK: Final = 42
TABLE: Final = 100
MARKED_PRIORITY: Final = 10
LOCAL_PRIORITY: Final = 11
_LOCAL: Final = 255  # RT_TABLE_LOCAL
_FIRST: Final = 0


@contextmanager
def marked_packets_leave_by(interface: str, gateway: IPv4Address) -> Iterator[None]:
    """For the length of a `with` block packets with MARK are routed to `gateway`, also those to own addresses."""
    index = links.interface(interface).index
    route = {"dst": "default", "gateway": str(gateway), "oif": index, "table": TABLE, "flags": ["onlink"]}
    marked = {"fwmark": MARK, "table": TABLE, "priority": MARKED_PRIORITY}
    behind, first = ({"table": _LOCAL, "priority": priority} for priority in (LOCAL_PRIORITY, _FIRST))
    with ExitStack() as undo:
        _do(undo, "route", "add", "del", route)
        _do(undo, "rule", "add", "del", marked)
        _do(undo, "rule", "add", "del", behind)
        _do(undo, "rule", "del", "add", first)
        yield


def _do(undo: ExitStack, what: str, verb: str, opposite: str, attributes: dict[str, Any]) -> None:
    _change(what, verb, attributes)
    undo.callback(_change, what, opposite, attributes)


def _change(what: str, verb: str, attributes: dict[str, Any]) -> None:
    with links.netlink_socket(f"{verb} a {what} in table {attributes['table']}") as netlink:
        getattr(netlink, what)(verb, **attributes)
