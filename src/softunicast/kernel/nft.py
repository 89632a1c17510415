"""nftables, in this process: libnftables takes the text that `nft -f` takes, at a fiftieth of the cost of the program.

For strategies that need netfilter; the data path makes no rule. A `Nft` speaks to the network namespace of the thread
that makes its first call. Optional: where the library is missing, those strategies are not offered.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, Final

from softunicast.core.errors import HostError, KernelError

LIBRARY: Final = "libnftables.so.1"
PACKAGE_FIX: Final = "apt-get install libnftables1"


class Nft:
    """One context. Not for several threads at once."""

    def __init__(self) -> None:
        self._library = _load()
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def run(self, text: str) -> str:
        """What it prints. All of the text is one transaction. Raises HostError (privilege) or KernelError."""
        failed = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        said = self._library.nft_ctx_get_error_buffer(self._context).decode()
        if failed:
            first = next(iter(said.splitlines()), "no reason given")
            if "not permitted" in said:
                raise HostError(f"nftables: {first}", "run as root")
            raise KernelError(f"nftables: {first}")
        printed: str = self._library.nft_ctx_get_output_buffer(self._context).decode()
        return printed

    def close(self) -> None:
        """Lets go; the rules stay."""
        self._library.nft_ctx_free(self._context)


@cache
def _load() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise HostError(f"{LIBRARY} is missing", PACKAGE_FIX) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    return library
