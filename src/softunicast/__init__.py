"""softunicast: many Linux servers share few public IPv4 addresses, by slices of source ports.

For programs: `connect`, `Pool` and `Lease` (pools.py), `aio`, and `onramp.open_tun`. They are imported when they are
asked for, so that whoever wants the version alone pays for nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softunicast.pools import Lease, Pool, connect

__version__ = "0.1.0"
__all__ = ["Lease", "Pool", "__version__", "connect"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from softunicast import pools

        return getattr(pools, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
