"""What differs between IPv4 and IPv6 in the kernel's maps: their names, and the structs that have an address in them.

Everything else in this package is written once, for a family. As in bpf/family.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from softunicast.core.slices import IPAddress
from softunicast.kernel import abi


@dataclass(frozen=True, slots=True)
class Family:
    """One of the two. The structs are classes of kernel/abi.py."""

    version: int
    suffix: str  # of the names of programs and maps
    block_key: Any
    pool_slice: Any
    pool_slice_bytes: int
    pool: Any
    pool_dns: Any
    onramp: Any
    source: Any
    source_bytes: int
    exempt_key: Any
    flow_key: Any
    claim_key: Any
    claim: Any
    usage: Any
    granting: Any
    nowhere: int | bytes  # the unspecified address, as the maps hold it

    def named(self, name: str) -> str:
        """A map's, program's or object's name."""
        return name + self.suffix


IPV4: Final = Family(
    4,
    "",
    abi.BlockKey,
    abi.PoolSlice,
    abi.POOL_SLICE_BYTES,
    abi.Pool,
    abi.PoolDns,
    abi.Onramp,
    abi.Source,
    abi.SOURCE_BYTES,
    abi.ExemptKey,
    abi.FlowKey,
    abi.ClaimKey,
    abi.Claim,
    abi.Usage,
    abi.Granting,
    0,
)
IPV6: Final = Family(
    6,
    "6",
    abi.BlockKey6,
    abi.PoolSlice6,
    abi.POOL_SLICE6_BYTES,
    abi.Pool6,
    abi.PoolDns6,
    abi.Onramp6,
    abi.Source6,
    abi.SOURCE6_BYTES,
    abi.ExemptKey6,
    abi.FlowKey6,
    abi.ClaimKey6,
    abi.Claim6,
    abi.Usage6,
    abi.Granting6,
    bytes(16),
)
FAMILIES: Final = (IPV4, IPV6)


def family_of(address: IPAddress) -> Family:
    """The family of an address."""
    return IPV4 if address.version == 4 else IPV6
