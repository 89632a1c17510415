"""Another version of softunicast meets a running data path. Its objects are really compiled, from sources that lay
something out differently: what cannot be shared is refused, and what runs goes on as if nothing had happened.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from build_hook.bpf_objects import compile_objects
from tests.bpf.frames import FROM_WIRE, REMOTE, local_end, tcp
from tests.bpf.kernel_objects import left_of, numbers, opened, pins, running, wait_until_gone
from tests.bpf.world import World, state

from softunicast.core.errors import KernelError
from softunicast.kernel import abi, objects
from softunicast.kernel.datapath import OBJECTS

ROOT = Path(__file__).resolve().parents[2]
FIX = 'fix: start the version of softunicast that made it once more, stop that with on_stop = "restore", then'


@dataclass(frozen=True)
class Change:
    """Of a file of the sources: a pattern, and what another version has there."""

    file: str
    ours: str
    theirs: str


NUMBERED = Change("abi.h", r"(#define ABI_VERSION) \d+", r"\1 99")
FLOW = Change("abi.h", r"(struct flow {)", r"\1 __u64 more;")
CLAIM_KEY = Change("abi.h", r"(struct claim_key {)", r"\1 __u32 more;")
FLAGS = Change("maps.h", r"__uint\(map_flags, BPF_F_NO_PREALLOC\);(?=[^}]*struct onramp\))", "")
ENTRIES = Change("maps.h", r"\(max_entries, 1024\)(?=[^}]*struct server\))", "(max_entries, 512)")
REASON = Change("abi.h", r"(?=REASON_MAX,)", "REASON_NEW, ")
TRAFFIC = Change("abi.h", r"(?=TRAFFIC_MAX,)", "TRAFFIC_NEW, ")
TRIAL = Change("scratch.h", r"(struct trial {)", r"\1 __u64 more;")

NUMBER_SAID = (
    f"the running data path has layout {abi.AbiLimit.ABI_VERSION}, this version of softunicast layout 99"
)
LAYOUT_SAID = (
    r"the map %s of the running data path is laid out as by another version .*\(\d+ \+ \d+ bytes, here \d+ "
)

Compile = Callable[..., None]
OF_IPV4 = "*[!6].bpf.c"  # enough for what is refused before anything is loaded
ATTACHED = 4  # programs; the others are gone with the process


@pytest.fixture
def become(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    """From then on this process is another version."""
    root = tmp_path / "version"

    def compiled(*changes: Change, only: str = "*.bpf.c") -> None:
        """`only`: the sources of which objects are compiled anew; the others stay as they are."""
        shutil.copytree(ROOT / "bpf", root / "bpf")
        shutil.copytree(objects.OBJECTS, root / "src/softunicast/kernel/bpf")
        wanted = {path.name for path in (root / "bpf").glob(only)} & {f"{name}.bpf.c" for name in OBJECTS}
        for source in (root / "bpf").glob("*.bpf.c"):
            if source.name not in wanted:
                source.unlink()
        for change in changes:
            path = root / "bpf" / change.file
            text, found = re.subn(change.ours, change.theirs, path.read_text(), count=1)
            assert found, change
            path.write_text(text)
        made = compile_objects(root)
        assert made
        monkeypatch.setattr(objects, "OBJECTS", made[0].parent)
        if NUMBERED in changes:
            monkeypatch.setattr(abi, "AbiLimit", SimpleNamespace(ABI_VERSION=99))

    return compiled


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((NUMBERED, FLOW), NUMBER_SAID),
        ((FLOW,), LAYOUT_SAID % "flows"),
        ((CLAIM_KEY,), LAYOUT_SAID % "claims"),
        ((FLAGS,), LAYOUT_SAID % "onramps"),
        ((ENTRIES,), LAYOUT_SAID % "servers"),
        ((REASON, FLOW), LAYOUT_SAID % "flows"),
    ],
    ids=["number and flow", "flow", "claim key", "flags", "entries", "flow and counters"],
)
def test_refused(mount: Path, become: Compile, changes: tuple[Change, ...], said: str) -> None:
    datapath = running(mount)
    held, kept = numbers(datapath), pins(mount)
    datapath.close()
    become(*changes, only=OF_IPV4)
    with pytest.raises(KernelError, match=f"^{said}.*; {FIX}"):
        opened(mount)
    left = left_of(held)
    assert (left["map"], left["link"]) == (held["map"], held["link"])
    assert len(left["prog"]) >= ATTACHED
    assert pins(mount) == kept


def test_what_was_refused_left_everything_as_it_was(
    mount: Path, become: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation goes on, in both directions, with the version that began it."""
    datapath = running(mount)
    world = World(datapath)
    local = local_end(world.out(tcp()).frame)
    claims, flows, counters = world.claims(), world.flows(), world.counters()
    become(FLOW, REASON, only=OF_IPV4)
    with pytest.raises(KernelError):
        opened(mount)
    assert (world.claims(), world.flows(), world.counters()) == (claims, flows, counters)
    assert world.back(tcp(REMOTE, local, "SA", macs=FROM_WIRE, acknowledgement=6)).outcome == "in"
    assert local_end(world.out(tcp(flags="A")).frame) == local
    monkeypatch.undo()
    again = opened(mount)
    assert again.read() == state()
    assert again.traffic()["out"] == 2
    again.remove()


@pytest.mark.parametrize("changes", [(REASON, TRAFFIC), (TRIAL,)], ids=["counters", "scratch"])
def test_what_no_conversation_depends_on_is_made_anew(
    mount: Path, become: Compile, changes: tuple[Change, ...]
) -> None:
    """A version that knows one more reason, say: it takes over, conversations and all, and counts from 0."""
    datapath = running(mount)
    held = numbers(datapath)
    local = local_end(World(datapath).out(tcp()).frame)
    claims = World(datapath).claims()
    datapath.close()
    become(*changes)
    again = opened(mount)
    assert again.adopted
    assert again.read() == state()
    world = World(again)
    assert world.claims() == claims
    assert local_end(world.out(tcp(flags="A")).frame) == local
    assert world.run("director", tcp(REMOTE, "198.51.100.10:9000", macs=FROM_WIRE), "upl").verdict == "drop"
    now = numbers(again)
    assert now["link"] == held["link"]
    wait_until_gone({"prog": held["prog"], "map": held["map"] - now["map"], "link": set()})
    again.remove()
    wait_until_gone(now)
