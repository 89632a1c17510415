"""What each noun asks of the agent, and how the answer looks to a person and to a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Ended, FakeAgent

Ask = Callable[..., Ended]

SLICE: dict[str, Any] = {
    "slice": "198.51.100.10:2048-4095",
    "address": "198.51.100.10",
    "ports": "2048-4095",
    "server": "server1",
    "epoch": 3,
    "here": True,
    "state": "held",
    "deadline_in_s": 252.0,
    "pool": "gb",
    "flows": 7,
}
OTHER = SLICE | {
    "slice": "198.51.100.10:4096-6143",
    "server": "server2",
    "here": False,
    "deadline_in_s": None,
    "pool": None,
    "flows": None,
}
FLOW = {
    "onramp": "clients",
    "protocol": "tcp",
    "client": "10.0.0.2:40000",
    "local": "198.51.100.10:2049",
    "remote": "203.0.113.1:80",
    "state": "established",
    "age_s": 1.5,
    "expires_in_s": 7440.0,
}
FULL = {
    "reason": "slice_full",
    "packets": 3,
    "meaning": "Every port is taken.",
    "last": {
        "age_s": 2.0,
        "hook": "egress out",
        "interface": "clients",
        "protocol": "tcp",
        "source": "10.0.0.2:40065",
        "destination": "203.0.113.1:80",
    },
}
ONRAMP: dict[str, Any] = {
    "name": "apps",
    "kind": "fd",
    "pool": "gb",
    "state": "ready",
    "attach": "tc",
    "layer": "ip",
    "address": "10.9.0.1/24",
    "address6": "2001:db8:9::1/64",
    "mtu": 1400,
    "sources": ["10.9.0.0/24", "10.8.0.0/24"],
    "open": True,
}
NEVER = {"reason": "internal", "packets": 0, "meaning": "A bug.", "last": None}


def cells(line: str) -> list[str]:
    return [cell for cell in line.split("  ") if cell]


def test_slices(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/slices"] = [SLICE, OTHER]
    _, mine, theirs = ask("slices").out.splitlines()
    assert mine.split() == [
        *("198.51.100.10:2048-4095", "server1", "yes", "held", "3", "gb", "7"),
        *("4", "m", "12", "s"),
    ]
    assert theirs.split() == ["198.51.100.10:4096-6143", "server2", "no", "held", "3", "-", "-", "-"]
    assert ask("slices", "--json").json == [SLICE, OTHER]


def test_pools_and_servers(ask: Ask, agent: FakeAgent) -> None:
    pool = {
        "name": "gb",
        "tags": {"product": "demo", "country": "gb"},
        "addresses": ["198.51.100.10"],
        "slices": ["198.51.100.10:2048-4095"],
        "ports": 2048,
        "ports_used": 12,
        "busiest": 9,
        "busiest_to": "tcp 203.0.113.1:443",
        "onramps": ["clients", "vpn"],
    }
    server = {
        "name": "server1",
        "site": "lab",
        "address": "192.0.2.1",
        "mac": "02:00:00:00:00:01",
        "here": True,
        "reached": "self",
        "slices": 1,
    }
    agent.answers |= {"/v1/pools": [pool], "/v1/servers": [server]}
    assert "country=gb product=demo" in ask("pools").out
    assert "clients, vpn" in ask("pools").out
    assert ask("pools", "--json").json == [pool]
    assert ask("servers").out.splitlines()[1].split() == [
        *("server1", "lab", "192.0.2.1", "02:00:00:00:00:01", "self", "1")
    ]
    assert ask("servers", "--json").json == [server]


def test_onramps(ask: Ask, agent: FakeAgent) -> None:
    plain = ONRAMP | {
        "name": "clients",
        "kind": "interface",
        "layer": "ethernet",
        "address6": None,
        "sources": [],
        "open": None,
    }
    agent.answers["/v1/onramps"] = [ONRAMP, plain]
    lines = ask("onramps").out.splitlines()
    assert cells(lines[1])[-4].strip() == "10.9.0.1/24, 2001:db8:9::1/64"
    assert cells(lines[2])[-4].strip() == "10.9.0.1/24"
    assert cells(lines[1])[-3:] == ["1400", "10.9.0.0/24, 10.8.0.0/24", "yes"]
    assert [cell.strip() for cell in cells(lines[2])[-3:]] == ["1400", "any", "-"]
    assert ask("onramps", "--json").json == [ONRAMP, plain]


def test_agreements(ask: Ask, agent: FakeAgent) -> None:
    row = {
        "cgroup": "/sys/fs/cgroup/system.slice/squid.service",
        "number": 77,
        "by": "attach",
        "pool": "gb",
        "processes": [{"pid": pid, "name": "squid"} for pid in (5, 6, 7, 8)],
    }
    excused = row | {"cgroup": "/sys/fs/cgroup/dns", "by": "excused", "pool": None, "processes": []}
    agent.answers["/v1/agreements"] = [row, excused]
    lines = [[cell.strip() for cell in cells(line)] for line in ask("agreements").out.splitlines()]
    assert lines[1] == [row["cgroup"], "attach", "gb", "4", "squid[5], squid[6], squid[7], ..."]
    assert lines[2] == [excused["cgroup"], "excused", "-", "0", "-"]
    assert ask("agreements", "--json").json == [row, excused]
    agent.answers["/v1/agreements"] = []
    assert ask("agreements") == Ended(0, "", "no cgroup is in an agreement; see softunicast run --help\n")


def test_flows_ask_for_what_was_asked(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/flows"] = {"total": 1, "shown": 1, "flows": [FLOW]}
    ended = ask("flows")
    assert "10.0.0.2:40000" in ended.out
    assert ended.err == ""
    filters = ("--client", "10.0.0.2", "--local", "198.51.100.10:2049", "--remote", "203.0.113.1:80")
    ask("flows", *filters, "--protocol", "tcp", "--limit", "7")
    assert [query for _, query, _ in agent.asked] == [
        {"limit": "50"},
        {
            "limit": "7",
            "client": "10.0.0.2",
            "local": "198.51.100.10:2049",
            "remote": "203.0.113.1:80",
            "protocol": "tcp",
        },
    ]


def test_flows_say_how_many_were_left_out(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/flows"] = {"total": 1001, "shown": 1, "flows": [FLOW]}
    ended = ask("flows", "--limit", "1")
    assert len(ended.out.splitlines()) == 2
    assert ended.err == "1 of 1001 flows; 1000 left out, see --limit\n"
    assert ask("flows", "--json").json["total"] == 1001


def test_drops_show_what_happened(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/drops"] = [NEVER, FULL]
    lines = ask("drops").out.splitlines()
    assert [cell.strip() for cell in cells(lines[1])] == [
        "slice_full",
        "3",
        "2.0 s ago, egress out on clients: tcp 10.0.0.2:40065 > 203.0.113.1:80",
        "Every port is taken.",
    ]
    assert len(lines) == 2
    assert len(ask("drops", "--all").out.splitlines()) == 3
    assert ask("drops", "--json").json == [FULL]
    assert ask("drops", "--all", "--json").json == [NEVER, FULL]
    agent.answers["/v1/drops"] = [NEVER]
    assert ask("drops") == Ended(0, "", "no packet was dropped\n")


ANSWER = {
    "verdict": "refused with ICMP",
    "reason": "slice_full",
    "meaning": "Every port is taken.",
    "packet_in": "tcp 10.0.0.2:40000 > 203.0.113.1:443 [syn], hop limit 64",
    "packet_out": "icmp host unreachable 10.0.0.1 > 10.0.0.2, hop limit 64",
    "steps": ["egress: refused", "client: told"],
}


def test_explain_tells_a_story(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/explain"] = ANSWER
    ended = ask("explain", "--from", "clients", "tcp", "10.0.0.2:40000", "203.0.113.1:443", "--syn")
    assert ended.out.splitlines() == [
        "packet   tcp 10.0.0.2:40000 > 203.0.113.1:443 [syn], hop limit 64",
        "  1. egress: refused",
        "  2. client: told",
        "verdict  refused with ICMP: slice_full",
        "         Every port is taken.",
        "leaves   icmp host unreachable 10.0.0.1 > 10.0.0.2, hop limit 64",
    ]
    assert agent.asked[0][2] == {
        "from": "clients",
        "protocol": "tcp",
        "source": "10.0.0.2:40000",
        "destination": "203.0.113.1:443",
        "flags": ["syn"],
        "leaving": False,
    }


def test_explain_leaves_out_what_there_is_not(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/explain"] = ANSWER | {
        "reason": None,
        "meaning": None,
        "packet_out": None,
        "verdict": "passed",
    }
    ended = ask("explain", "--from", "uplink", "--leaving", "udp", "198.51.100.10:9017", "203.0.113.1:53")
    assert ended.out.splitlines()[-1] == "verdict  passed"
    assert (agent.asked[0][2]["flags"], agent.asked[0][2]["leaving"]) == ([], True)
    ask("explain", "--from", "clients", "icmp", "10.0.0.2:77", "203.0.113.1")
    assert agent.asked[1][2]["destination"] == "203.0.113.1"
    ask("explain", "--from", "uplink", "tcp", "203.0.113.1:80", "198.51.100.10:2049", "--fin", "--ack")
    assert agent.asked[2][2]["flags"] == ["ack", "fin"]
    assert (
        ask("explain", "--from", "x", "tcp", "10.0.0.2:1", "10.0.0.3:2", "--json").json["verdict"] == "passed"
    )
    assert agent.asked[3][2]["flags"] == ["ack"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["flows", "--client", "10.0.0"], "softunicast: '10.0.0' is not an IPv4 address; fix: write it like"),
        (
            ["flows", "--client", "10.0.0.2:"],
            "softunicast: 10.0.0.2: has no valid port; fix: use one of 0-65535",
        ),
        (["flows", "--remote", "10.0.0.2:65536"], "softunicast: 10.0.0.2:65536 has no valid port"),
        (["flows", "--protocol", "sctp"], "softunicast: invalid value for '--protocol'"),
        (["explain", "--from", "x", "udp", "10.0.0.2", "10.0.0.3:2"], "softunicast: 10.0.0.2 has no port"),
        (
            ["explain", "--from", "x", "udp", "10.0.0.2:1", "10.0.0.3:2", "--syn"],
            "softunicast: udp has no --syn",
        ),
        (["leases", "--slice", "198.51.100.10:5-9"], "softunicast: "),
        (["leases", "--who", "198.51.100.10"], "softunicast: 198.51.100.10 has no port; fix: write it like"),
        (["leases", "--at", "2026-05-01T14:02:07Z"], "softunicast: --at without --history or --who"),
        (
            ["leases", "--history", "--at", "yesterday"],
            "softunicast: 'yesterday' is not a time; fix: write it",
        ),
        (
            ["leases", "--history", "--at", "2026-05-01T14:02:07"],
            "softunicast: the time 2026-05-01T14:02:07 has",
        ),
        (
            ["leases", "--history", "--at", "9000-01-01T00:00:00Z"],
            "softunicast: 9000-01-01T00:00:00.000Z is in the",
        ),
        (["leases", "--who", "198.51.100.10:1", "--history"], "softunicast: --who stands alone"),
    ],
)
def test_slips_are_answered_without_the_agent(
    arguments: list[str], line: str, ask: Ask, agent: FakeAgent
) -> None:
    ended = ask(*arguments)
    assert (ended.code, ended.out, agent.asked) == (2, "", [])
    assert ended.err.startswith(line)
    assert ended.err.count("\n") == 1


LEASE = {
    "slice": "198.51.100.10:2048-4095",
    "server": "server1",
    "epoch": 3,
    "state": "held",
    "expires_in_s": 299.9,
    "quarantined_for_s": None,
}
ENTRY = {
    "id": 4,
    "at": 1777644000.0,
    "event": "taken",
    "slice": "198.51.100.10:8192-10239",
    "server": "server2",
    "epoch": 3,
    "detail": "",
}


def test_leases(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/leases"] = [LEASE, LEASE | {"slice": "198.51.100.11:2048-4095"}]
    assert len(ask("leases").out.splitlines()) == 3
    assert ask("leases", "--slice", "198.51.100.10:4095/48", "--json").json == [LEASE]
    assert ask("leases", "--slice", "198.51.100.10:4096-6143").err == "nothing is leased or in quarantine\n"
    assert agent.asked == [("/v1/leases", {}, None)] * 3


def test_leases_history(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/leases"] = [ENTRY]
    ended = ask("leases", "--history", "--slice", "198.51.100.10", "--at", "2026-05-01T16:02:07+02:00")
    assert ended.out.splitlines()[1].split()[:3] == ["2026-05-01T14:00:00.000Z", "taken", ENTRY["slice"]]
    assert agent.asked[0][1] == {
        "history": "1",
        "slice": "198.51.100.10/32",
        "at": "1777644127.0",
        "limit": "100",
    }


def test_leases_who(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/leases"] = ENTRY
    asked = ("leases", "--who", "198.51.100.10:9017", "--at", "2026-05-01T14:02:07Z")
    assert ask(*asked).out == (
        "server2 held 198.51.100.10:8192-10239 at 2026-05-01T14:02:07.000Z"
        " (since 2026-05-01T14:00:00.000Z, epoch 3)\n"
    )
    assert agent.asked[0][1] == {"who": "198.51.100.10:9017", "at": "1777644127.0"}
    assert ask(*asked, "--json").json == ENTRY
    agent.answers["/v1/leases"] = None
    assert ask(*asked).out == "nobody could send from 198.51.100.10:9017 at 2026-05-01T14:02:07.000Z\n"
    assert ask(*asked, "--json").json is None


def test_a_refusal_of_the_agent_is_shown_as_its_own(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/explain"] = {
        "error": {"what": "lo is no on-ramp", "fix": "use clients", "exit_code": 2}
    }
    agent.statuses["/v1/explain"] = 400
    ended = ask("explain", "--from", "lo", "udp", "10.0.0.2:1", "10.0.0.3:2")
    assert ended == Ended(2, "", "softunicast: lo is no on-ramp; fix: use clients\n")


EVENT = {
    "number": 7,
    "at": 1795410961.5,
    "kind": "pool_full",
    "count": 3,
    "nat_event": 12,
    "details": {"pool": "gb", "destination": None},
}


def test_events(ask: Ask, agent: FakeAgent) -> None:
    agent.answers["/v1/events"] = {"last": 7, "events": [EVENT]}
    assert ask("events", "--limit", "5").out.splitlines()[1].split() == [
        *("2026-11-23T05:16:01.500Z", "pool_full", "3", "12", "pool=gb")
    ]
    assert ask("events", "--json").json == [EVENT]
    assert [query for _, query, _ in agent.asked] == [{"limit": "5"}, {"limit": "50"}]
    agent.answers["/v1/events"] = {"last": 6, "events": []}
    assert "nothing has happened" in ask("events").err


@pytest.mark.parametrize("as_json", [True, False])
def test_events_as_they_come(
    ask: Ask, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    """Each question is about what comes after the last answer; Ctrl-C ends it."""
    answers = [{"last": 7, "events": [EVENT]}, {"last": 9, "events": [EVENT | {"number": 9}]}]
    agent.answers["/v1/events"] = answers.pop(0)

    def wait(seconds: float) -> None:
        if not answers:
            raise KeyboardInterrupt
        agent.answers["/v1/events"] = answers.pop(0)

    monkeypatch.setattr("softunicast.cli.events.time.sleep", wait)
    ended = ask("events", "--follow", *(["--json"] if as_json else []))
    assert ended.code == 130
    lines = ended.out.splitlines()
    if as_json:
        assert [json.loads(line)["number"] for line in lines] == [7, 9]
    else:
        assert lines == ["2026-11-23T05:16:01.500Z  pool_full  3  pool=gb"] * 2
    assert [query for _, query, _ in agent.asked] == [{"limit": "50"}, {"since": "7"}]
