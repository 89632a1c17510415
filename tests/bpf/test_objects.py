"""The BPF objects: built the same everywhere, current, and refused in words that tell why."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from pathlib import Path
from types import ModuleType

import pytest
import ziglang
from tests.bpf.kernel_objects import has_xdp, numbers, opened, wait_until_gone
from tests.bpf.world import ONRAMP

from softunicast.core.errors import HostError, KernelError
from softunicast.kernel import abigen, objects
from softunicast.kernel.objects import ATTACH_TCX_EGRESS, BpfObject, Link, have_bpffs, mount_bpffs

ROOT = Path(__file__).resolve().parents[2]


def build_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bpf_objects", ROOT / "build_hook" / "bpf_objects.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(root: Path) -> dict[str, bytes]:
    shutil.copytree(ROOT / "bpf", root / "bpf")
    (root / "src" / "softunicast" / "kernel").mkdir(parents=True)
    return {path.name: path.read_bytes() for path in build_hook().compile_objects(root)}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return build(tmp_path_factory.mktemp("first"))


def test_two_builds_are_the_same_bit_by_bit(built: dict[str, bytes], tmp_path: Path) -> None:
    assert build(tmp_path / "a" / "longer" / "way" / "to" / "it") == built


def test_what_is_loaded_is_what_the_sources_say(built: dict[str, bytes]) -> None:
    """Otherwise all other tests here would test something else."""
    assert {path.name: path.read_bytes() for path in objects.OBJECTS.glob("*.o")} == built


def test_nothing_is_declared_only() -> None:
    """Forward declarations come out in an order that depends on the lengths of paths: see bpf/rewrite.h."""
    for path in sorted(objects.OBJECTS.glob("*.o")):
        assert [found.name for found in abigen.read_btf(path) if found.kind == abigen.FWD] == [], path.name


def test_no_path_of_the_machine_is_in_an_object(built: dict[str, bytes]) -> None:
    machine = [str(ROOT), str(Path.home()), str(Path(ziglang.__file__).parent), "/tmp/", "site-packages"]
    for name, data in built.items():
        for path in machine:
            assert path.encode() not in data, (name, path)


def test_objects_that_are_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "OBJECTS", tmp_path)
    with pytest.raises(HostError, match=r"director.bpf.o: the BPF objects are not built; fix: make setup"):
        BpfObject.load("director")
    (tmp_path / "director.bpf.o").write_bytes(b"\x7fELF and then nothing")
    with pytest.raises(KernelError, match="opening director"):
        BpfObject.load("director")


def test_the_verifiers_word_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads beyond the packet: the line that says so, not its statistics, not "run as root"."""
    source = tmp_path / "bpf" / "broken.bpf.c"
    source.parent.mkdir()
    for header in ("bpf.h", "abi.h"):
        shutil.copy(ROOT / "bpf" / header, source.parent)
    source.write_text(
        '#include "bpf.h"\nSEC("xdp") int broken(struct xdp_md *xdp)\n{ return *(__u8 *)(long)xdp->data; }\nLICENSE;\n'
    )
    (tmp_path / "src" / "softunicast" / "kernel").mkdir(parents=True)
    (target,) = build_hook().compile_objects(tmp_path)
    monkeypatch.setattr(objects, "OBJECTS", target.parent)
    with pytest.raises(KernelError, match=r"the kernel refused broken: .* \(EACCES\); fix: see what"):
        BpfObject.load("broken")


def test_a_pin_that_cannot_be_made_leaves_no_attachment(mount: Path) -> None:
    datapath = opened(mount)
    index = socket.if_nametoindex(ONRAMP)
    try:
        with pytest.raises(KernelError, match="pinning"):
            Link.attach(
                datapath._objects["guard"].programs["guard"], index, ATTACH_TCX_EGRESS, mount / "no" / "pin"
            )
        with pytest.raises(KernelError, match="pinning"):
            objects.attach_xdp(
                datapath._objects["director"].programs["director"], index, mount / "no" / "pin"
            )
        assert not has_xdp(ONRAMP)
    finally:
        held = numbers(datapath)
        datapath.remove()
    wait_until_gone(held)


def test_a_bpffs_is_mounted_once(mount: Path) -> None:
    assert not have_bpffs(mount)
    mount_bpffs(mount)
    assert have_bpffs(mount)
    (mount / "deeper").mkdir()
    mount_bpffs(mount / "deeper")  # lies in one already
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    assert mounts.count(str(mount)) == 1
    assert str(mount / "deeper") not in mounts


def test_a_bpffs_that_cannot_be_mounted(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(HostError, match="File exists; fix: name another one"):
        mount_bpffs(blocked)
    with pytest.raises(HostError, match="Not a directory; fix: name another one"):
        mount_bpffs(blocked / "below")
