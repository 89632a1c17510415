"""The lab's internet, on loopback: what it answers, what it refuses, what it remembers."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from softunicast.lab import internet, pattern
from softunicast.lab.internet import Ports, Visitors, serving
from softunicast.lab.peers import Peer


@pytest.fixture
async def ports() -> AsyncIterator[Ports]:
    async with serving("127.0.0.1", 0, 0) as ports:
        yield ports


@pytest.fixture
async def client(ports: Ports) -> AsyncIterator[aiohttp.ClientSession]:
    one = aiohttp.TCPConnector(limit=1)
    origin = f"http://127.0.0.1:{ports.http}"
    async with aiohttp.ClientSession(origin, connector=one, headers={"User-Agent": "me"}) as client:
        yield client


async def test_it_tells_the_peer_who_it_is_and_keeps_the_connection(client: aiohttp.ClientSession) -> None:
    answers = []
    for _ in range(3):
        async with client.get("/") as answer:
            answers.append(await answer.json())

    assert answers[0]["address"] == "127.0.0.1"
    assert answers[0]["port"] > 0
    assert answers == [answers[0]] * 3, "one connection serves several requests"


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
async def test_bytes_are_the_pattern_with_its_checksum(client: aiohttp.ClientSession, size: int) -> None:
    async with client.get(f"/bytes/{size}") as answer:
        body = await answer.read()

    assert answer.headers["Content-Length"] == str(size)
    assert answer.headers["X-Content-Sha256"] == hashlib.sha256(body).hexdigest() == pattern.sha256(size)


@pytest.mark.parametrize(
    "path",
    [
        "/bytes/x",
        "/bytes/-1",
        f"/bytes/{pattern.BYTES_MAX + 1}",
        "/bytes/99999999999999999999",
        "/slow/10",
        "/slow/10?seconds=0",
        "/slow/10?seconds=nan",
        "/slow/10?seconds=1e9",
        "/slow/10?seconds=soon",
    ],
)
async def test_what_makes_no_sense_is_refused_with_the_bounds(
    client: aiohttp.ClientSession, path: str
) -> None:
    async with client.get(path) as answer:
        text = await answer.text()

    assert answer.status == 400
    assert "give" in text


async def test_slow_bytes_take_their_time_and_are_the_same(client: aiohttp.ClientSession) -> None:
    start = time.monotonic()
    async with client.get("/slow/300000?seconds=0.5") as answer:
        body = await answer.read()

    assert time.monotonic() - start >= 0.5
    assert hashlib.sha256(body).hexdigest() == pattern.sha256(300000)


async def test_peers_are_counted_until_forgotten(client: aiohttp.ClientSession) -> None:
    async with client.get("/") as answer:
        port = (await answer.json())["port"]
    await (await client.get("/bytes/5")).read()

    async with client.get("/peers") as answer:
        found = await answer.json()
    assert found == {
        "peers": [{"protocol": "tcp", "address": "127.0.0.1", "port": port, "label": "me", "times": 2}],
        "forgotten": 0,
    }

    async with client.delete("/peers") as answer:
        assert answer.status == 204
    async with client.get("/peers") as answer:
        assert await answer.json() == {"peers": [], "forgotten": 0}


def test_peers_beyond_the_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internet, "PEERS_MAX", 2)
    visitors = Visitors()
    for port in (1, 2, 3, 1, 3):
        visitors.saw(Peer("udp", "192.0.2.1", port))

    assert visitors.seen == {Peer("udp", "192.0.2.1", 1): 2, Peer("udp", "192.0.2.1", 2): 1}
    assert visitors.forgotten == 2


async def test_tcp_echo_sends_everything_back_to_a_slow_reader(ports: Ports) -> None:
    sent = pattern.block() * 8
    reader, writer = await asyncio.open_connection("127.0.0.1", ports.tcp_echo, limit=1024)
    sending = asyncio.create_task(_send(writer, sent))

    # More than all buffers on the way hold, so the server must have stopped reading and gone on.
    assert await reader.readexactly(len(sent)) == sent
    await sending
    writer.close()


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_udp_echo(ports: Ports, client: aiohttp.ClientSession) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talking:
        talking.setblocking(False)
        talking.connect(("127.0.0.1", ports.udp_echo))
        port = talking.getsockname()[1]
        for payload in (b"one", b"x" * 1400):
            await loop.sock_sendall(talking, payload)
            assert await asyncio.wait_for(loop.sock_recv(talking, 2000), 5) == payload

    async with client.get("/peers") as answer:
        rows = (await answer.json())["peers"]
    assert {"protocol": "udp", "address": "127.0.0.1", "port": port, "label": "", "times": 2} in rows


async def test_many_downloads_at_once(ports: Ports) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def one() -> str:
            async with client.get(f"http://127.0.0.1:{ports.http}/bytes/200000") as answer:
                return hashlib.sha256(await answer.read()).hexdigest()

        found = await asyncio.gather(*(one() for _ in range(400)))

    assert found == [pattern.sha256(200_000)] * 400
