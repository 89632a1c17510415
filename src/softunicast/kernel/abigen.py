"""Writes kernel/abi.py from the BTF of abi.bpf.o and abi6.bpf.o: `python -m softunicast.kernel.abigen [--check]`.

A struct that has an address in it is another one for IPv6: it is there twice, the second time with a 6 in its name.

BTF is the type information inside a compiled BPF object (Documentation/bpf/btf.rst in the kernel tree). It
is read here as bytes, with the standard library, so that the generated file needs nothing at run time. Only
the kinds that abi.h uses are understood; any other is an error.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from softunicast.core.errors import KernelError
from softunicast.kernel.libbpf import ffi, kernel_error, load_library

OBJECT: Final = Path(__file__).parent / "bpf" / "abi.bpf.o"
OBJECT6: Final = Path(__file__).parent / "bpf" / "abi6.bpf.o"
TARGET: Final = Path(__file__).parent / "abi.py"

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
FUNC, FUNC_PROTO, VAR, DATASEC = 12, 13, 14, 15
_EXTRA_BYTES: Final = dict.fromkeys((PTR, FWD, TYPEDEF, VOLATILE, CONST, FUNC), 0) | {INT: 4, VAR: 4}
_FORMATS: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True)
class Type:
    """One BTF type: `members` are (name, type id, bit offset) of a struct, or (name, value, 0) of an enum."""

    kind: int
    name: str
    size_or_type: int
    members: tuple[tuple[str, int, int], ...] = ()
    count: int = 0


def read_btf(path: Path) -> list[Type]:
    """All types of an object file, by type id (index 0 is void)."""
    library = load_library()
    btf = library.btf__parse(str(path).encode(), ffi.NULL)
    if btf == ffi.NULL:
        raise kernel_error(ffi.errno, f"reading BTF of {path}", "build the objects: make setup")
    size = ffi.new("uint32_t *")
    raw = bytes(ffi.buffer(library.btf__raw_data(btf, size), size[0]))
    library.btf__free(btf)
    header_bytes, type_at, type_bytes, string_at, string_bytes = struct.unpack_from("<4xIIIII", raw)
    strings = raw[header_bytes + string_at :][:string_bytes]
    return [Type(0, "void", 0), *_types(raw[header_bytes + type_at :][:type_bytes], strings)]


def _types(data: bytes, strings: bytes) -> list[Type]:
    def name_at(offset: int) -> str:
        return strings[offset : strings.index(b"\0", offset)].decode()

    types, at = [], 0
    while at < len(data):
        name, info, size_or_type = struct.unpack_from("<III", data, at)
        kind, length = info >> 24 & 0x1F, info & 0xFFFF
        at += 12
        members: list[tuple[str, int, int]] = []
        count = 0
        if kind in (STRUCT, UNION):
            for _ in range(length):
                member, type_id, bits = struct.unpack_from("<III", data, at)
                members.append((name_at(member), type_id, bits))
                at += 12
        elif kind == ENUM:
            for _ in range(length):
                member, value = struct.unpack_from("<Ii", data, at)
                members.append((name_at(member), value, 0))
                at += 8
        elif kind == ARRAY:
            size_or_type, _, count = struct.unpack_from("<III", data, at)
            at += 12
        elif kind == DATASEC:
            at += 12 * length
        elif kind == FUNC_PROTO:
            at += 8 * length
        elif kind in _EXTRA_BYTES:
            at += _EXTRA_BYTES[kind]
        else:
            raise KernelError(f"reading BTF: a type of kind {kind} is not understood", fix="teach abigen.py")
        types.append(Type(kind, name_at(name), size_or_type, tuple(members), count))
    return types


def _resolve(types: list[Type], type_id: int) -> Type:
    while types[type_id].kind in (TYPEDEF, CONST, VOLATILE):
        type_id = types[type_id].size_or_type
    return types[type_id]


def _size(types: list[Type], type_id: int) -> int:
    found = _resolve(types, type_id)
    return found.count * _size(types, found.size_or_type) if found.kind == ARRAY else found.size_or_type


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _enum_source(enum: Type) -> str:
    names = [name for name, _, _ in enum.members]
    prefix = re.match(r"[A-Z]+_", names[0])
    cut = len(prefix[0]) if prefix else 0
    rows = "".join(f"    {name[cut:]} = {value}\n" for name, value, _ in enum.members)
    return f"class {_class_name(enum.name)}(IntEnum):\n{rows}"


def _struct_source(types: list[Type], record: Type, suffix: str = "") -> str:
    """A NamedTuple with SIZE, pack and unpack. Byte arrays are bytes; inner structs are packed bytes."""
    title = record.name + suffix
    fields, formats, end = [], ["<"], 0
    for name, type_id, bits in record.members:
        offset, size, inner = bits // 8, _size(types, type_id), _resolve(types, type_id)
        if offset > end:
            formats.append(f"{offset - end}x")
        scalar = inner.kind in (INT, ENUM)
        formats.append(_FORMATS[size] if scalar else f"{size}s")
        if not name.startswith("zero"):
            fields.append((name, "int" if scalar else "bytes"))
        else:
            formats[-1] = f"{size}x"
        end = offset + size
    if record.size_or_type > end:
        formats.append(f"{record.size_or_type - end}x")
    rows = "".join(f"    {name}: {kind}\n" for name, kind in fields)
    return (
        f"class {_class_name(title)}(NamedTuple):\n{rows}\n"
        f"    def pack(self) -> bytes:\n        return _{title}.pack(*self)\n\n"
        f"    @classmethod\n    def unpack(cls, data: bytes) -> {_class_name(title)}:\n"
        f"        return cls._make(_{title}.unpack(data))\n\n\n"
        f'_{title} = Struct("{"".join(formats)}")\n'
        f"{title.upper()}_BYTES: Final = {record.size_or_type}\n"
    )


def _named_alike(record: Type, usual: Type) -> Type:
    """With the field names of the struct for IPv4: C must call some of them otherwise (bpf/family.h)."""
    names = [name for name, _, _ in usual.members]
    members = tuple(
        (names[at] if at < len(names) else name, kind, bits)
        for at, (name, kind, bits) in enumerate(record.members)
    )
    return replace(record, members=members)


def _structs(path: Path, path6: Path) -> Iterator[str]:
    types, types6 = read_btf(path), read_btf(path6)
    others = {found.name.removesuffix("6"): found for found in types6 if found.kind == STRUCT}
    for record in types:
        if record.kind != STRUCT or not record.name:
            continue
        yield _struct_source(types, record)
        other = _named_alike(others[record.name], record)
        if _struct_source(types6, replace(other, name=record.name)) != _struct_source(types, record):
            yield _struct_source(types6, replace(other, name=record.name), "6")


def generate(path: Path = OBJECT, path6: Path = OBJECT6) -> str:
    """The text of abi.py."""
    types = read_btf(path)
    parts = [
        '"""Generated from bpf/abi.h by `make abi`: structs and enums shared with the data path. Do not edit.\n\n'
        "IPv4 addresses and ports marked `be` in abi.h are integers as they lie in memory; convert with be16 and\n"
        "be32. IPv6 addresses are bytes, in structs of their own (with a 6 in their names).\n"
        'Byte order is little endian: the objects are built for bpfel.\n"""\n\n'
        "from __future__ import annotations\n\nfrom enum import IntEnum\nfrom struct import Struct\n"
        "from typing import Final, NamedTuple\n"
    ]
    parts += [_enum_source(found) for found in types if found.kind == ENUM]
    parts += _structs(path, path6)
    return _formatted("\n\n".join(parts))


def _formatted(text: str) -> str:
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run(
        [ruff, "format", "--stdin-filename", str(TARGET), "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def main() -> None:
    """Writes abi.py; with --check exits 1 when it is not what the objects say."""
    text = generate()
    if "--check" in sys.argv[1:]:
        if TARGET.read_text() != text:
            sys.exit(f"{TARGET.name} differs from the BTF of the objects; fix: make abi")
        return
    TARGET.write_text(text)


if __name__ == "__main__":
    main()
