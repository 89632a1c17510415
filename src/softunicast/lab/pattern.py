"""The bytes that a lab's web server hands out, known on both sides so that a download can be checked.

N bytes are the first N of one block repeated. The block is long and without structure, so that a piece that
is lost, doubled, shifted or changed on the way changes the checksum. Nothing here does I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Final

BLOCK_BYTES: Final = 1 << 20
PIECE_BYTES: Final = 1 << 18  # what is written at once: few calls, and four pieces for the usual megabyte
BYTES_MAX: Final = 1 << 30


@cache
def block() -> bytes:
    """BLOCK_BYTES bytes, the same in every process and version."""
    return hashlib.shake_256(b"softunicast lab").digest(BLOCK_BYTES)


def pieces(size: int, start: int = 0) -> Iterator[memoryview]:
    """Bytes `start` to `size` of the pattern, in pieces of at most PIECE_BYTES, without copying."""
    view = memoryview(block())
    while start < size:
        at = start % BLOCK_BYTES
        length = min(PIECE_BYTES, BLOCK_BYTES - at, size - start)
        yield view[at : at + length]
        start += length


@lru_cache(maxsize=64)
def sha256(size: int) -> str:
    """The checksum of the first `size` bytes, in hexadecimal. Half a second for a gigabyte, once."""
    digest = hashlib.sha256()
    for piece in pieces(size):
        digest.update(piece)
    return digest.hexdigest()
