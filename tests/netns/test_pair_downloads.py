"""The main job in `pair`: real downloads through one shared address, and agents that come and go meanwhile."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest
from tests.netns.pair_lab import PairLab, eventually

from softunicast.core.slices import Slice
from softunicast.lab import peers
from softunicast.lab.pair import CLIENT, ECHO_PORT, HTTP_PORT, INTERNET, SERVER_OF, SHARED

pytestmark = pytest.mark.alone
DOWNLOADS = 200
BYTES = 1 << 18


def answers(children: dict[str, subprocess.Popen[str]]) -> dict[str, dict[str, object]]:
    """What each probe printed, once it has ended."""
    return {name: json.loads(child.communicate(timeout=90)[0]) for name, child in children.items()}


def held(pair_lab: PairLab, server: str) -> list[tuple[str, int]]:
    """The slices of the server with their epochs."""
    return [(row["slice"], row["epoch"]) for row in pair_lab.ask(server, "/v1/slices") if row["here"]]


def inside(slice_: Slice, address: str, port: int) -> bool:
    return slice_.contains(Slice.of(IPv4Address(address), port, 1))


@pytest.fixture(scope="module")
def downloaded(pair_lab: PairLab) -> dict[str, dict[str, object]]:
    """What both clients say of their downloads, all of them at once in a lab that had no traffic before."""
    peers.forget(pair_lab.lab)
    count = ("--count", str(DOWNLOADS), "--bytes", str(BYTES))
    return answers({client: pair_lab.download(client, *count) for client in SERVER_OF})


class TestDownloads:
    def test_all_complete_with_the_right_checksum(self, downloaded: dict[str, dict[str, object]]) -> None:
        for client in SERVER_OF:
            assert downloaded[client]["failures"] == {}
            assert downloaded[client]["completed"] == DOWNLOADS

    def test_every_source_is_in_the_slice_of_the_sending_server(
        self, pair_lab: PairLab, downloaded: dict[str, dict[str, object]]
    ) -> None:
        seen = peers.seen(pair_lab.lab)
        for client, server in SERVER_OF.items():
            held = pair_lab.slice_of(server)
            sources = [(peer.address, peer.port) for peer in seen if peer.label == client]
            assert len(sources) == DOWNLOADS
            assert [source for source in sources if not inside(held, *source)] == []
        assert pair_lab.slice_of("server1") != pair_lab.slice_of("server2")

    def test_about_half_of_the_replies_were_steered(
        self, pair_lab: PairLab, downloaded: dict[str, dict[str, object]]
    ) -> None:
        traffic = [pair_lab.ask(server, "/v1/traffic") for server in SERVER_OF.values()]
        here = sum(counts["here"] for counts in traffic)
        steered = [counts["steered"] for counts in traffic]
        assert min(steered) > 0
        assert 0.35 < sum(steered) / here < 0.65

    def test_nothing_was_dropped(self, pair_lab: PairLab, downloaded: dict[str, dict[str, object]]) -> None:
        for server in SERVER_OF.values():
            assert {reason: n for reason, n in pair_lab.drops(server).items() if n} == {}

    def test_flows_are_listed_as_the_internet_saw_them(
        self, pair_lab: PairLab, downloaded: dict[str, dict[str, object]]
    ) -> None:
        seen = peers.seen(pair_lab.lab)
        for client, server in SERVER_OF.items():
            expected = {f"{peer.address}:{peer.port}" for peer in seen if peer.label == client}
            assert expected <= {local for _, _, local, _ in pair_lab.flows(server)}


def test_nothing_is_said_beside_the_answer(pair_lab: PairLab, capfd: pytest.CaptureFixture[str]) -> None:
    """People watch the demo: curl must not draw its progress over it."""
    [answer] = answers({"client1": pair_lab.download("client1", "--count", "3", "--bytes", "1000")}).values()
    assert answer["completed"] == 3
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_both_clients_from_the_same_source_to_the_same_destination(pair_lab: PairLab, protocol: str) -> None:
    source = f"{CLIENT}:41000"
    peers.forget(pair_lab.lab)
    talks = {
        client: pair_lab.probe(
            client,
            *("echo", "--protocol", protocol, "--source-port", "41000"),
            *("--destination", f"{INTERNET}:{ECHO_PORT}", "--count", "60", "--delay-s", "0.02"),
        )
        for client in SERVER_OF
    }

    def both() -> bool:
        return all(
            any(flow[:2] == (protocol, source) for flow in pair_lab.flows(server))
            for server in SERVER_OF.values()
        )

    eventually(both, "both servers have the flow while both clients talk")
    assert all(child.poll() is None for child in talks.values()), "they talk at the same time"
    for answer in answers(talks).values():
        assert (answer["local"], answer["echoed"], answer["failure"]) == (source, 60, None)
    apart = {(peer.address, peer.port) for peer in peers.seen(pair_lab.lab) if peer.protocol == protocol}
    assert len(apart) == 2
    assert {address for address, _ in apart} == {str(SHARED)}


class TestAgentsComeAndGo:
    """Agents end and start in the middle of downloads that the server spreads over some seconds."""

    OVER_S = (16, 60)  # the second try is for a machine that is too busy to restart agents within the first

    def test_none_fails(self, pair_lab: PairLab) -> None:
        for over_s in self.OVER_S:
            with self.running(pair_lab, over_s) as children:
                if self.went_on_while_agents_restarted(pair_lab, children):
                    found = answers(children)
                    break
        else:
            pytest.fail("too slow to tell")
        for client in SERVER_OF:
            assert (found[client]["failures"], found[client]["completed"]) == ({}, DOWNLOADS)

    @staticmethod
    @contextmanager
    def running(pair_lab: PairLab, over_s: int) -> Iterator[dict[str, subprocess.Popen[str]]]:
        size = ("--bytes", str(BYTES), "--over-s", str(over_s))
        children = {
            client: pair_lab.download(client, "--count", str(DOWNLOADS), *size) for client in SERVER_OF
        }
        try:
            yield children
        finally:
            for child in children.values():
                child.kill()
                child.communicate()

    def went_on_while_agents_restarted(
        self, pair_lab: PairLab, children: dict[str, subprocess.Popen[str]]
    ) -> bool:
        """False when the children ended before. Agents are killed, start, end in order ("keep"), start again."""

        def all_open() -> bool:
            return all(self.open_downloads(pair_lab, server) == DOWNLOADS for server in SERVER_OF.values())

        def ended() -> bool:
            return any(child.poll() is not None for child in children.values())

        eventually(lambda: all_open() or ended(), "all downloads run")
        leases = {server: held(pair_lab, server) for server in SERVER_OF.values()}
        flows = {server: pair_lab.flows(server) for server in SERVER_OF.values()}

        pair_lab.end_agents(signal.SIGKILL)
        for client in SERVER_OF:  # nobody is there, and new conversations go through
            assert json.loads(pair_lab.good(client, "curl", "-s", "-m", "20", f"http://{INTERNET}/"))
        for server in SERVER_OF.values():
            config = pair_lab.config(server)
            text = config.read_text()
            if "on_stop" not in text:
                config.write_text(text.replace("[agent]", '[agent]\non_stop = "keep"'))
        pair_lab.start_agents()
        pair_lab.end_agents(signal.SIGTERM)
        pair_lab.start_agents()

        for server in SERVER_OF.values():
            assert pair_lab.ask(server, "/v1/status")["adopted"]
            assert held(pair_lab, server) == leases[server]
            assert pair_lab.flows(server) >= flows[server]
        return all_open() and not ended()

    @staticmethod
    def open_downloads(pair_lab: PairLab, server: str) -> int:
        return sum(
            flow["state"] == "established" and flow["remote"] == f"{INTERNET}:{HTTP_PORT}"
            for flow in pair_lab.ask(server, "/v1/flows?limit=100000&protocol=tcp")["flows"]
        )
