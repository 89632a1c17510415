"""Many downloads at once with curl, each checked byte for byte while it comes; nothing is written to disk.

curl is the client because it is nobody's own: what works for it works for programs that know nothing of us. All
transfers start together, each on a connection of its own, each into a pipe that is read and summed here. A
transfer counts when its checksum is the one that the server announced and the one that the pattern has.
"""

from __future__ import annotations

import hashlib
import os
import selectors
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from softunicast.core.errors import HostError, LabError
from softunicast.lab import pattern

COUNT_MAX: Final = 300  # curl's own limit for transfers at once
CONNECT_TIMEOUT_S: Final = 10
SPARE_TIME_S: Final = 5.0  # what curl gets beyond its own limit to come to its end
READ_BYTES: Final = 1 << 16  # what a pipe holds
# One line for each transfer; tabs cannot occur in any of these, and the error text comes last.
_REPORT: Final = r"%{filename_effective}\t%{http_code}\t%header{x-content-sha256}\t%{exitcode}\t%{errormsg}\n"


@dataclass(frozen=True, slots=True)
class Transfer:
    """What curl says of one transfer, and the checksum of what came."""

    http_code: str
    announced: str
    exit_code: int
    error: str
    found: str


def run(
    origin: str, count: int, size: int, over_s: float | None, timeout_s: float, label: str
) -> dict[str, Any]:
    """Download `count` times `size` bytes from `origin` at once; `over_s`: spread over so many seconds.

    Returns counts, seconds, and each kind of failure with how often it happened. HostError without curl.
    """
    path = f"bytes/{size}" if over_s is None else f"slow/{size}?seconds={over_s:g}"
    argv = [
        *("curl", "--silent", "--no-progress-meter", "--parallel", "--parallel-immediate"),
        *("--parallel-max", str(count)),
        *("--connect-timeout", str(CONNECT_TIMEOUT_S), "--max-time", f"{timeout_s:g}"),
        *("--user-agent", label, "--write-out", _REPORT, "--config", "-"),
    ]
    start = time.monotonic()
    transfers = _transfers(argv, f"{origin.rstrip('/')}/{path}", count, timeout_s + SPARE_TIME_S)
    seconds = time.monotonic() - start
    failures = Counter(filter(None, (_failure(transfer, size) for transfer in transfers)))
    if len(transfers) < count:
        failures["curl did not report it"] = count - len(transfers)
    failed = sum(failures.values())
    return {
        "count": count,
        "completed": count - failed,
        "failed": failed,
        "bytes": (count - failed) * size,
        "seconds": round(seconds, 3),
        "failures": dict(failures),
    }


def _transfers(argv: list[str], url: str, count: int, timeout_s: float) -> list[Transfer]:
    with ExitStack() as stack:
        pipes = [os.pipe() for _ in range(count)]
        for read, _ in pipes:
            stack.callback(os.close, read)
        # curl opens its end by name; the name is what tells the transfers apart in its report.
        names = {f"/dev/fd/{write}": read for read, write in pipes}
        try:
            curl = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[write for _, write in pipes]
            )
        except FileNotFoundError:
            raise HostError("the program curl is missing", "apt-get install curl") from None
        finally:
            for _, write in pipes:
                os.close(write)
        stack.callback(curl.wait)
        stack.callback(curl.kill)
        assert curl.stdin is not None
        assert curl.stdout is not None
        stack.callback(curl.stdout.close)
        with curl.stdin:
            curl.stdin.write("".join(f'url = "{url}"\noutput = "{name}"\n' for name in names).encode())
        report, sums = _read(curl.stdout.fileno(), list(names.values()), timeout_s)
    lines = (line.split("\t", 4) for line in report.decode(errors="replace").splitlines())
    return [
        Transfer(code, announced, int(exit_code), error, sums[names[name]])
        for name, code, announced, exit_code, error in lines
    ]


def _read(report: int, pipes: list[int], timeout_s: float) -> tuple[bytes, Mapping[int, str]]:
    """Read everything to its end: curl's report whole, the transfers as checksums."""
    deadline = time.monotonic() + timeout_s
    told, sums = b"", {pipe: hashlib.sha256() for pipe in pipes}
    with selectors.DefaultSelector() as selector:
        for descriptor in (report, *pipes):
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            if time.monotonic() > deadline:
                raise LabError(f"curl did not end within {timeout_s:g} s")
            for key, _ in selector.select(timeout=1.0):
                piece = os.read(key.fd, READ_BYTES)
                if not piece:
                    selector.unregister(key.fd)
                elif key.fd == report:
                    told += piece
                else:
                    sums[key.fd].update(piece)
    return told, {pipe: digest.hexdigest() for pipe, digest in sums.items()}


def _failure(transfer: Transfer, size: int) -> str | None:
    """Why a transfer does not count, or None."""
    if transfer.exit_code != 0:
        return f"curl {transfer.exit_code}: {transfer.error}"
    if transfer.http_code != "200":
        return f"HTTP {transfer.http_code}"
    if transfer.found != transfer.announced:
        return "checksum is not the one that the server announced"
    if transfer.found != pattern.sha256(size):
        return "checksum is not that of the pattern"
    return None
