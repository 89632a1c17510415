"""A VPN between a client of the lab and its server: wireguard-go, both families inside."""

from __future__ import annotations

from pathlib import Path

from tests.netns.pair_lab import PairLab, eventually
from tests.netns.tun_program import SERVER

from softunicast.lab import processes
from softunicast.lab.pair import INTERNET
from softunicast.lab.pair6 import INTERNET6

VPN_SERVER, VPN_CLIENT, VPN_PORT = "10.10.0.1", "10.10.0.2", 51820
VPN_SERVER6, VPN_CLIENT6 = "fd00:a::1", "fd00:a::2"


def wireguard(lab: PairLab, name: str) -> None:
    """A tunnel between client1 and its server; all that client1 sends goes through it, its own packets excepted."""
    keys = {end: lab.good("client1", "wg", "genkey").strip() for end in "sc"}
    for node, end, other, address, address6 in (
        (SERVER, "s", "c", VPN_SERVER, VPN_SERVER6),
        ("client1", "c", "s", VPN_CLIENT, VPN_CLIENT6),
    ):
        device = f"{name}{end}"
        processes.start(lab.lab, node, "wireguard", ["/usr/bin/wireguard-go", "-f", device])
        eventually(lambda device=device: Path(f"/var/run/wireguard/{device}.sock").exists(), "it listens")
        key = lab.lab.node_directory(node) / "key"
        key.write_text(keys[end])
        public = lab.good(node, "sh", "-c", f"echo {keys[other]} | wg pubkey").strip()
        peer = ["allowed-ips", f"{VPN_CLIENT}/32,{VPN_CLIENT6}/128"]
        if end == "c":
            peer = ["allowed-ips", "0.0.0.0/0,::/0", "endpoint", f"10.0.0.1:{VPN_PORT}"]
        port = ["listen-port", str(VPN_PORT)] if end == "s" else []
        lab.good(node, "wg", "set", device, "private-key", str(key), *port, "peer", public, *peer)
        lab.good(node, "ip", "address", "add", f"{address}/24", "dev", device)
        lab.good(node, "ip", "address", "add", f"{address6}/64", "dev", device)
        lab.good(node, "ip", "link", "set", device, "up")
    for remote in (f"{INTERNET}/32", f"{INTERNET6}/128"):
        lab.good("client1", "ip", "route", "add", remote, "dev", f"{name}c")
