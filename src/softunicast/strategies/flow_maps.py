"""Translation without connection tracking, for strategies that pick ports themselves: nft maps, one entry a flow and
way.

Two ways back to the client. `ingress`: the reply is rewritten at the uplink's netdev ingress, before the kernel's IP
input, so its destination is no address of this host any more: no routing rule, early demux may stay on. `rules`: as it
was published; the reply is marked, routed by mark to the client although its destination is local, and rewritten on the
way out. There early demux must be off: it would find the placeholder, give it the packet, and ip_forward() drops
packets that have a socket (lab failure early_demux).

A client's packet without an entry is dropped: it never leaves untranslated.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final, Literal

from softunicast.kernel import sysctl
from softunicast.kernel.nft import Nft
from softunicast.kernel.policy_routes import MARK, marked_packets_leave_by
from softunicast.strategies.strategy import Endpoint, Place

Way = Literal["ingress", "rules"]

TABLE: Final = "softunicast_flows"
EARLY_DEMUX: Final = "net/ipv4/tcp_early_demux"

_MAPS: Final = """
map ports { type ipv4_addr . inet_service . ipv4_addr . inet_service : inet_service; }
map clients { type ipv4_addr . inet_service . inet_service : ipv4_addr; }
map client_ports { type ipv4_addr . inet_service . inet_service : inet_service; }
"""
_OUT: Final = "ip saddr . tcp sport . ip daddr . tcp dport"
_IN: Final = "ip saddr . tcp sport . tcp dport"


class FlowMaps:
    """The maps of one place. `set_up` notes on `undo` how to take everything back."""

    def __init__(self, place: Place, way: Way) -> None:
        self._place, self._way = place, way
        self._family = "netdev" if way == "ingress" else "ip"

    def set_up(self, undo: ExitStack) -> None:
        self._nft = Nft()
        undo.callback(self._nft.close)
        self._nft.run(rules(self._place, self._way))
        undo.callback(self._nft.run, f"delete table {self._family} {TABLE}")
        if self._way == "rules":
            before = sysctl.read(EARLY_DEMUX)
            sysctl.write(EARLY_DEMUX, 0)
            undo.callback(sysctl.write, EARLY_DEMUX, before or 0)
            undo.enter_context(marked_packets_leave_by(self._place.onramp, self._place.gateway))

    def add(self, client: Endpoint, remote: Endpoint, port: int) -> None:
        """Packets of the flow are translated from now on."""
        self._change("add", client, remote, port, with_values=True)

    def remove(self, client: Endpoint, remote: Endpoint, port: int) -> None:
        """They are not any more."""
        self._change("delete", client, remote, port, with_values=False)

    def _change(self, verb: str, client: Endpoint, remote: Endpoint, port: int, *, with_values: bool) -> None:
        out = f"{client[0]} . {client[1]} . {remote[0]} . {remote[1]}"
        back = f"{remote[0]} . {remote[1]} . {port}"
        elements = [("ports", out, port), ("clients", back, client[0]), ("client_ports", back, client[1])]
        if self._way == "rules":
            elements.append(("marks", back, MARK))
        self._nft.run(
            "".join(
                f"{verb} element {self._family} {TABLE} {name} {{ {key}{f' : {value}' if with_values else ''} }}\n"
                for name, key, value in elements
            )
        )


def rules(place: Place, way: Way) -> str:
    """The table for `nft`."""
    # The key is read anew in each statement: what is part of it may be rewritten only after the last use.
    out = (
        f"tcp sport set {_OUT} map @ports ip saddr set {place.address} accept\nip saddr {place.clients} drop"
    )
    back = f"ip daddr set {_IN} map @clients tcp dport set {_IN} map @client_ports"
    if way == "ingress":
        chains = (
            f'chain out {{ type filter hook egress device "{place.uplink}" priority 0;\n{out}\n}}\n'
            f'chain back {{ type filter hook ingress device "{place.uplink}" priority 0;\n'
            f"ip daddr {place.address} {back}\n}}\n"
        )
        return f"table netdev {TABLE} {{ {_MAPS} {chains} }}"
    reply = f'iifname "{place.uplink}" ip daddr {place.address}'
    chains = (
        "map marks { type ipv4_addr . inet_service . inet_service : mark; }\n"
        f"chain replies {{ type filter hook prerouting priority mangle;\n{reply} meta mark set {_IN} map @marks\n}}\n"
        f"chain translate {{\n{out}\n}}\n"
        "chain out { type filter hook postrouting priority mangle;\n"
        f'oifname "{place.onramp}" meta mark {MARK} {back}\n'
        f'oifname "{place.uplink}" jump translate\n}}\n'
    )
    return f"table ip {TABLE} {{ {_MAPS} {chains} }}"
