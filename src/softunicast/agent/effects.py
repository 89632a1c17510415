"""The one place where the agent changes anything outside the ledger: data path and host, in a safe order.

Taking part:     TUN devices for programs are made; ARP is told to be quiet about addresses on `lo` before there
                 are any; an on-ramp forwards only while the egress program is attached to it, so that no packet
                 leaves untranslated; addresses come last, when director and guard already watch them.
Letting go:      programs are told of no pool any more; no new flows; on-ramps stop forwarding; addresses go while
                 director and guard still watch, or the kernel would answer for them from ports that are not ours;
                 then programs, then the rest.

All of it blocks: call it from the kernel thread. Nothing is decided here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Protocol

from softunicast.agent.decisions import addresses_here, without_new_flows
from softunicast.agent.host import HostChanges
from softunicast.agent.sockets import Member
from softunicast.core.desired import KernelState
from softunicast.core.errors import HostError, KernelError, SoftunicastError
from softunicast.core.onramps import Tun
from softunicast.core.slices import Slice
from softunicast.kernel import links
from softunicast.kernel.flows import Drop, Flow
from softunicast.kernel.sysctl import ipv4_conf, ipv6_conf
from softunicast.kernel.usage import Usage

# The kernel takes the larger of an interface's value and that of "all", so the interface's is raised, never set.
ARP_ANSWER_FOR_ITSELF: Final = 1  # arp_ignore: only for addresses of the interface that was asked
ARP_SPEAK_FOR_ITSELF: Final = 2  # arp_announce: only with the best address of the interface that asks


Device = tuple[links.Interface | None, str]


class DataPath(Protocol):
    """What the agent needs of softunicast.kernel.datapath.Datapath."""

    adopted: bool

    def read(self) -> KernelState: ...
    @property
    def state(self) -> KernelState: ...
    def apply(self, wanted: KernelState) -> int: ...
    def flows(self, limit: int, wanted: Callable[[Flow], bool] | None = None) -> tuple[int, list[Flow]]: ...
    def count_flows(self, slices: Iterable[Slice]) -> dict[Slice, int]: ...
    def attachment(self, onramp: str) -> str: ...
    def drops(self) -> list[Drop]: ...
    def traffic(self) -> dict[str, int]: ...
    def sweep(self) -> tuple[int, int]: ...
    def usage(self) -> dict[str, Usage]: ...
    def close(self) -> None: ...
    def remove(self) -> None: ...


class SocketPools(Protocol):
    """What the agent needs of softunicast.agent.sockets.Sockets."""

    def publish(self) -> None: ...
    def withdraw(self) -> tuple[str, ...]: ...
    def tidy(self) -> int: ...
    def members(self) -> list[Member]: ...


@dataclass(frozen=True, slots=True)
class Stopped:
    """What is left after `NodeEffects.stop`. `let_go`: the kernel uses no slice any more, so leases may be given
    back; `live`: live flows that were cut off, by slice; `errors`: what could not be undone; `orphans`: cgroups whose
    programs run on, now with the host's own address."""

    let_go: bool
    live: Mapping[Slice, int]
    errors: tuple[SoftunicastError, ...]
    orphans: tuple[str, ...] = ()


class NodeEffects:
    """The data path and the host of one server."""

    def __init__(
        self,
        datapath: DataPath,
        host: HostChanges,
        sockets: SocketPools,
        uplink: str,
        me: str,
        index_of: Callable[[str], int | None] = links.index_of,
        tuns: Mapping[str, Tun] = MappingProxyType({}),
    ) -> None:
        self.datapath = datapath
        self.host = host
        self.sockets = sockets
        self.missing_onramps: tuple[str, ...] = ()
        self.uplink = uplink
        self._me = me
        self._index_of = index_of
        self.tuns = tuns
        self._uplink_index = index_of(uplink)
        self._onramps: dict[str, int] = {}  # those in use: name -> number

    def uplink_is_gone(self) -> bool:
        """Whether the uplink is not the interface any more that the programs are attached to."""
        return self._index_of(self.uplink) != self._uplink_index

    def apply(self, wanted: KernelState) -> int:
        """Makes kernel and host what `wanted` says; returns the number of changes. Safe to repeat after an error.

        On-ramps whose interface is not there wait in `missing_onramps`. One that was made anew under its old
        name is detached first, because the attachment went with the old interface.
        """
        changes, refused = self._make_tuns()
        present = {
            name: index
            for name in wanted.onramps
            if name not in refused and (index := self._index_of(name)) is not None
        }
        self.missing_onramps = tuple(sorted(set(wanted.onramps) - set(present)))
        kept = {name: wanted.onramps[name] for name in present}
        renewed = {name for name in present if self._onramps.get(name, present[name]) != present[name]}
        changes += self._quieten([self.uplink, *present])
        forwarding = {ipv4_conf(name, "forwarding") for name in present}
        # Not where nobody needs it: an interface that forwards IPv6 takes no router's advertisements any more.
        forwarding |= {
            ipv6_conf(name, "forwarding") for name in present if 6 in wanted.pools[kept[name]].families
        }
        if (
            wanted.tunnels
        ):  # the kernel gives the way of the tunnels' packets only where it forwards; on `lo` it cannot
            forwarding.add(ipv4_conf(links.LOOPBACK, "forwarding"))
        for name in set(self._forwarding()) - forwarding:
            self.host.restore_setting(name)
            changes += 1
        if renewed:
            without = {name: pool for name, pool in kept.items() if name not in renewed}
            changes += self.datapath.apply(replace(wanted, onramps=without))
        changes += self.datapath.apply(replace(wanted, onramps=kept))
        self._onramps = present
        changes += self.host.keep_tuns(self.tuns)
        changes += sum(self.host.raise_setting(name, 1) for name in sorted(forwarding))
        # An apply that was under way when the uplink went must not bring back what leave_addresses took.
        addresses = frozenset() if self.uplink_is_gone() else addresses_here(wanted, self._me)
        changes += self.host.have_addresses(addresses)
        if refused:
            raise next(iter(refused.values()))
        return changes

    def _make_tuns(self) -> tuple[int, dict[str, SoftunicastError]]:
        """How many had to be made, and why others could not be: what else there is to do is not held up by that."""
        made, refused = 0, {}
        for name, tun in self.tuns.items():
            try:
                made += self.host.have_tun(name, tun)
            except SoftunicastError as error:
                refused[name] = error
        return made, refused

    def open_tun(self, name: str) -> int:
        """A descriptor of the on-ramp's TUN device for a program. Raises HostError when it cannot have one now."""
        if not self.datapath.attachment(name):
            raise HostError(f"on-ramp {name} is not ready", "ask again in a moment")
        try:
            return self.host.open_tun(name, self.tuns[name])
        except KernelError as error:
            if error.errno == errno.EBUSY:
                raise HostError(f"another program has on-ramp {name}", "end it first") from error
            raise

    def look_at_onramps(self, names: Iterable[str]) -> dict[str, Device]:
        """The interface of each, and how it is attached; None for one that is not there."""
        found: dict[str, Device] = {}
        for name in names:
            try:
                found[name] = links.interface(name), self.datapath.attachment(name)
            except HostError:
                found[name] = None, ""
        return found

    def leave_addresses(self) -> None:
        """Director and guard are gone: when the uplink comes back without them, the kernel must not answer from
        addresses on `lo`, or it would reset the conversations of other servers."""
        self.host.have_addresses(frozenset())

    def stop(self, wanted: KernelState, slices: Collection[Slice]) -> Stopped:
        """Takes everything back, as far as it goes. `slices`: those whose live flows are to be counted."""
        errors: list[SoftunicastError] = []
        live = dict.fromkeys(slices, 1)  # what cannot be counted is not clean

        def quiet() -> None:
            self.datapath.apply(without_new_flows(wanted))
            live.update(self.datapath.count_flows(slices))

        def onramps() -> None:
            for name in self._forwarding():
                self.host.restore_setting(name)

        def addresses() -> None:
            self.host.have_addresses(frozenset())

        def programs() -> None:
            orphans.extend(self.sockets.withdraw())

        let_go, orphans = True, list[str]()
        for step in (programs, quiet, onramps, addresses, self.datapath.remove):
            try:
                step()
            except SoftunicastError as error:
                errors.append(error)
                let_go = step != self.datapath.remove
        errors += self.host.restore()
        return Stopped(let_go, live, tuple(errors), tuple(orphans))

    def _quieten(self, interfaces: Iterable[str]) -> int:
        changes = 0
        for name in interfaces:
            changes += self.host.raise_setting(ipv4_conf(name, "arp_ignore"), ARP_ANSWER_FOR_ITSELF)
            changes += self.host.raise_setting(ipv4_conf(name, "arp_announce"), ARP_SPEAK_FOR_ITSELF)
        return changes

    def _forwarding(self) -> list[str]:
        """The settings that make interfaces forward because of us."""
        return [name for name in self.host.settings if name.endswith("/forwarding")]
