"""What the nouns answer is what happens: `explain` against real packets, the ledger's history against real moves."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.netns.pair_lab import PairLab

from softunicast.kernel import links, namespaces
from softunicast.lab.pair import CLIENT, ECHO_PORT, HTTP_PORT, INTERNET, SHARED

WEB = f"{INTERNET}:{HTTP_PORT}"
ECHO = f"{INTERNET}:{ECHO_PORT}"


def explain(lab: PairLab, server: str, *question: str) -> Any:
    return lab.softunicast(server, "explain", *question)


def state(lab: PairLab, server: str) -> Any:
    """Everything that a packet could change."""
    nouns = ("slices", "flows?limit=100000", "drops", "traffic", "leases")
    answers = {noun: lab.ask(server, f"/v1/{noun}") for noun in nouns}
    for row in [*answers["slices"], *answers["leases"], *answers[nouns[1]]["flows"]]:
        for moving in ("deadline_in_s", "expires_in_s", "quarantined_for_s", "age_s"):
            row.pop(moving, None)
    for row in answers["drops"]:
        if row["last"] is not None:
            del row["last"]["age_s"]
    return answers


@pytest.fixture(scope="class")
def flow(pair_lab: PairLab) -> Iterator[dict[str, Any]]:
    """A conversation of client1 that is open, as `flows` lists it."""
    with pair_lab.held("client1", 1) as held:
        assert held["outcomes"] == {"ok": 1}
        [flow] = pair_lab.softunicast("server1", "flows", "--remote", ECHO)["flows"]
        assert flow["client"] == held["connections"][0]["local"]
        yield flow


class TestExplain:
    @pytest.fixture(autouse=True)
    def nothing_changes(self, pair_lab: PairLab, flow: dict[str, Any]) -> Iterator[None]:
        before = {server: state(pair_lab, server) for server in pair_lab.lab.agents}
        yield
        assert {server: state(pair_lab, server) for server in pair_lab.lab.agents} == before

    def test_new_flow(self, pair_lab: PairLab) -> None:
        answer = explain(pair_lab, "server1", "--from", "clients", "tcp", f"{CLIENT}:50001", WEB, "--syn")
        assert (answer["verdict"], answer["reason"]) == ("sent out of uplink", None)
        assert "new flow" in answer["steps"][0]
        source = answer["packet_out"].split()[1]
        port = int(source.rpartition(":")[2])
        slice_ = pair_lab.slice_of("server1")
        assert source.startswith(f"{SHARED}:")
        assert slice_.port_first <= port <= slice_.port_last

    def test_known_flow(self, pair_lab: PairLab, flow: dict[str, Any]) -> None:
        answer = explain(pair_lab, "server1", "--from", "clients", "tcp", flow["client"], ECHO)
        assert (answer["verdict"], answer["reason"]) == ("sent out of uplink", None)
        assert "flow known" in answer["steps"][0]
        assert answer["packet_out"].startswith(f"tcp {flow['local']} > {ECHO}")

    def test_middle_of_an_unknown_conversation(self, pair_lab: PairLab) -> None:
        answer = explain(pair_lab, "server1", "--from", "clients", "tcp", f"{CLIENT}:50002", WEB, "--ack")
        assert (answer["verdict"], answer["reason"]) == ("dropped", "no_flow")

    def test_own_reply(self, pair_lab: PairLab, flow: dict[str, Any]) -> None:
        answer = explain(pair_lab, "server1", "--from", "uplink", "tcp", ECHO, flow["local"])
        assert (answer["verdict"], answer["reason"]) == ("given to the client", None)
        assert answer["packet_out"].startswith(f"tcp {ECHO} > {flow['client']}")

    def test_the_same_reply_at_the_other_server(self, pair_lab: PairLab, flow: dict[str, Any]) -> None:
        answer = explain(pair_lab, "server2", "--from", "uplink", "tcp", ECHO, flow["local"])
        mac = namespaces.run_in(pair_lab.lab.namespace("server1"), links.interface, "uplink").mac
        assert (answer["verdict"], answer["reason"]) == ("steered to server1", None)
        assert f"({mac})" in answer["steps"][0]

    def test_reply_without_a_flow(self, pair_lab: PairLab) -> None:
        local = f"{SHARED}:{pair_lab.slice_of('server1').port_first}"
        answer = explain(pair_lab, "server1", "--from", "uplink", "udp", f"{INTERNET}:53", local)
        assert (answer["verdict"], answer["reason"]) == ("passed to this server", None)

    @pytest.mark.parametrize("local", [f"{SHARED}:80", f"{SHARED}:60000", "198.51.100.77:5000"])
    def test_a_port_that_nobody_holds(self, pair_lab: PairLab, local: str) -> None:
        answer = explain(pair_lab, "server1", "--from", "uplink", "tcp", WEB, local)
        assert (answer["verdict"], answer["reason"]) == ("dropped", "no_owner")
        assert answer["meaning"]

    def test_leaving_from_the_slice_of_another(self, pair_lab: PairLab) -> None:
        local = f"{SHARED}:{pair_lab.slice_of('server2').port_last}"
        answer = explain(pair_lab, "server1", "--from", "uplink", "--leaving", "udp", local, ECHO)
        assert (answer["verdict"], answer["reason"]) == ("dropped by the guard", "guard_foreign")

    @pytest.mark.parametrize(
        ("interface", "source", "destination"),
        [("uplink", "192.0.2.254:1", "192.0.2.1:22"), ("clients", f"{CLIENT}:1", "10.0.0.1:22")],
    )
    def test_what_is_not_soft_unicast(
        self, pair_lab: PairLab, interface: str, source: str, destination: str
    ) -> None:
        answer = explain(pair_lab, "server1", "--from", interface, "tcp", source, destination, "--syn")
        assert (answer["verdict"], answer["reason"]) == ("passed to this server", None)

    def test_in_words(self, pair_lab: PairLab) -> None:
        said = pair_lab.good(
            "server1", "softunicast", "explain", "--from", "uplink", "tcp", WEB, f"{SHARED}:60000"
        )
        assert "verdict  dropped: no_owner" in said
        assert "no server holds a lease" in said


@pytest.fixture(scope="class")
def moves(pair_lab: PairLab) -> dict[str, tuple[float, str, int]]:
    """Times (unix) and slices of server1's life: name -> (when, slice, epoch)."""
    found: dict[str, tuple[float, str, int]] = {}

    def note(name: str) -> None:
        [lease] = [row for row in pair_lab.ask("server1", "/v1/leases") if row["server"] == "server1"]
        found[name] = (time.time(), lease["slice"], lease["epoch"])

    pair_lab.good("client1", "curl", "-s", "-m", "20", f"http://{WEB}/")
    note("first")
    pair_lab.end_agents(signal.SIGTERM, "server1")
    found["between"] = (time.time(), *found["first"][1:])
    pair_lab.start_agents("server1")
    pair_lab.good("client1", "curl", "-s", "-m", "20", f"http://{WEB}/")
    [lease] = [
        row
        for row in pair_lab.ask("server1", "/v1/leases")
        if row["server"] == "server1" and row["state"] == "held"
    ]
    found["second"] = (time.time(), lease["slice"], lease["epoch"])
    return found


class TestHistory:
    """Who had a port, and when: asked for the times before, between and after two tenures."""

    def who(self, lab: PairLab, slice_: str, at: float, *source: str) -> Any:
        port = slice_.rpartition("-")[2]
        when = datetime.fromtimestamp(at, UTC).isoformat()
        return lab.softunicast("server1", "leases", "--who", f"{SHARED}:{port}", "--at", when, *source)

    @pytest.mark.parametrize("from_file", [False, True])
    def test_holder(
        self, pair_lab: PairLab, moves: dict[str, tuple[float, str, int]], from_file: bool
    ) -> None:
        source = ("--ledger", str(pair_lab.lab.ledger)) if from_file else ()
        for tenure in ("first", "second"):
            at, slice_, epoch = moves[tenure]
            holder = self.who(pair_lab, slice_, at, *source)
            assert (holder["server"], holder["slice"], holder["epoch"]) == ("server1", slice_, epoch)
            assert holder["at"] <= at
        assert moves["first"][2] < moves["second"][2]
        assert self.who(pair_lab, moves["between"][1], moves["between"][0], *source) is None
        assert self.who(pair_lab, moves["second"][1], moves["between"][0], *source) is None
        assert self.who(pair_lab, moves["first"][1], pair_lab.lab.created_at - 60, *source) is None

    def test_a_complaint_about_a_real_connection(self, pair_lab: PairLab) -> None:
        """What the far end logs, address, port and time, leads to the server."""
        for client, server in (("client1", "server1"), ("client2", "server2")):
            peer = json.loads(pair_lab.good(client, "curl", "-s", "-m", "20", f"http://{WEB}/"))
            when = datetime.now(UTC).isoformat()
            source = f"{peer['address']}:{peer['port']}"
            for asked in pair_lab.lab.agents:
                said = pair_lab.good(asked, "softunicast", "leases", "--who", source, "--at", when)
                assert said.startswith(f"{server} held ")

    def test_the_history_tells_it_in_order(
        self, pair_lab: PairLab, moves: dict[str, tuple[float, str, int]]
    ) -> None:
        rows = pair_lab.softunicast("server1", "leases", "--history", "--limit", "1000")
        assert [row["id"] for row in rows] == sorted((row["id"] for row in rows), reverse=True)
        _, slice_, epoch = moves["first"]
        tenure = [row for row in reversed(rows) if row["epoch"] == epoch]
        # A flow was alive when the agent stopped, so the slice is kept back for a while.
        assert [row["event"] for row in tenure] == ["taken", "released"]
        assert {row["slice"] for row in tenure} == {slice_}
        quarantined = [
            row for row in pair_lab.softunicast("server2", "leases") if row["state"] == "quarantined"
        ]
        assert slice_ in [row["slice"] for row in quarantined]
        assert moves["second"][1] != slice_
