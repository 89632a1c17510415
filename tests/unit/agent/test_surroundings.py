"""Small things around the agent: what it says to systemd, and whether it may do its work."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest

from softunicast.agent.kernel_thread import KernelThread
from softunicast.agent.notify import notify
from softunicast.agent.privileges import missing_capabilities, require_privileges
from softunicast.core.errors import HostError

STATUS = "Name:\tx\nCapInh:\t0000000000000000\nCapEff:\t{:016x}\nCapBnd:\t000001ffffffffff\n"


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    path = f"@softunicast-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        assert notify("READY=1")
        assert systemd.recv(100) == b"READY=1"
    assert not notify("STOPPING=1")


def test_nobody_to_notify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("bits", "missing"),
    [
        ((), ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON")),
        ((12, 38, 39), ()),
        ((12, 21), ()),
        ((12, 39), ("CAP_PERFMON",)),
        ((21,), ("CAP_NET_ADMIN",)),
    ],
)
def test_capabilities(bits: tuple[int, ...], missing: tuple[str, ...]) -> None:
    assert missing_capabilities(STATUS.format(sum(1 << bit for bit in bits))) == missing


def test_no_privilege_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: STATUS.format(0))
    with pytest.raises(HostError, match="needs CAP_NET_ADMIN, CAP_BPF, CAP_PERFMON; fix: run it as root"):
        require_privileges()


async def test_kernel_calls_never_overtake_one_that_was_cancelled() -> None:
    kernel, done, release = KernelThread(), list[str](), threading.Event()

    def slow() -> None:
        release.wait(10)
        done.append("slow")

    interrupted = asyncio.create_task(kernel(slow))
    await asyncio.sleep(0)  # handed to the thread
    interrupted.cancel()
    following = asyncio.create_task(kernel(done.append, "following"))
    await asyncio.sleep(0)
    release.set()
    await following
    assert done == ["slow", "following"]
    kernel.close()
