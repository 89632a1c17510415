"""Compiles bench/bpf/*.bpf.c, with the flags of the product's own objects, and loads them; and the programs that run
outside of the kernel, bench/*.c.

What is built is built when a source is newer, next to the sources; it is never committed nor shipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from softunicast.kernel.objects import BpfObject

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCES: Final = ROOT / "bench" / "bpf"


def load(name: str, sizes: dict[str, int] | None = None, shared: dict[str, int] | None = None) -> BpfObject:
    """Loads bench/bpf/NAME.bpf.c with maps of its own, but for the `shared` descriptors. Close it when done."""
    return BpfObject.load(str(compiled(name)), None, sizes, shared)


def compiled(name: str) -> Path:
    """Builds bench/bpf/NAME.bpf.c unless that is done; returns the path that BpfObject.load wants."""
    source, target = SOURCES / f"{name}.bpf.c", SOURCES / f"{name}.bpf.o"
    inputs = [source, *SOURCES.glob("*.h"), *(ROOT / "bpf").glob("*.h")]
    if not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in inputs):
        _compile(source, target)
    return SOURCES / name


def program(name: str) -> Path:
    """Builds bench/NAME.c unless that is done; returns the program."""
    source, target = ROOT / "bench" / f"{name}.c", ROOT / "bench" / f"{name}.o"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        _build(source, target, "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror")
    return target


def _compile(source: Path, target: Path) -> None:
    import ziglang

    include = Path(ziglang.__file__).parent / "lib" / "libc" / "include"
    _build(
        source,
        target,
        *("-target", "bpfel-freestanding", "-mcpu=v3"),
        *("-std=gnu17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
        *("-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fno-stack-protector"),
        *("-isystem", str(include / "x86-linux-any"), "-isystem", str(include / "any-linux-any")),
        *("-I", str(ROOT / "bpf"), "-c"),
    )


def _build(source: Path, target: Path, *flags: str) -> None:
    made = target.with_suffix(f".{os.getpid()}")  # renamed when complete: another run may be loading
    command = [sys.executable, "-m", "ziglang", "cc", *flags, str(source), "-o", str(made)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"compiling {source.name} failed:\n{done.stderr}")
    made.rename(target)
