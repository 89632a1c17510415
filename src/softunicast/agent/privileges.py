"""May this process do the agent's work? Asked before anything is touched, so that the answer is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from softunicast.core.errors import HostError

_NET_ADMIN: Final = 12  # addresses, settings, attaching programs
_SYS_ADMIN: Final = 21  # includes the next two
_PERFMON: Final = 38  # the verifier lets programs compare and read what we need
_BPF: Final = 39  # load programs, make maps


def missing_capabilities(status: str) -> tuple[str, ...]:
    """Names of what a process with this /proc/PID/status lacks."""
    line = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    effective = int(line.split()[1], 16)

    def have(bit: int) -> bool:
        return bool(effective >> bit & 1)

    wanted = {
        "CAP_NET_ADMIN": have(_NET_ADMIN),
        "CAP_BPF": have(_BPF) or have(_SYS_ADMIN),
        "CAP_PERFMON": have(_PERFMON) or have(_SYS_ADMIN),
    }
    return tuple(name for name, there in wanted.items() if not there)


def require_privileges() -> None:
    """Raises HostError, naming what is missing."""
    missing = missing_capabilities(Path("/proc/self/status").read_text())
    if missing:
        raise HostError(f"the agent needs {', '.join(missing)}", "run it as root")
