"""The API over its real socket: every answer, and every way to be refused."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.agent.fakes import INVENTORY, part
from tests.unit.agent.node import Node, until

from softunicast.agent import api as api_module
from softunicast.agent.api import Api
from softunicast.agent.sockets import Member
from softunicast.core.errors import HostError, InputError
from softunicast.kernel.abi import Reason
from softunicast.kernel.explain import Explanation
from softunicast.kernel.flows import Drop, Flow
from softunicast.kernel.joining import Entry
from softunicast.ledger.sqlite import SqliteLedger
from softunicast.observe.logs import Log

FLOW = Flow("clients", "tcp", "10.0.0.2:40000", "198.51.100.10:2050", "203.0.113.1:80", "open", 1.0, 2.0)


class Asked:
    """What `explain` was asked, and a made-up answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, str, bool]] = []

    def __call__(self, frame: bytes, interface: str, leaving: bool) -> Explanation:
        self.calls.append((frame, interface, leaving))
        if interface == "eth9":
            raise InputError("eth9 is neither the uplink nor an on-ramp", "use one of: uplink, clients")
        return Explanation("dropped", Reason.SLICE_FULL, ["egress: dropped"], "tcp a > b", None)


class Client:
    """Asks an API, and gives (status, decoded body)."""

    def __init__(self, path: Path, api: Api, node: Node, asked: Asked) -> None:
        self.path, self.api, self.node, self.asked = path, api, node, asked

    async def ask(self, target: str, method: str = "GET", body: bytes = b"") -> tuple[int, Any]:
        head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        status, payload = await self.raw(head.encode() + body)
        return status, json.loads(payload)

    async def raw(self, request: bytes) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(request)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        head, _, payload = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), payload


def api_of(client: Client, path: Path) -> Api:
    return Api(client.node.daemon, client.asked, path, cast(Log, client.node.log))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    ledger = await SqliteLedger.open(tmp_path / "ledger.db")
    await ledger.apply_inventory(INVENTORY)
    await ledger.close()
    node, asked = Node(tmp_path), Asked()
    async with node.running() as daemon:
        await until(lambda: node.opening() == (part(1),))
        node.datapath.conversations = [FLOW]
        node.datapath.live = {part(1): 1}
        node.datapath.counters = [Drop(Reason.NO_FLOW, 2, None)]
        path = tmp_path / "run" / "agent.sock"
        api = Api(daemon, asked, path, cast(Log, node.log))
        await api.start()
        yield Client(path, api, node, asked)
        await api.stop()
        assert not path.exists()


async def test_status(client: Client) -> None:
    status, body = await client.ask("/v1/status")
    assert status == 200
    assert body.keys() == {
        *("name", "site", "version", "uplink", "ledger", "pid", "started_at", "uptime_s", "flows"),
        *("leases_held", "adopted", "problems"),
    }
    assert (body["name"], body["pid"], body["flows"], body["leases_held"]) == ("server1", os.getpid(), 1, 1)
    assert body["problems"] == []


async def test_every_look(client: Client) -> None:
    _, slices = await client.ask("/v1/slices")
    assert [(row["slice"], row["here"], row["state"], row["flows"]) for row in slices] == [
        ("198.51.100.10:2048-4095", True, "held", 1)
    ]
    assert 0 < slices[0]["deadline_in_s"] < 6
    _, leases = await client.ask("/v1/leases")
    assert [(row["server"], row["state"]) for row in leases] == [("server1", "held")]
    _, pools = await client.ask("/v1/pools")
    assert [(row["name"], row["ports"], row["ports_used"]) for row in pools] == [("gb", 2048, 1)]
    _, servers = await client.ask("/v1/servers")
    assert [(row["name"], row["slices"]) for row in servers] == [("server1", 1)]
    _, drops = await client.ask("/v1/drops")
    assert [(row["reason"], row["packets"]) for row in drops] == [("no_flow", 2)]
    assert await client.ask("/v1/traffic") == (200, {"here": 3})


async def test_agreements(client: Client) -> None:
    unit, run = Path("/sys/fs/cgroup/unit"), Path("/sys/fs/cgroup/a/softunicast-run-7-x")
    client.node.sockets.found = [
        Member(Entry(77, "gb", unit), ((5, "squid"), (6, "log"))),
        Member(Entry(78, None, unit.with_name("dns")), ()),
        Member(Entry(79, "gb", run), ()),
    ]
    _, rows = await client.ask("/v1/agreements")
    assert [(row["cgroup"], row["by"], row["pool"]) for row in rows] == [
        (str(run), "run", "gb"),
        ("/sys/fs/cgroup/dns", "excused", None),
        (str(unit), "attach", "gb"),
    ]
    assert rows[2]["number"] == 77
    assert rows[2]["processes"] == [{"pid": 5, "name": "squid"}, {"pid": 6, "name": "log"}]


async def test_events(client: Client) -> None:
    """The lease that was taken is one; values are texts as in the log."""
    _, body = await client.ask("/v1/events")
    (taken,) = [event for event in body["events"] if event["kind"] == "slice_acquired"]
    assert (taken["count"], taken["nat_event"]) == (1, 16)
    assert taken["details"]["slice"] == "198.51.100.10:2048-4095"
    assert body["last"] == body["events"][-1]["number"]
    _, later = await client.ask(f"/v1/events?since={body['last']}")
    assert later == {"last": body["last"], "events": []}
    _, one = await client.ask("/v1/events?limit=1")
    assert [event["number"] for event in one["events"]] == [body["last"]]
    for query in ("since=x", "limit=0", "limit=1001", "until=3"):
        status, _ = await client.ask(f"/v1/events?{query}")
        assert status == 400


async def test_flows(client: Client) -> None:
    status, body = await client.ask("/v1/flows?limit=5&client=10.0.0.2&protocol=tcp")
    assert (status, body["total"], body["shown"]) == (200, 1, 1)
    assert body["flows"][0]["local"] == "198.51.100.10:2050"
    _, body = await client.ask("/v1/flows?remote=203.0.113.9")
    assert (body["total"], body["flows"]) == (0, [])


async def test_history_and_who(client: Client) -> None:
    _, entries = await client.ask("/v1/leases?history=1&slice=198.51.100.10:2048-4095")
    assert entries[0]["event"] == "taken"
    _, entries = await client.ask("/v1/leases?history=1&limit=1")
    assert len(entries) == 1
    _, entries = await client.ask("/v1/leases?history=1&at=1000")
    assert entries == []
    _, entry = await client.ask("/v1/leases?who=198.51.100.10:2050")
    assert (entry["server"], entry["slice"]) == ("server1", "198.51.100.10:2048-4095")
    assert await client.ask("/v1/leases?who=198.51.100.10:9000") == (200, None)


async def test_explain(client: Client) -> None:
    question = {
        "from": "clients",
        "protocol": "icmp",
        "source": "10.0.0.2:77",
        "destination": "203.0.113.1",
        "flags": [],
    }
    status, body = await client.ask("/v1/explain", "POST", json.dumps(question).encode())
    assert status == 200
    assert body["reason"] == "slice_full"
    assert body["meaning"].startswith("Every port")
    assert body["steps"] == ["egress: dropped"]
    frame, interface, leaving = client.asked.calls[0]
    assert (interface, leaving, frame[23]) == ("clients", False, 1)
    _, body = await client.ask("/v1/explain", "POST", json.dumps(question | {"leaving": True}).encode())
    assert client.asked.calls[1][2] is True


GOOD = {"from": "clients", "protocol": "tcp", "source": "10.0.0.2:1", "destination": "203.0.113.1:80"}


@pytest.mark.parametrize(
    ("target", "method", "body", "status", "what"),
    [
        ("/v1/nothing", "GET", b"", 404, "GET /v1/nothing: Not Found"),
        ("/v1/slices", "DELETE", b"", 405, "Method Not Allowed"),
        ("/v1/slices?all=1", "GET", b"", 400, "no parameter 'all'"),
        ("/v1/flows?limit=0", "GET", b"", 400, "limit='0'"),
        ("/v1/flows?limit=1000001", "GET", b"", 400, "limit='1000001'"),
        ("/v1/flows?limit=-1", "GET", b"", 400, "limit='-1'"),
        ("/v1/flows?limit=%C2%B2", "GET", b"", 400, "limit="),
        ("/v1/flows?protocol=sctp", "GET", b"", 400, "sctp"),
        ("/v1/flows?client=nobody", "GET", b"", 400, "nobody"),
        ("/v1/leases?slice=1.2.3", "GET", b"", 400, "1.2.3"),
        ("/v1/leases?history=1&at=noon", "GET", b"", 400, "at='noon'"),
        ("/v1/leases?who=198.51.100.10", "GET", b"", 400, "has no port"),
        ("/v1/leases?history=1&limit=10001", "GET", b"", 400, "limit="),
        ("/v1/explain", "GET", b"", 405, "Method Not Allowed"),
        ("/v1/explain", "POST", b"", 400, "not a JSON object"),
        ("/v1/explain", "POST", b"[1]", 400, "not a JSON object"),
        ("/v1/explain", "POST", b"\xff\xfe", 400, "not"),
        ("/v1/explain", "POST", json.dumps(GOOD | {"from": 3}).encode(), 400, "from is missing"),
        ("/v1/explain", "POST", json.dumps(GOOD | {"extra": 3}).encode(), 400, "unknown: extra"),
        ("/v1/explain", "POST", json.dumps(GOOD | {"flags": "syn"}).encode(), 400, "flags"),
        ("/v1/explain", "POST", json.dumps(GOOD | {"flags": ["urg"]}).encode(), 400, "urg"),
        ("/v1/explain", "POST", json.dumps(GOOD | {"source": "10.0.0.2"}).encode(), 400, "has no port"),
        ("/v1/explain", "POST", json.dumps(GOOD | {"from": "eth9"}).encode(), 400, "eth9 is neither"),
        ("/v1/explain", "POST", b"x" * 5000, 413, "Too Large"),
    ],
)
async def test_refusals(
    client: Client, target: str, method: str, body: bytes, status: int, what: str
) -> None:
    code, answer = await client.ask(target, method, body)
    assert code == status
    assert answer.keys() == {"error"}
    assert what in answer["error"]["what"]
    assert answer["error"]["exit_code"] == 2


async def test_garbage_harms_nobody(client: Client) -> None:
    status, _ = await client.raw(b"\x00\xff\r\n\r\n")
    assert status == 400
    assert (await client.ask("/v1/status"))[0] == 200


async def test_kernel_errors_are_answers(client: Client) -> None:
    client.node.datapath.fails = {"count"}
    status, body = await client.ask("/v1/slices")
    assert (status, body["error"]["what"]) == (503, "count refused")
    client.node.datapath.fails = set()


async def test_defects_are_answers_too(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[Drop]:
        raise RuntimeError("oh")

    monkeypatch.setattr(client.node.datapath, "traffic", broken)
    status, body = await client.ask("/v1/traffic")
    assert status == 500
    assert body["error"]["exit_code"] == 1
    assert "RuntimeError" in body["error"]["what"]


async def test_one_table_is_walked_at_a_time_and_changes_get_in_between(client: Client) -> None:
    walking, most = 0, 0
    flows = client.node.datapath.flows

    def counted(limit: int, wanted: Callable[[Flow], bool] | None = None) -> tuple[int, list[Flow]]:
        nonlocal walking, most
        walking += 1
        most = max(most, walking, client.node.daemon.kernel._pool._work_queue.qsize())
        walking -= 1
        return flows(limit, wanted)

    client.node.datapath.flows = counted  # type: ignore[method-assign]
    answers = await asyncio.gather(*(client.ask("/v1/flows") for _ in range(20)))
    assert {status for status, _ in answers} == {200}
    assert most <= 2  # this one, and perhaps one call of the agent itself


async def test_too_many_at_a_time(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    release = asyncio.Event()

    async def wait() -> dict[str, object]:
        await release.wait()
        return {}

    monkeypatch.setattr(client.node.daemon, "status", wait)
    waiting = [asyncio.create_task(client.ask("/v1/status")) for _ in range(api_module.REQUESTS_MAX)]
    await until(lambda: client.api._slots.locked())
    status, body = await client.ask("/v1/drops")
    assert (status, body["error"]["fix"]) == (503, "ask again")
    release.set()
    assert {answer[0] for answer in await asyncio.gather(*waiting)} == {200}
    assert (await client.ask("/v1/drops"))[0] == 200


async def test_only_owner_and_group_may_connect(client: Client) -> None:
    assert client.path.stat().st_mode & 0o777 == 0o660


async def test_socket_of_a_dead_agent_is_replaced(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    api = api_of(client, path)
    await api.start()
    await api.stop()
    await api.stop()


async def test_socket_of_a_living_agent_is_not(client: Client) -> None:
    with pytest.raises(HostError, match="another agent answers on"):
        await api_of(client, client.path).start()
    assert (await client.ask("/v1/status"))[0] == 200


async def test_what_is_no_socket_stays(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(HostError, match="no socket"):
        await api_of(client, path).start()
    assert path.read_text() == "data"
