"""The probes against servers on loopback: what they report when all is well, and when it is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from softunicast.lab.internet import Ports, serving

TIMEOUT_S = 30.0


@pytest.fixture
async def ports() -> AsyncIterator[Ports]:
    async with serving("127.0.0.1", 0, 0) as ports:
        yield ports


async def probe(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    argv = (sys.executable, "-m", "softunicast.lab.traffic", *arguments)
    return await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, stderr=pipe)


async def result(*arguments: str) -> tuple[int | None, Any]:
    process = await probe(*arguments)
    output, _ = await asyncio.wait_for(process.communicate(b""), TIMEOUT_S)
    return process.returncode, json.loads(output.splitlines()[-1])


async def test_download_counts_and_checks(ports: Ports) -> None:
    url = f"http://127.0.0.1:{ports.http}"
    code, answer = await result("download", "--url", url, "--count", "20", "--bytes", "100000")

    assert code == 0
    assert answer.pop("seconds") > 0
    assert answer == {"count": 20, "completed": 20, "failed": 0, "bytes": 2_000_000, "failures": {}}


async def test_download_names_failures() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        code, answer = await result("download", "--url", url, "--count", "3")

    assert code == 1
    assert (answer["completed"], answer["failed"]) == (0, 3)
    [(why, times)] = answer["failures"].items()
    assert times == 3
    assert why.startswith("curl 7: ")


class Liar(asyncio.Protocol):
    """A web server that announces one checksum and sends something else, or too little."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.answer = head + body

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.answer)
        self.transport.close()


@pytest.mark.parametrize(
    ("status", "announced", "body", "why"),
    [
        ("200 OK", "0" * 64, b"12345", "checksum is not the one that the server announced"),
        (
            "200 OK",
            "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5",
            b"12345",
            "of the pattern",
        ),
        ("200 OK", "0" * 64, b"123", "curl 18: "),
        ("404 Not Found", "0" * 64, b"12345", "HTTP 404"),
    ],
)
async def test_download_believes_no_lie(status: str, announced: str, body: bytes, why: str) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Length: 5\r\nX-Content-Sha256: {announced}\r\n\r\n".encode()
    server = await asyncio.get_running_loop().create_server(lambda: Liar(head, body), "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        code, answer = await result("download", "--url", url, "--count", "1", "--bytes", "5")

    assert code == 1
    assert any(why in failure for failure in answer["failures"])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_hold_reports_when_open_and_again_when_input_closes(ports: Ports, protocol: str) -> None:
    port = ports.tcp_echo if protocol == "tcp" else ports.udp_echo
    process = await probe(
        "hold", "--destination", f"127.0.0.1:{port}", "--count", "50", "--protocol", protocol
    )
    assert process.stdout is not None
    opened = json.loads(await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S))

    assert (opened["event"], opened["outcomes"]) == ("opened", {"ok": 50})
    assert len({connection["local"] for connection in opened["connections"]}) == 50
    assert process.returncode is None, "it holds until input closes"
    rest, _ = await asyncio.wait_for(process.communicate(b""), TIMEOUT_S)

    assert json.loads(rest)["outcomes"] == {"ok": 50}
    assert process.returncode == 0


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_hold_names_the_error_and_how_fast_it_came(protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, closed = await result("hold", "--destination", f"127.0.0.1:{port}", "--protocol", protocol)

    assert code == 1
    assert closed["outcomes"] == {"ECONNREFUSED": 1}
    assert 0 < closed["connections"][0]["ms"] < 2000


async def test_hold_gives_up_on_silence() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        destination = f"127.0.0.1:{silent.getsockname()[1]}"
        code, closed = await result(
            "hold", "--destination", destination, "--protocol", "udp", "--timeout-s", "0.2"
        )

    assert (code, closed["outcomes"]) == (1, {"timeout": 1})


def a_port_nobody_is_given(protocol: str) -> int:
    """Free, and below the range from which the kernel gives ports to others meanwhile."""
    for port in range(20000, 30000):
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
async def test_echo_uses_the_source_port_it_was_given(ports: Ports, protocol: str) -> None:
    source = a_port_nobody_is_given(protocol)
    port = ports.tcp_echo if protocol == "tcp" else ports.udp_echo
    code, answer = await result(
        *("echo", "--source-port", str(source), "--destination", f"127.0.0.1:{port}"),
        *("--count", "5", "--delay-s", "0.01", "--protocol", protocol),
    )

    assert code == 0
    assert (answer["local"], answer["echoed"], answer["failure"]) == (f"127.0.0.1:{source}", 5, None)


async def test_echo_notices_an_answer_that_is_not_its_own() -> None:
    class Parrot(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.transport.sendto(bytes(len(data)), addr)

    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Parrot, ("127.0.0.1", 0))
    destination = "127.0.0.1:{}".format(transport.get_extra_info("sockname")[1])
    code, answer = await result(
        "echo", "--source-port", "0", "--destination", destination, "--protocol", "udp"
    )
    transport.close()

    assert (code, answer["echoed"], answer["failure"]) == (1, 0, "wrong echo")


@pytest.mark.parametrize(
    "arguments",
    [
        ["hold", "--destination", "127.0.0.1"],
        ["hold", "--destination", "127.0.0.1:65536"],
        ["hold", "--destination", "host:7"],
        ["hold", "--destination", "127.0.0.1:7", "--count", "0"],
        ["download", "--url", "http://127.0.0.1", "--count", "301"],
        ["nothing"],
        [],
    ],
)
async def test_a_wrong_command_line_ends_with_2(arguments: list[str]) -> None:
    process = await probe(*arguments)
    output, complaint = await asyncio.wait_for(process.communicate(b""), TIMEOUT_S)

    assert (process.returncode, output) == (2, b"")
    assert complaint
