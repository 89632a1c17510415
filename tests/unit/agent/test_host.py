"""The journal of host changes: whatever happens in between, a clean stop leaves the host as it was found."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.agent.fakes import OTHER, SHARED, Calls

from softunicast.agent.host import HostChanges
from softunicast.core.errors import HostError, KernelError
from softunicast.core.onramps import Tun

ARP = "net/ipv4/conf/uplink/arp_ignore"
FORWARDING = "net/ipv4/conf/clients/forwarding"


def open_host(path: Path, calls: Calls, boot_id: str = "boot") -> HostChanges:
    host = HostChanges(path / "host.json", boot_id, calls)
    host._load()
    return host


@pytest.fixture
def calls() -> Calls:
    calls = Calls()
    calls.settings = {ARP: 0, FORWARDING: 0}
    return calls


def test_journal_is_written_before_the_change(tmp_path: Path, calls: Calls) -> None:
    host = open_host(tmp_path, calls)
    seen: list[object] = []
    write = calls.write

    def look(name: str, value: int) -> None:
        seen.append(json.loads((tmp_path / "host.json").read_text())["settings"][name])
        write(name, value)

    calls.write = look  # type: ignore[method-assign]
    assert host.raise_setting(ARP, 1)
    assert seen == [{"original": 0, "ours": 1}]
    assert (tmp_path / "host.json").stat().st_mode & 0o777 == 0o600


def test_what_is_enough_is_left_alone(tmp_path: Path, calls: Calls) -> None:
    calls.settings[ARP] = 2
    host = open_host(tmp_path, calls)
    assert not host.raise_setting(ARP, 1)
    assert not host.raise_setting("net/ipv4/conf/gone/arp_ignore", 1)
    assert host.restore() == []
    assert calls.done == []
    assert list(tmp_path.iterdir()) == []


def test_originals_survive_a_crash(tmp_path: Path, calls: Calls) -> None:
    open_host(tmp_path, calls).raise_setting(ARP, 1)
    second = open_host(tmp_path, calls)  # the first never said good-bye
    assert not second.raise_setting(ARP, 1)
    second.restore()
    assert calls.settings[ARP] == 0
    assert not (tmp_path / "host.json").exists()


def test_setting_changed_by_somebody_else_is_theirs(tmp_path: Path, calls: Calls) -> None:
    host = open_host(tmp_path, calls)
    host.raise_setting(ARP, 1)
    calls.settings[ARP] = 8
    host.restore()
    assert calls.settings[ARP] == 8


def test_lowered_setting_is_raised_again_and_the_first_original_restored(
    tmp_path: Path, calls: Calls
) -> None:
    calls.settings[ARP] = -1
    host = open_host(tmp_path, calls)
    host.raise_setting(ARP, 1)
    calls.settings[ARP] = 0
    assert host.raise_setting(ARP, 1)
    host.restore()
    assert calls.settings[ARP] == -1


def test_address_that_was_there_before_stays(tmp_path: Path, calls: Calls) -> None:
    calls.on_loopback = {SHARED}
    host = open_host(tmp_path, calls)
    assert host.have_addresses(frozenset({SHARED, OTHER}))
    assert calls.on_loopback == {SHARED, OTHER}
    assert not host.have_addresses(frozenset({SHARED, OTHER}))
    assert host.have_addresses(frozenset({SHARED}))
    host.restore()
    assert calls.on_loopback == {SHARED}


def test_journal_of_another_boot_says_nothing(tmp_path: Path, calls: Calls) -> None:
    open_host(tmp_path, calls, "monday").have_addresses(frozenset({SHARED}))
    host = open_host(tmp_path, calls, "tuesday")
    assert host.addresses == set()
    host.restore()
    assert calls.on_loopback == {SHARED}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "boot_id": "boot", "settings": 3}']
)
def test_damaged_journal_is_refused(tmp_path: Path, calls: Calls, text: str) -> None:
    (tmp_path / "host.json").write_text(text)
    with pytest.raises(HostError, match=r"host\.json.*; fix: "):
        open_host(tmp_path, calls)


class Killed(BaseException):
    """The process ended here."""


class Mortal(Calls):
    """The host's calls, of a process that is killed before or after one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls_left = 10**9

    def _spend(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Killed

    def write(self, name: str, value: int) -> None:
        self._spend()
        super().write(name, value)
        self._spend()

    def add(self, address: IPv4Address) -> bool:
        self._spend()
        fresh = super().add(address)
        self._spend()
        return fresh

    def remove(self, address: IPv4Address) -> bool:
        self._spend()
        there = super().remove(address)
        self._spend()
        return there


steps = st.one_of(
    st.tuples(st.just("raise"), st.sampled_from([ARP, FORWARDING])),
    st.tuples(st.just("restore"), st.sampled_from([ARP, FORWARDING])),
    st.tuples(st.just("addresses"), st.frozensets(st.sampled_from([SHARED, OTHER]))),
)


@given(
    st.fixed_dictionaries({ARP: st.integers(0, 2), FORWARDING: st.integers(0, 1)}),
    st.frozensets(st.sampled_from([SHARED, OTHER])),
    st.lists(st.tuples(st.lists(steps, max_size=5), st.integers(0, 12)), max_size=4),
)
def test_any_lives_and_deaths_then_a_clean_stop(
    settings: dict[str, int],
    addresses: frozenset[IPv4Address],
    lives: list[tuple[list[tuple[str, object]], int]],
) -> None:
    calls = Mortal()
    calls.settings, calls.on_loopback = dict(settings), set(addresses)
    with TemporaryDirectory() as directory:
        for life, calls_left in lives:
            calls.calls_left = calls_left
            host = open_host(Path(directory), calls)
            try:
                for what, value in life:
                    if what == "raise":
                        host.raise_setting(str(value), 1)
                    elif what == "restore":
                        host.restore_setting(str(value))
                    else:
                        assert isinstance(value, frozenset)
                        host.have_addresses(value)
                        assert value <= calls.on_loopback
            except Killed:
                pass
        calls.calls_left = 10**9
        assert open_host(Path(directory), calls).restore() == []
        assert list(Path(directory).iterdir()) == []
    assert calls.settings == settings
    assert calls.on_loopback == addresses


# -- TUN devices ---------------------------------------------------------------------------------------------

DEVICE = Tun(IPv4Interface("10.9.0.1/24"))


def test_a_device_is_noted_made_kept_and_removed(tmp_path: Path, calls: Calls) -> None:
    host = open_host(tmp_path, calls)
    seen: list[object] = []
    make = calls.make_tun

    def look(name: str, device: Tun) -> None:
        seen.append(json.loads((tmp_path / "host.json").read_text())["tuns"])
        make(name, device)

    calls.make_tun = look  # type: ignore[method-assign]
    assert host.have_tun("apps", DEVICE)
    assert seen == [["apps"]]
    assert not host.have_tun("apps", DEVICE)
    second = open_host(tmp_path, calls)  # the first was killed
    assert not second.have_tun("apps", DEVICE)
    assert not second.keep_tuns(["apps"])
    assert second.keep_tuns([])
    assert calls.done == ["make apps", "remove apps"]
    assert second.restore() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        {"owner": 65534},
        {"owner": None},
        {"persistent": False},
        {"is_tun": False},
        {"mtu": 9},
        {"up": False},
        {"addresses": ()},
    ],
)
def test_a_device_that_is_not_as_it_was_made(tmp_path: Path, calls: Calls, change: dict[str, Any]) -> None:
    host = open_host(tmp_path, calls)
    host.have_tun("apps", DEVICE)
    calls.tuns["apps"] = replace(calls.tuns["apps"], **change)
    assert host.have_tun("apps", DEVICE)
    assert calls.done == ["make apps", "remove apps", "make apps"]
    calls.tuns["apps"] = replace(calls.tuns["apps"], open=True)
    assert not host.have_tun("apps", DEVICE)


def test_other_settings_make_another_device(tmp_path: Path, calls: Calls) -> None:
    host = open_host(tmp_path, calls)
    for device in (DEVICE, replace(DEVICE, mtu=1400), replace(DEVICE, offload=True)):
        assert host.have_tun("apps", device)
    assert not host.have_tun("apps", replace(DEVICE, offload=True, users=("alice",)))


def test_an_interface_of_somebody_else(tmp_path: Path, calls: Calls) -> None:
    calls.make_tun("apps", DEVICE)
    calls.done.clear()
    host = open_host(tmp_path, calls)
    with pytest.raises(HostError, match="there is an interface apps, which is to be made for an on-ramp"):
        host.have_tun("apps", DEVICE)
    assert host.restore() == []
    assert calls.done == []


def test_a_device_that_cannot_be_removed(tmp_path: Path, calls: Calls) -> None:
    host = open_host(tmp_path, calls)
    host.have_tun("apps", DEVICE)

    def refuse(name: str) -> None:
        raise KernelError(f"cannot remove {name}")

    calls.remove_tun = refuse  # type: ignore[method-assign]
    assert [str(error) for error in host.restore()] == ["cannot remove apps"]
    assert open_host(tmp_path, calls).tuns == {"apps"}
