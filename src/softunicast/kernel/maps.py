"""BPF maps by file descriptor: get, set, delete, walk. Keys and values are bytes; kernel/abi.py gives them form.

A whole map is read in batches where the kernel offers it (hash, LPM trie since 6.x, array), which is a
hundred times faster than key by key. Per-CPU values are read as one bytes per possible CPU.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from softunicast.kernel.libbpf import check, ffi, kernel_error, load_library

NOEXIST: Final = 1
_BATCH: Final = 4096  # entries per system call: one call stays well under a millisecond


@dataclass(frozen=True, slots=True)
class Map:
    """One map. `fd` belongs to whoever opened it; sizes in bytes. `cpus` is set for per-CPU maps."""

    name: str
    fd: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    cpus: int = 0

    @property
    def _stored_bytes(self) -> int:
        """What the kernel copies per value: per-CPU values are padded to 8 bytes and repeated."""
        return (self.value_bytes + 7) // 8 * 8 * self.cpus if self.cpus else self.value_bytes

    def memory_bytes(self) -> int:
        """What the kernel accounts to the map. Since 6.4 that is what it takes now, before what it could take."""
        lines = Path(f"/proc/self/fdinfo/{self.fd}").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))

    def get(self, key: bytes) -> bytes | None:
        """The value, or None when there is none."""
        value = ffi.new("char[]", self._stored_bytes)
        if load_library().bpf_map_lookup_elem(self.fd, ffi.from_buffer(key), value) == 0:
            return bytes(ffi.buffer(value))
        if ffi.errno == errno.ENOENT:
            return None
        raise kernel_error(ffi.errno, f"reading map {self.name}")

    def per_cpu(self, key: bytes) -> list[bytes]:
        """The value of every possible CPU."""
        data = self.get(key) or b""
        step = (self.value_bytes + 7) // 8 * 8
        return [data[at : at + self.value_bytes] for at in range(0, len(data), step)]

    def set(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Inserts or replaces; hash entries are replaced as a whole, so readers see the old or the new one."""
        result = load_library().bpf_map_update_elem(
            self.fd, ffi.from_buffer(key), ffi.from_buffer(value), flags
        )
        check(
            result,
            f"writing map {self.name}",
            f"raise its size in [limits] (now {self.max_entries})"
            if result and ffi.errno in (errno.E2BIG, errno.ENOSPC)
            else None,
        )

    def set_many(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Inserts or replaces in batches."""
        pending = list(items)
        for at in range(0, len(pending), _BATCH):
            part = pending[at : at + _BATCH]
            keys, values = b"".join(key for key, _ in part), b"".join(value for _, value in part)
            count = ffi.new("uint32_t *", len(part))
            check(
                load_library().bpf_map_update_batch(
                    self.fd, ffi.from_buffer(keys), ffi.from_buffer(values), count, ffi.NULL
                ),
                f"writing {len(part)} entries of map {self.name}",
            )

    @contextmanager
    def words(self, form: Literal["H", "I", "Q"]) -> Iterator[memoryview[int]]:
        """The values of an array (BPF_F_MMAPABLE) as the kernel holds them: words of 16 ("H"), 32 ("I")
        or 64 bits ("Q"). Each is read and written at once: programs see the old one or the new one."""
        try:
            memory = mmap.mmap(self.fd, self.max_entries * self.value_bytes)
        except OSError as error:
            raise kernel_error(error.errno or 0, f"mapping map {self.name} into memory") from error
        with memory, memoryview(memory) as raw, raw.cast(form) as view:
            yield view

    def set_words(self, form: Literal["H", "I", "Q"], words: Iterable[tuple[int, int]]) -> None:
        """Writes words by their number: see `words`."""
        with self.words(form) as view:
            for number, word in words:
                view[number] = word

    def delete(self, key: bytes) -> bool:
        """False when there was no such key."""
        if load_library().bpf_map_delete_elem(self.fd, ffi.from_buffer(key)) == 0:
            return True
        if ffi.errno == errno.ENOENT:
            return False
        raise kernel_error(ffi.errno, f"deleting from map {self.name}")

    def every_key(self) -> Iterator[bytes]:
        """Every key, one system call each; for small maps. Entries changed meanwhile may be missed."""
        library, key = load_library(), ffi.NULL
        following = ffi.new("char[]", self.key_bytes)
        while library.bpf_map_get_next_key(self.fd, key, following) == 0:
            key = ffi.new("char[]", bytes(ffi.buffer(following))[: self.key_bytes])
            yield bytes(ffi.buffer(following))
        if ffi.errno != errno.ENOENT:
            raise kernel_error(ffi.errno, f"walking map {self.name}")

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry, in batches. Entries changed meanwhile may be missed or seen twice."""
        library = load_library()
        cursor_bytes = max(self.key_bytes, 4)
        position, cursor = ffi.NULL, ffi.new("char[]", cursor_bytes)
        size = min(_BATCH, max(self.max_entries, 1))
        while True:
            keys = ffi.new("char[]", size * self.key_bytes)
            values = ffi.new("char[]", size * self._stored_bytes)
            count = ffi.new("uint32_t *", size)
            result = library.bpf_map_lookup_batch(self.fd, position, cursor, keys, values, count, ffi.NULL)
            error = ffi.errno if result else 0
            if error == errno.ENOSPC:  # one hash bucket holds more than the batch
                size *= 2
                continue
            if error not in (0, errno.ENOENT):
                raise kernel_error(error, f"reading map {self.name}")
            key_data, value_data = bytes(ffi.buffer(keys)), bytes(ffi.buffer(values))
            for index in range(count[0]):
                yield (
                    key_data[index * self.key_bytes : (index + 1) * self.key_bytes],
                    value_data[index * self._stored_bytes : (index + 1) * self._stored_bytes],
                )
            if error == errno.ENOENT:
                return
            position = ffi.new("char[]", bytes(ffi.buffer(cursor))[:cursor_bytes])
