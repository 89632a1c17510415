"""Real agents on real kernels: what a stop leaves, and that nobody uses a slice past its deadline.

The leases of this lab are short, so that deadlines pass while a test waits.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import pytest
from scapy.layers.l2 import ARP, Ether
from tests.netns.pair_lab import Capture, PairLab, eventually

from softunicast.core.slices import Slice
from softunicast.kernel import links, namespaces
from softunicast.lab import agents
from softunicast.lab.pair import INTERNET, SHARED

TTL_S: Final = 4
QUARANTINE_S: Final = 1


@pytest.fixture(scope="module")
def lab(make_pair: Callable[..., PairLab]) -> PairLab:
    return make_pair(ttl_s=TTL_S, quarantine_s=QUARANTINE_S)


@pytest.fixture(scope="class")
def stopped(lab: PairLab) -> Iterator[PairLab]:
    """The lab with server1's agent stopped cleanly; tests leave it so."""
    lab.end_agents(signal.SIGTERM, "server1")
    yield lab
    lab.start_agents("server1")


def host_of(lab: PairLab, server: str) -> dict[str, Any]:
    """Everything that an agent may change on its host."""

    def settings() -> dict[str, str]:
        root = Path("/proc/sys/net/ipv4/conf")
        return {str(file): file.read_text() for file in root.glob("*/*") if os.access(file, os.R_OK)}

    node = lab.lab.node_directory(server)
    return {
        "settings": namespaces.run_in(lab.lab.namespace(server), settings),
        "addresses": lab.good(server, "ip", "-o", "-4", "address"),
        "links": lab.good(server, "ip", "-d", "link"),  # XDP programs show here
        "qdiscs": lab.good(server, "tc", "qdisc"),
        "pins": sorted(path.name for path in (lab.lab.bpffs / server).rglob("*")),
        "state": sorted(path.name for path in node.iterdir() if path.suffix not in (".log", ".toml")),
    }


def peer_port(lab: PairLab, client: str) -> int | None:
    """The port that the internet saw, or None when the client was refused."""
    done = lab.run(client, "curl", "-s", "-m", "2", f"http://{INTERNET}/")
    return int(json.loads(done.output)["port"]) if done.code == 0 else None


def held(lab: PairLab, server: str) -> tuple[Slice, int]:
    """The slice of the server, with its epoch, once there is one open for flows."""

    def look() -> tuple[Slice, int] | None:
        rows = [row for row in lab.ask(server, "/v1/slices") if row["here"] and row["state"] == "held"]
        return (Slice.parse(rows[0]["slice"]), rows[0]["epoch"]) if rows else None

    found: tuple[Slice, int] = eventually(look, f"{server} holds a slice")
    return found


def serves(lab: PairLab, server: str, client: str) -> None:
    """The client gets through, from the slice that its server holds."""
    port = eventually(lambda: peer_port(lab, client), f"{client} gets through")
    assert held(lab, server)[0].contains(Slice.of(SHARED, port, 1))


class TestStopped:
    def test_clean_stop_leaves_the_host_as_it_was(self, stopped: PairLab) -> None:
        before = host_of(stopped, "server1")
        assert before["pins"] == before["state"] == []
        stopped.start_agents("server1")
        during = host_of(stopped, "server1")
        assert during["pins"]
        assert during["settings"] != before["settings"]
        assert str(SHARED) in during["addresses"]
        assert any("director" in pin for pin in during["pins"])
        stopped.end_agents(signal.SIGTERM, "server1")
        assert host_of(stopped, "server1") == before
        assert stopped.log("server1")[-1]["event"] == "agent stopped"

    def test_originals_outlive_crashes(self, stopped: PairLab) -> None:
        before = host_of(stopped, "server1")
        for _ in range(2):
            stopped.start_agents("server1")
            stopped.end_agents(signal.SIGKILL, "server1")
        stopped.start_agents("server1")
        stopped.end_agents(signal.SIGINT, "server1")
        assert host_of(stopped, "server1") == before

    @pytest.mark.parametrize(
        ("old", "new", "code", "says"),
        [
            ('"country" = "gb"', '"country" = "us"', 2, "no address has country=us"),
            ('interface = "uplink"', 'interface = "upl"', 3, "there is no interface upl"),
            ('interface = "clients"', 'interface = "cli"', 3, "there is no interface cli"),
            ("ledger.db", "another.db", 2, "there is no ledger"),
            ("[uplink]", '[uplink]\naddress = "192.0.2.9"', 3, "does not have the address 192.0.2.9"),
            ("agent.sock", "agent.toml", 3, "no socket"),
            ('name = "server1"', 'name = "server2"', 3, "server2 is already in the ledger"),
            ("[uplink]", "[upling]", 2, "did you mean uplink?"),
        ],
    )
    def test_refused_start_changes_nothing(
        self, stopped: PairLab, tmp_path: Path, old: str, new: str, code: int, says: str
    ) -> None:
        before, leases = host_of(stopped, "server1"), stopped.ask("server2", "/v1/leases")
        text = stopped.config("server1").read_text()
        assert old in text
        (tmp_path / "agent.toml").write_text(text.replace(old, new))
        done = stopped.run("server1", "softunicast", "agent", "--config", str(tmp_path / "agent.toml"))
        assert done.code == code, done
        [line] = [line for line in done.complaint.splitlines() if line.startswith("softunicast: ")]
        assert says in line
        assert host_of(stopped, "server1") == before
        after = stopped.ask("server2", "/v1/leases")
        assert {row["slice"]: row["epoch"] for row in after if row["server"] == "server2"} == {
            row["slice"]: row["epoch"] for row in leases if row["server"] == "server2"
        }


def test_second_agent_is_refused_and_the_first_not_disturbed(lab: PairLab) -> None:
    pid = lab.ask("server1", "/v1/status")["pid"]
    done = lab.run("server1", "softunicast", "agent", "--config", str(lab.config("server1")))
    assert done.code == 3
    assert f"another agent (pid {pid})" in done.complaint
    serves(lab, "server1", "client1")


def test_onramp_that_went_while_the_agent_was_dead_is_waited_for(lab: PairLab) -> None:
    lab.end_agents(signal.SIGKILL, "server1")
    lab.good("server1", "ip", "link", "set", "clients", "down")
    lab.good("server1", "ip", "link", "set", "clients", "name", "away")
    # Not start_agents, which waits for every on-ramp.
    lab._agents["server1"] = agents.start(lab.lab, "server1")
    eventually(lambda: lab.answers("server1"), "the agent answers")
    problems = lab.ask("server1", "/v1/status")["problems"]
    assert problems == ["on-ramp clients is not there"]
    assert lab.ask("server1", "/v1/pools")[0]["onramps"] == []
    lab.good("server1", "ip", "link", "set", "away", "name", "clients")
    lab.good("server1", "ip", "link", "set", "clients", "up")
    eventually(lambda: lab.ask("server1", "/v1/status")["problems"] == [], "the on-ramp is back")
    serves(lab, "server1", "client1")


def losses(lab: PairLab) -> list[str]:
    """Slices that server1's agent has lost so far: on a busy machine, also one of a test before."""
    return [event["slice"] for event in lab.log("server1") if event["event"] == "slice lost"]


def test_frozen_agent_stops_at_the_deadline_and_wakes_without_reviving_it(lab: PairLab) -> None:
    old, epoch = held(lab, "server1")
    serves(lab, "server1", "client1")
    before = len(losses(lab))
    lab.send_agent("server1", signal.SIGSTOP)
    try:
        # Nobody is left to stop the kernel: it does so by itself, and the client is told.
        eventually(lambda: peer_port(lab, "client1") is None, "the data path refuses", TTL_S * 3)
        eventually(lambda: lease_of(lab, "server2", old) is None, "the ledger gives the slice up", TTL_S * 4)
        serves(lab, "server2", "client2")
    finally:
        lab.send_agent("server1", signal.SIGCONT)
    new, later = held(lab, "server1")
    assert later > epoch
    serves(lab, "server1", "client1")
    assert losses(lab)[before:] == [str(old)]
    assert lease_of(lab, "server1", new)
    assert new.ports == old.ports


def lease_of(lab: PairLab, server: str, slice_: Slice) -> dict[str, Any] | None:
    """What the ledger has on the slice, asked through the server."""
    rows = lab.ask(server, "/v1/leases")
    return next((row for row in rows if row["slice"] == str(slice_) and row["state"] == "held"), None)


def test_silent_ledger_stops_the_kernel_at_the_deadline_and_no_sooner(lab: PairLab) -> None:
    serves(lab, "server1", "client1")
    with closing(sqlite3.connect(lab.lab.ledger, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # from now on nobody can renew
        started = time.monotonic()
        worked_until = started
        while (port := peer_port(lab, "client1")) is not None:
            assert held_now(lab, "server1").contains(Slice.of(SHARED, port, 1))
            worked_until = time.monotonic()
            assert worked_until < started + 2 * TTL_S
        # Renewed at a third of the TTL at the latest, and good for the rest of it less the margin of a second.
        assert worked_until - started > TTL_S * 2 / 3 - 1 - 1
        status = lab.ask("server1", "/v1/status")
        assert any("past its deadline" in problem for problem in status["problems"])
        assert any("ledger" in problem for problem in status["problems"])
        eventually(lambda: "slice past its deadline" in events(lab), "it is logged")
        connection.execute("ROLLBACK")
    serves(lab, "server1", "client1")
    serves(lab, "server2", "client2")
    eventually(lambda: lab.ask("server1", "/v1/status")["problems"] == [], "no problems are left")
    assert events(lab).count("ledger trouble") == events(lab).count("ledger works again")


def events(lab: PairLab) -> list[str]:
    """What server1's agents logged, by name."""
    return [event["event"] for event in lab.log("server1")]


def held_now(lab: PairLab, server: str) -> Slice:
    """The slice in the server's kernel, at whatever point of its life."""
    [row] = [row for row in lab.ask(server, "/v1/slices") if row["here"]]
    return Slice.parse(row["slice"])


def test_nobody_answers_arp_for_the_shared_address(lab: PairLab) -> None:
    router = lab.lab.namespace("router")
    mac = namespaces.run_in(router, links.interface, "lan").mac
    asked = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / ARP(op="who-has", hwsrc=mac, psrc="192.0.2.254")

    with lab.capture("router", "lan") as capture, closing(lab.packet_socket("router", "lan")) as sender:
        for target in (str(SHARED), "192.0.2.1", "192.0.2.2"):
            question = asked.copy()
            question[ARP].pdst = target
            sender.send(bytes(question))
        heard: set[str] = set()

        def both_answered() -> bool:
            answers = (frame[ARP] for frame in capture.read() if ARP in frame and frame[ARP].op == 2)
            heard.update(answer.psrc for answer in answers)
            return {"192.0.2.1", "192.0.2.2"} <= heard

        # The servers' own addresses are asked for last: when they are answered, the first question was heard.
        eventually(both_answered, "the servers answer for themselves")
    assert str(SHARED) not in heard
    assert isinstance(capture, Capture)


def test_smaller_configuration_hands_the_slice_over(lab: PairLab) -> None:
    """slices_max from two to one, by a restart: the second slice drains and goes back without a quarantine."""
    path = lab.config("server1")
    text = path.read_text()
    try:
        # A new data path: conversations of earlier tests would keep a slice draining for minutes.
        lab.end_agents(signal.SIGTERM, "server1")
        path.write_text(text.replace("slices_max = 1", "slices_max = 2"))
        lab.start_agents("server1")
        eventually(
            lambda: [row["state"] for row in lab.ask("server1", "/v1/slices") if row["here"]] == ["held"] * 2,
            "two slices are held",
        )
        lab.end_agents(signal.SIGKILL, "server1")
    finally:
        path.write_text(text)
    lab.start_agents("server1")
    eventually(
        lambda: len([row for row in lab.ask("server1", "/v1/slices") if row["here"]]) == 1,
        "one slice is left",
    )
    serves(lab, "server1", "client1")
