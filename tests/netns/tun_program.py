"""A program with the descriptor of an on-ramp, in the hands of a test: the documented example run by some user, or
this process itself, which sends and receives IP packets made by scapy.
"""

from __future__ import annotations

import os
import pwd
import secrets
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet
from tests.netns.pair_lab import TIMEOUT_S, Done, PairLab, eventually

import softunicast
from softunicast.core.errors import AgentUnreachableError, HostError
from softunicast.lab.pair import ECHO_PORT, INTERNET
from softunicast.onramp import OpenTun, open_tun

EXAMPLE: Final = Path(__file__).resolve().parents[2] / "docs/howto/udp_over_tun.py"
PARTS: Final = ("__init__.py", "onramp.py", "wire", "core/__init__.py", "core/errors.py")
PYTHON: Final = "/usr/bin/python3"  # the one that everybody may run
SERVER, ONRAMP, ME = "server1", "apps", "10.9.0.2"


@contextmanager
def staged(parent: Path) -> Iterator[Path]:
    """The example and what it imports, where everybody may read it."""
    folder = parent / f"su-stage-{secrets.token_hex(4)}"
    try:
        for part in PARTS:
            source, target = Path(softunicast.__file__).parent / part, folder / "softunicast" / part
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        shutil.copy(EXAMPLE, folder)
        yield folder
    finally:
        shutil.rmtree(folder)


def run_as(lab: PairLab, stage: Path, user: str, *arguments: str) -> Done:
    """The example, run by a user in a namespace that has no interface: it needs none."""
    entry = pwd.getpwnam(user)
    done = subprocess.run(
        [PYTHON, "-B", str(stage / EXAMPLE.name), *arguments, "--socket", str(lab.lab.fd_socket(SERVER))],
        env={"PYTHONPATH": str(stage)},
        user=entry.pw_uid,
        group=entry.pw_gid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def opened(lab: PairLab, name: str = ONRAMP) -> OpenTun:
    """In this process, for as long as a test looks. The holder before may be ending still."""
    found: list[OpenTun] = []

    def attempt() -> bool:
        try:
            found.append(open_tun(name, str(lab.lab.fd_socket(SERVER))))
        except HostError as error:
            if isinstance(error, AgentUnreachableError) or "another program" in str(error):
                return False
            raise
        return True

    eventually(attempt, "the on-ramp opens")
    return found[0]


def receive(held: OpenTun, version: int = 4) -> Packet:
    """The next packet of that version, but for what the host says of its multicast groups (MLD)."""
    while select.select([held], [], [], TIMEOUT_S)[0]:
        data = os.read(held.descriptor, 1 << 16)
        if data[0] >> 4 == version and not (version == 6 and data[24] == 0xFF):
            return IP(data) if version == 4 else IPv6(data)
    raise AssertionError("nothing came")


def echo(held: OpenTun, text: bytes, source: str = ME, port: int = 40000) -> IP:
    """Sends a datagram to the internet's echo, again while nothing comes back, and gives what does."""
    packet = bytes(IP(src=source, dst=INTERNET) / UDP(sport=port, dport=ECHO_PORT) / text)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        os.write(held.descriptor, packet)
        while select.select([held], [], [], 0.5)[0]:
            data = os.read(held.descriptor, 1 << 16)
            answer = IP(data)
            if data[0] >> 4 == 4 and UDP in answer and bytes(answer[UDP].payload) == text:
                return answer
    raise AssertionError("no answer")
