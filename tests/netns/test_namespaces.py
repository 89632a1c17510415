"""Network namespaces by name: made, entered for one call, removed, and half-made ones cleared away."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.core.errors import KernelError
from softunicast.kernel import namespaces, offload

OWN = Path("/proc/thread-self/ns/net")


@pytest.fixture
def name() -> Iterator[str]:
    name = f"sutest-namespaces-{os.getpid()}"
    namespaces.create(name)
    yield name
    namespaces.delete(name)


def test_calls_run_inside_and_the_caller_stays_outside(name: str) -> None:
    before = str(OWN.readlink())

    assert str(namespaces.run_in(name, OWN.readlink)) == f"net:[{namespaces.inode(name)}]"
    assert str(OWN.readlink()) == before != f"net:[{namespaces.inode(name)}]"


def test_children_of_a_call_are_born_inside(name: str) -> None:
    child = namespaces.run_in(name, subprocess.run, ["readlink", "/proc/self/ns/net"], capture_output=True)
    assert child.stdout.decode().strip() == f"net:[{namespaces.inode(name)}]"


def test_ip_netns_knows_it(name: str) -> None:
    done = subprocess.run(["ip", "netns", "exec", name, "readlink", "/proc/self/ns/net"], capture_output=True)
    assert done.stdout.decode().strip() == f"net:[{namespaces.inode(name)}]"


def test_what_a_call_raises_reaches_the_caller(name: str) -> None:
    with pytest.raises(ZeroDivisionError):
        namespaces.run_in(name, lambda: 1 // 0)


def test_an_interruption_comes_after_the_call_is_done(name: str) -> None:
    done = []

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        # The main thread has the signal now; give it every chance to run ahead.
        time.sleep(0.2)
        done.append(threading.current_thread())

    with pytest.raises(KeyboardInterrupt):
        namespaces.run_in(name, work)
    assert len(done) == 1


def test_a_taken_name_is_refused_and_left_alone(name: str) -> None:
    inode = namespaces.inode(name)
    with pytest.raises(KernelError, match="File exists"):
        namespaces.create(name)
    assert namespaces.inode(name) == inode


def test_deleting_leaves_no_file_and_no_mount_also_twice(name: str) -> None:
    for _ in range(2):
        namespaces.delete(name)
        assert not namespaces.path(name).exists()
        assert name not in Path("/proc/self/mountinfo").read_text()
    with pytest.raises(KernelError, match="No such file"):
        namespaces.run_in(name, os.getpid)


def test_a_creation_that_was_killed_half_way_is_no_namespace_and_can_be_deleted() -> None:
    name = f"sutest-half-{os.getpid()}"
    namespaces.path(name).touch(mode=0o444)

    assert namespaces.inode(name) is None
    namespaces.delete(name)

    assert not namespaces.path(name).exists()


def test_mounts_are_found_deepest_first(tmp_path: Path) -> None:
    outer, inner = tmp_path / "a b", tmp_path / "a b" / "c"
    outer.mkdir()
    try:
        namespaces.mount("tmpfs", "tmpfs", outer)
        inner.mkdir()
        namespaces.mount("tmpfs", "tmpfs", inner)

        assert namespaces.mounts_under(tmp_path) == (inner, outer)
        assert namespaces.mounts_under(outer) == (inner, outer)
        assert namespaces.mounts_under(tmp_path / "a") == ()
    finally:
        for target in namespaces.mounts_under(tmp_path):
            namespaces.unmount(target)
    assert namespaces.mounts_under(tmp_path) == ()


def test_checksum_offload_is_switched_on_one_end_only(name: str) -> None:
    make = "ip link add name v0 type veth peer name v1"
    namespaces.run_in(name, subprocess.run, make.split(), check=True)

    namespaces.run_in(name, offload.set_tx_checksum, "v0", False)
    assert namespaces.run_in(name, offload.tx_checksum, "v0") is False
    assert namespaces.run_in(name, offload.tx_checksum, "v1") is True

    namespaces.run_in(name, offload.set_tx_checksum, "v0", True)
    assert namespaces.run_in(name, offload.tx_checksum, "v0") is True


@pytest.mark.parametrize("interface", ["v9", "", "sixteen-letters-"])
def test_offload_of_what_is_no_interface_is_refused(name: str, interface: str) -> None:
    with pytest.raises(KernelError, match="cannot switch checksum offload"):
        namespaces.run_in(name, offload.set_tx_checksum, interface, False)
