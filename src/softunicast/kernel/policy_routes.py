"""Routing rules by mark, in an order in which no packet ever misses the table `local`.

For the strategy `placeholder-rules`. The kernel's rule for its own addresses comes first of all (priority 0), so a
reply to a shared address would never be forwarded. It is moved behind a rule for marked packets: added there before
it is removed in front, and put back in the opposite order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    route: dict[str, Any] = {
        "dst": "default",
        "gateway": str(gateway),
        "oif": index,
        "table": TABLE,
        "flags": ["onlink"],
    }
    marked = {"fwmark": MARK, "table": TABLE, "priority": MARKED_PRIORITY}
    with links.netlink_socket(f"route marked packets to {gateway}") as netlink:
        _do(netlink.route, "replace", route)
        _do(netlink.rule, "add", marked)
        _do(netlink.rule, "add", {"table": _LOCAL, "priority": LOCAL_PRIORITY})
        _do(netlink.rule, "del", {"table": _LOCAL, "priority": _FIRST})
    try:
        yield
    finally:
        with links.netlink_socket("put the routing rules back") as netlink:
            _do(netlink.rule, "add", {"table": _LOCAL, "priority": _FIRST})
            _do(netlink.rule, "del", {"table": _LOCAL, "priority": LOCAL_PRIORITY})
            _do(netlink.rule, "del", marked)
            _do(netlink.route, "del", route)


def _do(command: Any, verb: str, attributes: dict[str, Any]) -> None:
    command(verb, **attributes)
