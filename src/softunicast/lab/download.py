"""Many downloads at once with curl, each checked byte for byte.

curl is the client because it is nobody's own: what works for it works for programs that know nothing of us. All
transfers start together, each on a connection of its own. A file counts when its checksum is the one that the
server announced and the one that the pattern has at that size.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from softunicast.core.errors import HostError, LabError
from softunicast.lab import pattern

COUNT_MAX: Final = 300  # curl's own limit for transfers at once
CONNECT_TIMEOUT_S: Final = 10
SPARE_TIME_S: Final = 5.0  # what curl gets beyond its own limit to come to its end
# One line for each transfer; tabs cannot occur in any of these, and the error text comes last.
_REPORT: Final = r"%{filename_effective}\t%{http_code}\t%header{x-content-sha256}\t%{exitcode}\t%{errormsg}\n"


@dataclass(frozen=True, slots=True)
class Transfer:
    """What curl says of one transfer."""

    file: Path
    http_code: str
    announced_sha256: str
    exit_code: int
    error: str


def run(
    origin: str, count: int, size: int, over_s: float | None, timeout_s: float, label: str
) -> dict[str, Any]:
    """Download `count` times `size` bytes from `origin` at once; `over_s`: spread over so many seconds.

    Returns counts, seconds, and each kind of failure with how often it happened. HostError without curl.
    """
    path = f"/bytes/{size}?" if over_s is None else f"/slow/{size}?seconds={over_s:g}&"
    with tempfile.TemporaryDirectory(prefix="softunicast-download-") as name:
        argv = [
            *("curl", "--silent", "--parallel", "--parallel-immediate", "--parallel-max", str(count)),
            *("--connect-timeout", str(CONNECT_TIMEOUT_S), "--max-time", f"{timeout_s:g}"),
            *("--user-agent", label, "--write-out", _REPORT, "--output", f"{name}/#1"),
            f"{origin.rstrip('/')}{path}n=[1-{count}]",
        ]
        start = time.monotonic()
        report = _curl(argv, timeout_s + SPARE_TIME_S)
        seconds = time.monotonic() - start
        failures = Counter(filter(None, (_failure(transfer, size) for transfer in _transfers(report))))
        silent = count - len(_transfers(report))
        if silent:
            failures["curl did not report it"] = silent
    failed = sum(failures.values())
    return {
        "count": count,
        "completed": count - failed,
        "failed": failed,
        "bytes": (count - failed) * size,
        "seconds": round(seconds, 3),
        "failures": dict(failures),
    }


def _curl(argv: list[str], timeout_s: float) -> str:
    try:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=timeout_s)
    except FileNotFoundError:
        raise HostError("the program curl is missing", "apt-get install curl") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"curl did not end within {timeout_s:g} s") from None
    return done.stdout


def _transfers(report: str) -> list[Transfer]:
    fields = (line.split("\t", 4) for line in report.splitlines())
    return [
        Transfer(Path(file), code, sha, int(exit_code), text) for file, code, sha, exit_code, text in fields
    ]


def _failure(transfer: Transfer, size: int) -> str | None:
    """Why a transfer does not count, or None."""
    if transfer.exit_code != 0:
        return f"curl {transfer.exit_code}: {transfer.error}"
    if transfer.http_code != "200":
        return f"HTTP {transfer.http_code}"
    with transfer.file.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != transfer.announced_sha256:
        return "checksum is not the one that the server announced"
    if found != pattern.sha256(size):
        return "checksum is not that of the pattern"
    return None
