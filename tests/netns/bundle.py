"""OCI bundles for engines of containers, without an image: the machine's own /usr and /etc, to be read only, and one
folder of a test. What is in a bundle is what the runtime specification says (config.json), nothing of an engine.
"""

from __future__ import annotations

import json
from pathlib import Path

FROM_HOST = ("/usr", "/etc")
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
NAMESPACES = ("pid", "ipc", "uts", "mount", "cgroup")


def write_root(folder: Path, shared: Path) -> Path:
    """A root of a container; what has to be mounted in it, `mounts` says."""
    root = folder / "root"
    for name in (*FROM_HOST, "/proc", "/dev", "/sys", "/tmp", "/run", str(shared)):
        (root / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for name, target in LINKS.items():
        (root / name).symlink_to(target)
    return root


def bound(shared: Path) -> list[tuple[str, str]]:
    """(folder, how) of what comes from the host, at the same place."""
    return [*((name, "ro") for name in FROM_HOST), (str(shared), "rw")]


def write_bundle(
    folder: Path, shared: Path, cgroup: str, own_network: bool, command: tuple[str, ...]
) -> None:
    """A whole bundle. `own_network`: it has a network namespace of its own, else that of the engine."""
    folder.mkdir()
    write_root(folder, shared)
    kinds = (*NAMESPACES, *(("network",) if own_network else ()))
    mounts: list[dict[str, object]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    ]
    mounts += [
        {"destination": place, "type": "bind", "source": place, "options": ["rbind", how]}
        for place, how in bound(shared)
    ]
    config = {
        "ociVersion": "1.0.2",
        "root": {"path": "root"},
        "process": {"args": command, "cwd": "/", "env": ["PATH=/usr/bin:/bin"], "user": {"uid": 0, "gid": 0}},
        "mounts": mounts,
        "linux": {"cgroupsPath": cgroup, "namespaces": [{"type": kind} for kind in kinds]},
    }
    (folder / "config.json").write_text(json.dumps(config))
