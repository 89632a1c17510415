"""`softunicast attach` and `detach` on real cgroups and tables, without an agent."""

from __future__ import annotations

import ctypes
import errno
import subprocess
from pathlib import Path

import pytest
from tests.bpf.place import TIMEOUT_S, Place, until

from softunicast.kernel import cgroup_tree, cgroups
from softunicast.kernel.agreements import AGREEMENTS_MAX, Agreements, Lasting

CGROUP1 = Path("/sys/fs/cgroup/memory")


def test_attach_and_detach(place: Place) -> None:
    unit = place.make("unit")
    where = ["--cgroup", str(unit)]
    assert place.ask("attach", *where, "--pool", "gb") == (0, f"{unit} leaves from pool gb\n", "")
    assert place.ask("attach", *where, "--tag", "pool=gb") == (
        0,
        f"{unit} leaves from pool gb, as before\n",
        "",
    )
    assert place.pools() == {"unit+": "gb"}
    assert place.ask("attach", "--cgroup", "/unit", "--pool", "fr") == (
        0,
        f"{unit} leaves from pool fr\n",
        "",
    )
    assert place.pools() == {"unit+": "fr"}
    assert place.joining.tidy() == 0
    assert place.ask("detach", *where) == (0, f"{unit} is in no agreement any more\n", "")
    assert place.pools() == {}
    place.refused(2, "is in no agreement of its own", "detach", *where)


def test_a_cgroup_that_is_made_in_the_place_of_another(place: Place) -> None:
    """In the agreement before any process can be in it; nothing of the former one stays."""
    unit = place.make("unit")
    where = ["--cgroup", "/unit"]
    assert place.ask("attach", *where, "--pool", "gb")[0] == 0
    for _ in range(3):
        unit.rmdir()
        assert place.joining.tidy() == 0
        assert place.pools() == {"unit+ gone": "gb"}
        [listed] = place.sockets.members()
        assert (listed.entry.path, listed.entry.place, listed.processes) == (None, unit, ())
        place.make("unit")
        assert place.pools() == {"unit+": "gb"}
    assert place.ask("attach", *where, "--pool", "gb")[1] == f"{unit} leaves from pool gb, as before\n"
    assert place.ask("attach", *where, "--pool", "fr")[0] == 0
    unit.rmdir()
    place.make("unit")
    assert place.pools() == {"unit+": "fr"}
    assert place.ask("detach", *where)[0] == 0
    unit.rmdir()
    place.make("unit")
    assert place.pools() == {}


def test_only_that_place(place: Place) -> None:
    """Not the same name elsewhere, nor another name there."""
    place.joining.attach(place.make("unit"), "gb")
    for name in ("units", "uni", "other", "other/unit", "unit/unit"):
        place.make(name)
    assert place.pools() == {"unit+": "gb"}


def test_detached_while_it_is_stopped(place: Place) -> None:
    unit = place.make("unit")
    where = ["--cgroup", "/unit"]
    assert place.ask("attach", *where, "--pool", "gb")[0] == 0
    unit.rmdir()
    assert place.ask("detach", *where) == (0, f"{unit} is in no agreement any more\n", "")
    place.refused(2, "is in no agreement of its own", "detach", *where)
    place.make("unit")
    assert place.pools() == {}


def test_once_is_until_the_cgroup_goes(place: Place) -> None:
    unit = place.make("unit")
    attach = ["attach", "--cgroup", "/unit", "--pool", "gb"]
    assert place.ask(*attach, "--once")[0] == 0
    assert place.ask(*attach, "--once")[1] == f"{unit} leaves from pool gb, as before\n"
    assert place.ask(*attach)[1] == f"{unit} leaves from pool gb\n"
    assert place.pools() == {"unit+": "gb"}
    assert place.ask(*attach, "--once")[1] == f"{unit} leaves from pool gb\n"
    assert place.pools() == {"unit": "gb"}
    unit.rmdir()
    place.make("unit")
    assert place.joining.tidy() == 1
    assert place.pools() == {}


def test_a_place_goes_with_the_cgroup_above(place: Place) -> None:
    above, unit = place.make("slice"), place.make("slice/unit")
    place.joining.attach(unit, "gb")
    unit.rmdir()
    above.rmdir()
    assert place.joining.tidy() == 1
    assert (place.pools(), place.joining._table.lasting()) == ({}, ())


def test_a_unit_that_is_restarted_while_it_is_attached(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = place.make("unit")
    table, real, made = place.joining._table, Agreements.set_lasting, []

    def restarted(self: Agreements, one: Lasting, pool: str) -> None:
        if not made:
            unit.rmdir()
            made.append(place.make("unit"))
        real(self, one, pool)

    monkeypatch.setattr(Agreements, "set_lasting", restarted)
    assert place.joining.attach(unit, "gb")
    assert cgroups.number(unit) in {one.cgroup for one in table.list()}
    assert place.joining.tidy() == 1
    assert place.pools() == {"unit+": "gb"}


def test_a_full_table_has_room_for_what_lasts(place: Place) -> None:
    """A cgroup in the place of another gets its room; for one more there is none, and nothing changes."""
    unit, more = place.make("unit"), place.make("more")
    place.joining.attach(unit, "gb")
    table = place.joining._table
    others = range(1 << 60, (1 << 60) + AGREEMENTS_MAX - 1)
    try:
        for number in others:
            table.excuse(number)
        unit.rmdir()
        place.make("unit")
        assert cgroups.number(unit) in {one.cgroup for one in table.list()}
        code, _, complaint = place.ask("attach", "--cgroup", str(more), "--pool", "gb")
        assert (code, "4096 cgroups are in agreements" in complaint) == (3, True)
        assert [one.name for one in table.lasting()] == ["unit"]
    finally:
        for number in others:
            table.remove(number)


def test_what_the_agent_lists(place: Place) -> None:
    unit = place.make("unit")
    place.joining.attach(unit, "gb")
    with place.start("run", "--pool", "fr", "--", "cat") as child:
        until(lambda: cgroup_tree.name_of(child.pid) == "cat")
        run, attached = sorted(place.sockets.members(), key=lambda one: str(one.entry.path))
        assert (run.entry.joined, run.entry.pool, run.processes) == (True, "fr", ((child.pid, "cat"),))
        assert (attached.entry.path, attached.entry.pool, attached.processes) == (unit, "gb", ())
        assert not attached.entry.joined
        path = str(run.entry.path)
        assert place.sockets.withdraw() == (path,)
        place.sockets.publish()
        place.refused(2, "was made by softunicast run", "attach", "--cgroup", path, "--pool", "gb")
        place.refused(2, "was made by softunicast run", "detach", "--cgroup", path)
        child.communicate("", timeout=TIMEOUT_S)


class Refusing:
    """A C library whose open_by_handle_at is not permitted."""

    def open_by_handle_at(self, *_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1


@pytest.mark.parametrize("permitted", [True, False])
def test_an_entry_goes_with_its_cgroup(
    place: Place, permitted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not permitted:  # as for an agent without CAP_DAC_READ_SEARCH
        monkeypatch.setattr(cgroup_tree, "_libc", Refusing())
    unit = place.make("unit")
    place.joining.attach(unit, "gb", lasts=False)
    unit.rmdir()
    assert place.pools() == {"? gone": "gb"}
    again = place.make("unit")
    assert place.joining.tidy() == 1
    assert place.pools() == {}
    assert again.is_dir()


def test_an_excused_cgroup_stays_so(place: Place) -> None:
    unit = place.make("unit")
    place.joining._table.excuse(cgroups.number(unit))
    place.refused(2, "is excused", "attach", "--cgroup", str(unit), "--pool", "gb")
    place.refused(2, "is excused", "detach", "--cgroup", str(unit))


def test_what_is_no_cgroup_of_ours(place: Place) -> None:
    other = place.root.with_name(f"{place.root.name}-other")
    other.mkdir()
    try:
        for path, what in (
            (other, "does not lie below"),
            (place.root, "is the root of all cgroups"),
            (place.folder, "is no cgroup"),
            (place.root / "nothing", "there is no cgroup"),
            (place.root / "cgroup.procs", "is no cgroup"),
            (CGROUP1, "is a cgroup of version 1"),
        ):
            if path == CGROUP1 and not CGROUP1.exists():
                continue  # a host without the old hierarchies
            place.refused(2, what, "attach", "--pool", "gb", "--cgroup", str(path))
            if path.name != "nothing":  # that might come
                place.refused(2, what, "detach", "--cgroup", str(path))
    finally:
        other.rmdir()


def test_a_container_with_a_network_of_its_own(place: Place) -> None:
    unit = place.make("unit")
    with subprocess.Popen(["unshare", "-n", "sleep", "60"]) as child:
        try:
            until(lambda: cgroup_tree.name_of(child.pid) == "sleep")
            (place.make("unit/inner") / "cgroup.procs").write_text(str(child.pid))
            what = f"process {child.pid} (sleep) in {unit} has a network of its own"
            place.refused(2, what, "attach", "--pool", "gb", "--cgroup", str(unit))
        finally:
            child.kill()
