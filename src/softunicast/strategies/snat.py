"""`snat`: one netfilter rule, `snat to ADDRESS:FIRST-LAST`. The kernel's connection tracking picks the ports.

What it cannot do: it knows nothing of sockets. A socket that is bound in the slice and meets a forwarded flow there has
its packets rewritten silently, to any port at all (lab failure silent_rewrite).
"""

from __future__ import annotations

import socket
from typing import Final

from softunicast.kernel import namespaces
from softunicast.kernel.nft import Nft
from softunicast.strategies.strategy import CONNECT_TIMEOUT_S, Endpoint, Strategy, begun

TABLE: Final = "softunicast_snat"


class Snat(Strategy):
    name = "snat"
    about = "a netfilter rule translates to the slice's ports"
    protocols = ("tcp", "udp", "icmp")
    restart = "yes: the rule and the tracked connections are the kernel's"

    @classmethod
    def attempt(cls) -> None:
        namespaces.run_in_new(_attempt)

    def _set_up(self) -> None:
        nft = Nft()
        self._undo.callback(nft.close)
        place = self.place
        target = f"{place.address}:{place.ports[0]}-{place.ports[-1]}"
        nft.run(
            f"table ip {TABLE} {{ chain out {{ type nat hook postrouting priority srcnat;\n"
            f'oifname "{place.uplink}" ip saddr != {place.address} meta l4proto {{ tcp, udp, icmp }} snat to {target}\n'
            "}; }"
        )
        self._undo.callback(nft.run, f"delete table ip {TABLE}")

    def connect(self, remote: Endpoint, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
        """Like a client's flow: the kernel translates it, and getsockname() knows nothing of that."""
        return begun(socket.socket(socket.AF_INET, socket.SOCK_STREAM), remote, timeout_s)


def _attempt() -> None:
    nft = Nft()
    try:
        nft.run(
            f"table ip {TABLE} {{ chain out {{ type nat hook postrouting priority srcnat;\n"
            "meta l4proto { tcp, udp, icmp } snat to 192.0.2.1:2048-4095\n}; }"
        )
    finally:
        nft.close()
