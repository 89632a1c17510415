"""The pattern: pieces join to its beginning at any size and from any start, and checksums are of exactly that."""

from __future__ import annotations

import hashlib

from hypothesis import example, given
from hypothesis import strategies as st

from softunicast.lab.pattern import BLOCK_BYTES, PIECE_BYTES, block, pieces, sha256

SIZES = st.integers(0, 3 * BLOCK_BYTES)


def naive(size: int) -> bytes:
    return (block() * (size // BLOCK_BYTES + 1))[:size]


@given(SIZES, SIZES)
@example(BLOCK_BYTES, 0)
@example(BLOCK_BYTES + 1, BLOCK_BYTES - 1)
@example(0, 0)
def test_pieces_join_to_the_pattern(size: int, start: int) -> None:
    found = list(pieces(size, start))

    assert b"".join(found) == naive(size)[start:]
    assert all(0 < len(piece) <= PIECE_BYTES for piece in found)


@given(SIZES)
def test_checksum_is_of_the_bytes(size: int) -> None:
    assert sha256(size) == hashlib.sha256(naive(size)).hexdigest()


def test_pattern_is_the_same_everywhere() -> None:
    # Fixed once: two versions of the server and the probes must agree.
    assert sha256(1 << 20).startswith("05be41d19be015f1")
