"""Sharing fairly, with real programs: limits of a client, destinations left to the host, clamped segments, and memory
that is freed while no agent lives.

The agent of server1 has the settings below; slices have 64 ports.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.packet import Packet
from tests.netns.pair_lab import PairLab, eventually

from softunicast.lab.pair import CLIENT, INTERNET

PORTS, TCP_MAX, FLOWS_MAX = 64, 40, 1024
MSS = 1200
OTHER_CLIENT, EXEMPT = "10.0.0.3", "203.0.113.200"
SETTINGS = {
    r"flows_max = .*": f"flows_max = {FLOWS_MAX}",
    r'"?udp_s"? = \d+': "udp_s = 3",
    r'(mapping = .*?)"?udp"? = "independent"': r'\1udp = "dependent"',
    r"slices_max = .*": f"slices_max = 1\nclient_limits = {{ tcp_max = {TCP_MAX} }}\nwarn_at = 0.5",
    r'interface = "clients"': f'interface = "clients"\nmss_clamp = {MSS}\nexempt = ["{EXEMPT}/32"]',
}
FLOOD = f"""
import socket
for port in range(3000, 3064):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("{OTHER_CLIENT}", port))
        for remote in range(4000, 4020):
            try:
                sender.sendto(b"x", ("{INTERNET}", remote))
            except OSError:
                pass  # what is refused, and what was answered with ICMP before
"""


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    made = make_pair(slice_ports=PORTS)
    made.end_agents(signal.SIGTERM, "server1")
    text = made.config("server1").read_text()
    for old, new in SETTINGS.items():
        text, changed = re.subn(old, new, text, count=1)
        assert changed, old
    made.config("server1").write_text(text)
    made.start_agents("server1")
    made.good("client1", "ip", "address", "add", f"{OTHER_CLIENT}/24", "dev", "eth0")
    made.good("internet", "ip", "address", "add", f"{EXEMPT}/24", "dev", "eth0")
    return made


def events(lab: PairLab, kind: str) -> list[dict[str, Any]]:
    return [event for event in lab.ask("server1", "/v1/events")["events"] if event["kind"] == kind]


def gets_through(lab: PairLab, source: str) -> bool:
    done = lab.run("client1", "curl", "-s", "-m", "2", "--interface", source, f"http://{INTERNET}/")
    return done.code == 0


def test_a_scanner_beside_a_normal_client(lab: PairLab) -> None:
    """It is refused at once and by name; the other one does not notice, and the operator hears of both: of the limit,
    and that the pool is more than half full."""
    eventually(lambda: gets_through(lab, CLIENT), "the agent serves its client")
    with lab.held("client1", TCP_MAX + 15) as held:
        assert held["outcomes"] == {"ok": TCP_MAX, "EHOSTUNREACH": 15}
        for _ in range(5):
            assert gets_through(lab, OTHER_CLIENT)
        eventually(lambda: events(lab, "pool_nearly_full"), "the pool is nearly full")
        assert lab.ask("server1", "/v1/status")["problems"] == ["pool demo is nearly full"]
    (limited, *_) = eventually(lambda: events(lab, "client_limited"), "the limit is an event")
    assert (limited["details"]["client"], limited["details"]["pool"]) == (CLIENT, "demo")
    assert limited["nat_event"] == 13
    assert events(lab, "pool_nearly_full")[0]["details"]["busiest"] >= PORTS // 2
    assert "client_limited" in lab.good("server1", "softunicast", "events")


def announced(heard: list[Packet]) -> set[int]:
    options = [dict(frame[TCP].options) for frame in heard if TCP in frame and frame[TCP].flags.S]
    return {option["MSS"] for option in options if "MSS" in option}


def test_segments_are_clamped_both_ways(lab: PairLab) -> None:
    """As both ends see it, and the conversation works."""
    with lab.capture("router", "s1") as outside, lab.capture("client1", "eth0") as inside:
        assert gets_through(lab, OTHER_CLIENT)
        assert (announced(outside.read()), announced(inside.read())) == ({MSS}, {MSS})


def test_an_exempt_destination_sees_the_client_itself(lab: PairLab) -> None:
    with lab.capture("router", "s1") as outside:
        lab.run("client1", "ping", "-c", "1", "-W", "1", EXEMPT)  # no way back, without translation
        sources = {frame[IP].src for frame in outside.read() if ICMP in frame}
    assert CLIENT in sources
    assert not [flow for flow in lab.flows("server1") if flow[3].startswith(f"{EXEMPT}:")]


def test_a_full_table_while_the_agent_is_dead(lab: PairLab) -> None:
    """Live flows are not evicted for new ones; once they are over, the kernel makes room by itself."""
    lab.good("client1", "python3", "-c", FLOOD)
    assert lab.ask("server1", "/v1/status")["flows"] > FLOWS_MAX * 0.8
    assert not gets_through(lab, OTHER_CLIENT)
    lab.end_agents(signal.SIGKILL, "server1")
    eventually(lambda: gets_through(lab, OTHER_CLIENT), "there is room again")
    lab.start_agents("server1")
    assert lab.drops("server1")["table_full"] > 0
    assert lab.ask("server1", "/v1/status")["flows"] < FLOWS_MAX / 2
