"""An agent that is killed at any moment of its start or its stop: the next one works, and restores in the end."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import time

from tests.netns.pair_lab import PairLab, eventually

from softunicast.lab import agents
from softunicast.lab.pair import INTERNET, SHARED

KILLS = 6
START_S = 3.0  # about as long as a start takes
STOP_S = 0.2


def host_of(lab: PairLab) -> tuple[object, ...]:
    """What an agent makes on server1."""
    return (
        lab.good("server1", "ip", "-4", "-o", "address"),
        json.loads(lab.good("server1", "bpftool", "-j", "net")),
        sorted(str(path) for path in (lab.lab.bpffs / "server1").rglob("*")),
    )


def killed(lab: PairLab, moments: random.Random) -> str:
    """Start an agent and kill it, half of them while they stop. Says when."""
    process = agents.start(lab.lab, "server1")
    if stopping := moments.random() < 0.5:
        eventually(lambda: agents.is_ready(lab.lab, "server1"), "the agent is ready")
        os.kill(process.pid, signal.SIGTERM)
    moment_s = moments.uniform(0, STOP_S if stopping else START_S)
    time.sleep(moment_s)
    os.kill(process.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
    eventually(lambda: os.waitpid(process.pid, os.WNOHANG)[0], "it ends")
    return f"{'stop' if stopping else 'start'} {moment_s:.3f} s"


def test_killed_at_any_moment(pair_lab: PairLab) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    pair_lab.end_agents(signal.SIGTERM, "server1")
    before = host_of(pair_lab)
    for _ in range(KILLS):
        print(killed(pair_lab, moments))

    pair_lab.start_agents("server1")
    answer = json.loads(pair_lab.good("client1", "curl", "-s", "-m", "20", f"http://{INTERNET}/"))
    assert answer["address"] == str(SHARED)
    assert pair_lab.ask("server1", "/v1/status")["problems"] == []
    pair_lab.end_agents(signal.SIGTERM, "server1")
    assert host_of(pair_lab) == before
    assert [event for event in pair_lab.log("server1") if event["level"] == "error"] == []
