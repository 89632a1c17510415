"""The client that programs use to open an on-ramp, against agents of every kind of manners."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from softunicast.core.errors import AgentUnreachableError, HostError, InputError, UnknownNameError
from softunicast.onramp import open_tun
from softunicast.wire import descriptor as wire

GRANT = wire.Grant("apps", IPv4Interface("10.9.0.1/24"), (IPv4Network("10.9.0.0/24"),), 1400, 0)


@contextmanager
def agent(path: Path, answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """One that answers one question."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path / "fd.sock"))
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                answer(connection, connection.recv(1 << 16))

        thread = threading.Thread(target=serve)
        thread.start()
        yield str(path / "fd.sock")
        thread.join(10)
        assert not thread.is_alive()


def descriptors_here() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_descriptor(tmp_path: Path, count: int) -> None:
    """The pipe's own end comes out; more than asked for does not stay open."""
    reading, writing = os.pipe()
    questions = []

    def answer(connection: socket.socket, question: bytes) -> None:
        questions.append(wire.parse_request(question))
        socket.send_fds(connection, [wire.grant(GRANT)], [writing] * count)

    before = descriptors_here()
    with agent(tmp_path, answer) as path, open_tun("apps", path) as tun:
        assert (tun.interface, tun.address, tun.sources) == (GRANT.interface, GRANT.address, GRANT.sources)
        assert (tun.mtu, tun.header_bytes) == (1400, 0)
        assert not os.get_inheritable(tun.fileno())
        os.write(tun.descriptor, b"packet")
    assert questions == ["apps"]
    assert os.read(reading, 100) == b"packet"
    assert descriptors_here() == before
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (wire.refusal(UnknownNameError("no on-ramp", "another")), InputError, "no on-ramp; fix: another"),
        (wire.refusal(HostError("not you")), HostError, "not you"),
        (wire.grant(GRANT), HostError, "the agent sent no descriptor"),
        (b"HTTP/1.1 200 OK", HostError, "what answered is no agent"),
        (json.dumps({"mtu": 1}).encode(), HostError, "what answered is no agent"),
        (b"", AgentUnreachableError, "gave no answer"),
    ],
)
def test_no_descriptor(tmp_path: Path, answer: bytes, error: type[Exception], says: str) -> None:
    with (
        agent(tmp_path, lambda connection, _: connection.send(answer) and None) as path,
        pytest.raises(error, match=says),
    ):
        open_tun("apps", path)


def test_a_descriptor_with_nonsense_is_closed(tmp_path: Path) -> None:
    before = descriptors_here()

    def answer(connection: socket.socket, _: bytes) -> None:
        socket.send_fds(connection, [b"nonsense"], [connection.fileno()])

    with agent(tmp_path, answer) as path, pytest.raises(HostError, match="no agent"):
        open_tun("apps", path)
    assert descriptors_here() == before


def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(AgentUnreachableError, match=r"no agent answers on .*: No such file.*kind fd"):
        open_tun("apps", str(tmp_path / "fd.sock"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind(str(tmp_path / "fd.sock"))
        silent.listen()
        with pytest.raises(AgentUnreachableError, match=r"no agent answers on .*: timed out"):
            open_tun("apps", str(tmp_path / "fd.sock"), timeout_s=0.05)
