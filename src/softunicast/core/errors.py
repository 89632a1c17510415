"""The one error tree.

A message says what we were doing, to what, and why it failed; `fix` says what to do about it. `str()` is
one line: the CLI prints exactly that and exits with `exit_code`. Foreign errors (OSError, sqlite3.Error,
netlink) are translated into these at the seam where they appear.
"""

from __future__ import annotations

from collections.abc import Sequence


class SoftunicastError(Exception):
    """Root of the tree. Exit code 1: it failed, and neither the input nor the host is to blame."""

    exit_code = 1

    def __init__(self, what: str, fix: str | None = None) -> None:
        super().__init__(what if fix is None else f"{what}; fix: {fix}")
        self.what = what
        self.fix = fix


class InputError(SoftunicastError):
    """What a person or program asked for is wrong. Nothing was changed. Exit code 2."""

    exit_code = 2


class SliceSyntaxError(InputError):
    """A text is neither form of a slice."""


class OverlapError(InputError):
    """Two things that must not overlap do (slices, leases, blocks)."""


class UnknownNameError(InputError):
    """A tag, pool, server, address, lab or option that does not exist. Never a fallback (invariant 10)."""


class ConfigError(InputError):
    """Every problem of a configuration file at once, each with its line and its fix."""

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__(f"{path}: {count}: " + " | ".join(self.problems))


class HostError(SoftunicastError):
    """This host cannot do it: privilege, library, kernel feature, device. Nothing was changed. Exit code 3."""

    exit_code = 3


class NotExecutableError(HostError):
    """The program to run is there and does not run. Exit code 126, as in shells."""

    exit_code = 126


class NoProgramError(InputError):
    """There is no program of that name to run. Exit code 127, as in shells."""

    exit_code = 127


class LedgerError(SoftunicastError):
    """The ledger could not be read or written."""


class LeaseError(SoftunicastError):
    """A lease cannot make this step: not held by this server, an older epoch, the wrong state."""


class SliceTakenError(LeaseError):
    """Another live lease overlaps the slice that was asked for."""


class KernelError(SoftunicastError):
    """A system call on the kernel data path failed."""

    def __init__(self, what: str, errno: int = 0, fix: str | None = None) -> None:
        super().__init__(what, fix)
        self.errno = errno


class LabError(SoftunicastError):
    """A lab could not be built, found or torn down."""


class AgentUnreachableError(HostError):
    """No agent answers on the socket."""
