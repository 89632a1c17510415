"""Compiles bpf/*.bpf.c into src/softunicast/kernel/bpf/*.o while the wheel (or editable install) is built.

Uses the clang inside the ziglang package, so that a wheel builds from PyPI alone. The objects are
bit-identical between builds (paths are mapped away); they are never committed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def compile_objects(root: Path) -> list[Path]:
    """Compile every bpf/*.bpf.c below `root`; returns the object paths. Raises SystemExit with clang's words."""
    import ziglang

    zig = Path(ziglang.__file__).parent
    include = zig / "lib" / "libc" / "include"
    out_dir = root / "src" / "softunicast" / "kernel" / "bpf"
    out_dir.mkdir(exist_ok=True)
    objects = []
    for source in sorted((root / "bpf").glob("*.bpf.c")):
        target = out_dir / source.name.replace(".bpf.c", ".bpf.o")
        command = [
            *(sys.executable, "-m", "ziglang", "cc", "-target", "bpfel-freestanding", "-mcpu=v3"),
            *("-std=gnu17", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter"),
            *("-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fno-stack-protector"),
            f"-ffile-prefix-map={root}=.",
            f"-ffile-prefix-map={zig}=zig",
            "-fdebug-compilation-dir=.",
            *("-isystem", str(include / "x86-linux-any"), "-isystem", str(include / "any-linux-any")),
            *("-I", str(root / "bpf"), "-c", str(source), "-o", str(target)),
        ]
        environment = os.environ | {"ZIG_PROGRESS": "0"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
        if done.returncode:
            raise SystemExit(f"compiling {source.name} failed:\n{done.stderr}")
        objects.append(target)
    return objects


class BpfObjects(BuildHookInterface[Any]):
    """Hatchling hook: build the objects, ship them inside the package."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        objects = compile_objects(Path(self.root))
        build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in objects]


if __name__ == "__main__":
    for built in compile_objects(Path(__file__).resolve().parents[1]):
        sys.stdout.write(f"{built.name}\n")
