"""What the agent changes on the host beside the data path: network settings, addresses on `lo`, TUN devices.

Every change is written to a journal, with what was there before, and only then made; the journal outlives a
crash, so that the clean stop of a later agent still restores what was there before the first one. A setting is
only ever raised to what is needed, and only put back while it is as we left it; an address or device that was
there before us is not ours to remove. None of them survives a boot, and neither does the journal's word.

All of it blocks for milliseconds: call it from the kernel thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Protocol

from softunicast.core.endpoints import address_order
from softunicast.core.errors import HostError, SoftunicastError
from softunicast.core.onramps import Tun
from softunicast.core.slices import IPAddress
from softunicast.kernel import links, sysctl, tun

JOURNAL_FILE: Final = "host.json"
JOURNAL_FORMAT: Final = 1
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class HostCalls(Protocol):
    """The things done to the host, and how to look first."""

    def read(self, name: str) -> int | None: ...
    def write(self, name: str, value: int) -> None: ...
    def addresses(self) -> frozenset[IPAddress]: ...
    def add(self, address: IPAddress) -> bool: ...
    def remove(self, address: IPAddress) -> bool: ...
    def find_tun(self, name: str) -> tun.Found | None: ...
    def make_tun(self, name: str, device: Tun) -> None: ...
    def open_tun(self, name: str, device: Tun) -> int: ...
    def remove_tun(self, name: str) -> None: ...


class KernelCalls:
    """The real ones."""

    read = staticmethod(sysctl.read)
    write = staticmethod(sysctl.write)
    addresses = staticmethod(links.loopback_addresses)
    add = staticmethod(links.add_loopback_address)
    remove = staticmethod(links.remove_loopback_address)
    find_tun = staticmethod(tun.find)
    make_tun = staticmethod(tun.make)
    open_tun = staticmethod(tun.attach)
    remove_tun = staticmethod(tun.remove)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a setting was, and what we made it."""

    original: int
    ours: int


class HostChanges:
    """The journal and the changes it records."""

    def __init__(self, path: Path, boot_id: str, calls: HostCalls) -> None:
        self._path = path
        self._boot_id = boot_id
        self._calls = calls
        self.settings: dict[str, Setting] = {}
        self.addresses: set[IPAddress] = set()
        self.tuns: set[str] = set()

    @classmethod
    def open(cls, state_dir: Path, calls: HostCalls | None = None) -> HostChanges:
        """Takes up the journal of an earlier agent. Raises HostError when it cannot be read."""
        host = cls(state_dir / JOURNAL_FILE, _BOOT_ID.read_text().strip(), calls or KernelCalls())
        host._load()
        return host

    def raise_setting(self, name: str, at_least: int) -> bool:
        """Makes the setting at least this; True when it had to be changed. One that is not there is left."""
        value = self._calls.read(name)
        if value is None or value >= at_least:
            return False
        known = self.settings.get(name)
        if known is None or known.ours != at_least:
            self.settings[name] = Setting(value if known is None else known.original, at_least)
            self._save()
        self._calls.write(name, at_least)
        return True

    def restore_setting(self, name: str) -> None:
        """Puts the original back, unless somebody else changed the setting after us or it is gone."""
        setting = self.settings.get(name)
        if setting is None:
            return
        if self._calls.read(name) == setting.ours:
            self._calls.write(name, setting.original)
        del self.settings[name]
        self._save()

    def have_addresses(self, wanted: frozenset[IPAddress]) -> bool:
        """Puts the wanted addresses on `lo` and takes those of ours away that are not; True when any moved."""
        there = self._calls.addresses()
        missing = wanted - there
        if missing - self.addresses:
            self.addresses |= missing
            self._save()
        for address in sorted(missing, key=address_order):
            self._calls.add(address)
        surplus = self.addresses - wanted
        for address in sorted(surplus, key=address_order):
            self._calls.remove(address)
        if surplus:
            self.addresses -= surplus
            self._save()
        return bool(missing or surplus)

    def have_tun(self, name: str, device: Tun) -> bool:
        """Makes the device, also anew when it is not as it was made: the program that has it is cut off. False when
        it is there. Raises HostError when an interface of that name is not ours."""
        found = self._calls.find_tun(name)
        if found is not None and name not in self.tuns:
            raise HostError(
                f"there is an interface {name}, which is to be made for an on-ramp",
                "give the on-ramp another name, or remove the interface",
            )
        if found is not None and found.is_as_made(device):
            return False
        if found is not None:
            self._calls.remove_tun(name)
        if name not in self.tuns:
            self.tuns.add(name)
            self._save()
        self._calls.make_tun(name, device)
        return True

    def open_tun(self, name: str, device: Tun) -> int:
        """A descriptor of a device that `have_tun` made. KernelError with EBUSY while a program has it."""
        return self._calls.open_tun(name, device)

    def keep_tuns(self, wanted: Collection[str]) -> bool:
        """Removes the devices of ours that are not wanted; True when there was one."""
        surplus = self.tuns - set(wanted)
        for name in sorted(surplus):
            self._calls.remove_tun(name)
            self.tuns.discard(name)
            self._save()
        return bool(surplus)

    def restore(self) -> list[SoftunicastError]:
        """Undoes everything, as far as it goes; returns what went wrong. The journal goes with the last."""
        errors: list[SoftunicastError] = []
        try:
            self.have_addresses(frozenset())
        except SoftunicastError as error:
            errors.append(error)
        for name in tuple(self.settings):
            try:
                self.restore_setting(name)
            except SoftunicastError as error:
                errors.append(error)
        try:
            self.keep_tuns(())
        except SoftunicastError as error:
            errors.append(error)
        if not self.settings and not self.addresses and not self.tuns:
            self._path.unlink(missing_ok=True)
        return errors

    def _load(self) -> None:
        try:
            journal = json.loads(self._path.read_text())
            if journal["format"] != JOURNAL_FORMAT:
                raise ValueError(f"format {journal['format']}")
            if journal["boot_id"] != self._boot_id:
                return
            self.settings = {
                str(name): Setting(int(value["original"]), int(value["ours"]))
                for name, value in journal["settings"].items()
            }
            self.addresses = {ip_address(text) for text in journal["addresses"]}
            self.tuns = {str(name) for name in journal.get("tuns", ())}
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise HostError(
                f"cannot read what an earlier agent changed on this host, {self._path}: {error}",
                "look at it, undo by hand what it lists, then remove the file",
            ) from error

    def _save(self) -> None:
        """Whole or not at all, and on disk before the change it announces is made."""
        journal = {
            "format": JOURNAL_FORMAT,
            "boot_id": self._boot_id,
            "settings": {
                name: {"original": setting.original, "ours": setting.ours}
                for name, setting in self.settings.items()
            },
            "addresses": [str(address) for address in sorted(self.addresses, key=address_order)],
            "tuns": sorted(self.tuns),
        }
        fresh = self._path.with_suffix(".new")
        try:
            with os.fdopen(
                os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w"
            ) as file:
                json.dump(journal, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise HostError(
                f"cannot note in {self._path} what is about to change: {error.strerror}",
                "give [agent] state_dir a directory with space that root can write",
            ) from error
