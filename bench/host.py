"""What the machine of a result is: facts for the JSON, and the host-wide settings that a run changes and restores."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.paths import CONNTRACK_MAX
from softunicast.core.errors import HostError
from softunicast.kernel import sysctl

TURN_TIMEOUT_S: Final = 240.0
_TURN: Final = Path("/run/subench.lock")
_MITIGATIONS: Final = Path("/sys/devices/system/cpu/vulnerabilities")


def facts() -> dict[str, object]:
    """Enough to tell whether two results can be compared."""
    return {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": _cpuinfo("model name"),
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in _cpuinfo("flags").split(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "load_1min": round(os.getloadavg()[0], 2),
        "mitigations": {path.name: path.read_text().strip() for path in sorted(_MITIGATIONS.glob("*"))},
        "versions": {name: _version(*command) for name, command in _VERSIONS.items()},
    }


@contextmanager
def alone() -> Iterator[None]:
    """One run at a time on a host: two would disturb each other, and restore each other's settings."""
    deadline = time.monotonic() + TURN_TIMEOUT_S
    with _TURN.open("w") as turn:
        while True:
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise HostError(
                        "another benchmark has been running on this host", "wait for its end"
                    ) from error
                time.sleep(0.5)
        yield


@contextmanager
def settings(wanted: Mapping[str, int]) -> Iterator[None]:
    """Sets sysctls of the host for the length of a `with` block."""
    before = {name: sysctl.read(name) for name in wanted}
    missing = [name for name, value in before.items() if value is None]
    if missing:
        raise HostError(f"this kernel has no {missing[0]}", "benchmark on one with nf_conntrack")
    try:
        for name, value in wanted.items():
            sysctl.write(name, value)
        yield
    finally:
        for name, original in reversed(before.items()):
            if original is not None:
                sysctl.write(name, original)


def conntrack_sized() -> Mapping[str, int]:
    """Room for a million flows, one bucket per entry: conntrack at its best. Host-wide, whatever the namespace."""
    return {
        "net/netfilter/nf_conntrack_buckets": CONNTRACK_MAX,
        "net/netfilter/nf_conntrack_max": CONNTRACK_MAX,
    }


_VERSIONS: Final = {
    "nft": ("nft", "--version"),
    "iptables": ("iptables", "--version"),
    "iperf3": ("iperf3", "--version"),
    "wrk": ("wrk", "--version"),
    "nginx": ("nginx", "-v"),
}


def _version(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=5)
    except FileNotFoundError:
        return "absent"
    return (done.stdout or done.stderr).splitlines()[0].strip()


def _cpuinfo(field: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(field):
            return line.partition(":")[2].strip()
    return ""
