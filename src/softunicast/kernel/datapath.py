"""The data path of one server: loaded or adopted, changed by plan, read, explained, removed.

Everything that matters is pinned under one folder of a bpffs (maps/ and links/), so that packets do not
notice when this process ends. `open` finds what is there and takes it over: tables and flows as they are,
programs replaced by those of this version, each atomically. Not safe for several threads at once.
Acts in the network namespace of the calling thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from softunicast.core.config import Limits
from softunicast.core.config_sockets import SocketsConfig
from softunicast.core.desired import KernelState
from softunicast.core.errors import HostError, SoftunicastError
from softunicast.core.onramp_rules import NO_RULES, OnrampRules
from softunicast.core.onramps import IPNetwork
from softunicast.core.slices import Slice
from softunicast.kernel import abi, handed, layout, links, socket_hooks
from softunicast.kernel.address_places import group_lines
from softunicast.kernel.attachment import choose_attachment, suits_xdp
from softunicast.kernel.exempt import set_exempt
from softunicast.kernel.families import FAMILIES, IPV6
from softunicast.kernel.flows import Drop, Flow, count_by_slice, list_flows, read_drops, read_traffic
from softunicast.kernel.maps import Map
from softunicast.kernel.native_xdp import takes_redirected
from softunicast.kernel.objects import (
    ATTACH_TCX_EGRESS,
    ATTACH_TCX_INGRESS,
    TCX_FIRST,
    BpfObject,
    Link,
    attach_xdp,
    mount_bpffs,
)
from softunicast.kernel.pins import drop_links_of_others, in_order, link_of, remove_pins
from softunicast.kernel.tables import Tables
from softunicast.kernel.testrun import run_sweep, run_syscall
from softunicast.kernel.usage import Usage, read_usage
from softunicast.kernel.words import index_key

OBJECTS: Final = (
    *("director", "director_tc", "guard", "egress", "wrap", "fast", "sweep"),
    *("director6", "director_tc6", "guard6", "egress6", "fast6", "sweep6"),
)
ON_ONRAMPS: Final = ("fast", "egress_out", "wrap")  # the order in which they go
FAMILY_TABLES: Final = ("blocks", "addresses", "pools", "onramps", "exempt")  # IPv6 has its own
TABLES: Final = (
    *("settings", "groups", "owners", "slots", "servers", "peers"),
    *(family.named(name) for family in FAMILIES for name in FAMILY_TABLES),
)
OF_EACH_FAMILY: Final = ("addresses", "flows", "claims", "clients", "datagrams", "held")  # of [limits]
SERVERS_MAX: Final = 1024  # of one site; as in bpf/maps.h


class Datapath:
    """See the module. `adopted` says whether `open` found a running one."""

    def __init__(
        self,
        folder: Path,
        uplink: str,
        server: str,
        attach: Mapping[str, str],
        sources: Mapping[str, Sequence[IPNetwork]],
        rules: Mapping[str, OnrampRules],
        sockets: SocketsConfig | None,
    ) -> None:
        self.folder = folder
        self.uplink = uplink
        self._attach_by = attach
        self.director = "director"  # or "director_tc": the program at the uplink, of either family
        self._sources = sources
        self._rules = rules
        self._excused = sockets.excused if sockets else ()
        self._cgroup = socket_hooks.root_of(sockets)
        self.adopted = False
        self._objects: dict[str, BpfObject] = {}
        self._links: dict[str, Link] = {}
        self._maps: dict[str, Map] = {}
        self._tables = Tables({}, server)

    @classmethod
    def open(
        cls,
        bpffs: Path,
        uplink: str,
        server: str,
        limits: Limits,
        attach: Mapping[str, str] = MappingProxyType({}),
        sources: Mapping[str, Sequence[IPNetwork]] = MappingProxyType({}),
        rules: Mapping[str, OnrampRules] = MappingProxyType({}),
        sockets: SocketsConfig | None = None,
    ) -> Self:
        """Loads the programs and attaches director, guard and the egress's return side to `uplink`.

        `attach`: on-ramp or uplink -> "tc", "xdp" or "auto" (what suits it best; also when not named).
        `sources`: on-ramp -> the addresses that its clients may have (any when not named).
        `rules`: on-ramp -> what it exempts and clamps.
        `sockets`: whether to look after the sockets of this host; None: not.

        With empty tables nothing is soft-unicast yet, so nothing is touched until `apply`. Raises HostError
        or KernelError, and then leaves nothing of its own behind.
        """
        mount_bpffs(bpffs)
        made = cls(bpffs, uplink, server, attach, sources, rules, sockets)
        made.adopted = (bpffs / "links").is_dir() and any((bpffs / "links").iterdir())
        try:
            made._open(limits)
        except BaseException:
            if not made.adopted:
                made.remove()
            made.close()
            raise
        return made

    def _open(self, limits: Limits) -> None:
        for name in ("maps", "links"):
            (self.folder / name).mkdir(mode=0o700, exist_ok=True)
        layout.refuse_other_version(self.folder / "maps" / "settings")
        sizes = {
            "groups": group_lines(limits.addresses_max),
            "addresses": limits.addresses_max,
            "owners": -(-limits.slots_max // abi.AbiLimit.LINE_OWNERS),
            "slots": limits.slots_max,
            "flows": limits.flows_max,
            "claims": limits.flows_max,
            "datagrams": limits.fragments_max,
            "held": limits.held_max,
            "clients": limits.clients_max,
        }
        sizes |= {IPV6.named(name): sizes[name] for name in OF_EACH_FAMILY}
        objects = (*OBJECTS, *(socket_hooks.OBJECTS if self._cgroup else ()))
        layout.check_pinned(objects, self.folder / "maps", sizes)
        for name in objects:
            self._objects[name] = BpfObject.load(name, self.folder / "maps", sizes, known=self._maps)
            self._maps |= self._objects[name].maps
        self._tables.maps = self._maps
        state = self._tables.read()
        index = links.interface(self.uplink).index
        drop_links_of_others(self.folder, self.uplink, ON_ONRAMPS)
        self._write_settings(index, self._settings().self)  # whose it is, only `apply` may change
        handed.hand_on(self._objects, self._maps)
        self._attach_uplink(index)
        self._attach_sockets(index)
        self._attach_answers(state)
        for interface, pool in state.onramps.items():
            with suppress(HostError):  # an on-ramp that is gone is removed by the next `apply`
                self._attach_onramp(interface, pool)

    def _write_settings(self, uplink: int, self_index: int) -> None:
        device = links.interface(self.uplink)
        address6 = next((one.ip.packed for one in device.addresses6 if not one.ip.is_link_local), bytes(16))
        granted = self._settings().granted  # claims of an agent before this one may live
        cookie = socket_hooks.netns_cookie() if self._cgroup else 0
        numbers = uplink, self_index, device.mtu, self._maps["groups"].max_entries - 1
        settings = abi.Settings(abi.AbiLimit.ABI_VERSION, *numbers, address6, granted, cookie)
        self._maps["settings"].set(index_key(0), settings.pack())

    def _settings(self) -> abi.Settings:
        return abi.Settings.unpack(self._maps["settings"].get(index_key(0)) or bytes(abi.SETTINGS_BYTES))

    def _attach_sockets(self, index: int) -> None:
        """After the rest, whose tables they use; at the uplink in front of the guard, which sees what leaves then."""
        if self._cgroup is None:
            socket_hooks.detach(self.folder / "links", self.uplink)
            return
        uplink = socket_hooks.AT_UPLINK
        self._attach(uplink, uplink, self.uplink, index, ATTACH_TCX_EGRESS, TCX_FIRST)
        socket_hooks.set_excused(self._maps, self._cgroup, self._excused)
        for name, link in socket_hooks.attach(self._cgroup, self._objects, self.folder / "links"):
            self._keep(name, link)

    def _attach_answers(self, state: KernelState) -> None:
        root = self._cgroup if any(pool.dns for pool in state.pools.values()) else None
        socket_hooks.attach_answers(root, self._objects, self.folder / "links", self._links)

    def _pin(self, program: str, interface: str) -> Path:
        return self.folder / "links" / f"{program}@{interface}"

    def _attach_uplink(self, index: int) -> None:
        """The director in XDP or at tc; the other, of an agent that was told otherwise, goes when all is there."""
        device, wanted = links.interface(self.uplink), self._attach_by.get(self.uplink, "auto")
        in_xdp = wanted == "xdp" or (wanted == "auto" and suits_xdp(device))
        self.director, behind = ("director", "remote") if in_xdp else ("director_tc", "director_tc")
        self._attach("director_tc", behind, self.uplink, index, ATTACH_TCX_INGRESS, TCX_FIRST)
        if in_xdp:
            program = self._objects["director"].programs["director"]
            self._keep("director", attach_xdp(program, index, self._pin("director", self.uplink)))
        self._attach("guard", "guard", self.uplink, index, ATTACH_TCX_EGRESS)
        self._attach("egress", "egress_in", self.uplink, index, ATTACH_TCX_INGRESS)
        for other in (*(("director_tc",) if in_xdp else ("director", "remote")), *handed.ON_UPLINK_BEFORE):
            if (pin := self._pin(other, self.uplink)).exists():
                link_of(pin).remove()

    def _attach(self, obj: str, program: str, interface: str, index: int, kind: int, flags: int = 0) -> None:
        pin = self._pin(program, interface)
        name = program if interface == self.uplink else pin.name
        self._keep(name, Link.attach(self._objects[obj].programs[program], index, kind, pin, flags))

    def _keep(self, name: str, link: Link) -> None:
        before, self._links[name] = self._links.get(name), link
        if before is not None:
            before.close()

    def _attach_onramp(self, interface: str, pool: str) -> None:
        """tc always; XDP in front of it where it pays, for established flows."""
        device = links.interface(interface)
        attach = choose_attachment(device, self._attach_by.get(interface, "auto"), self.uplink)
        addresses, pin = links.source_addresses(device), self._pin("fast", interface)
        sources, rules = self._sources.get(interface, ()), self._rules.get(interface, NO_RULES)
        mss = rules.mss, self._mss_mtu(interface)
        self._tables.set_onramp(interface, pool, addresses, 0, sources, *mss)
        set_exempt(self._maps, device.index, rules.exempt)
        if device.bare:
            if not self._pin("wrap", interface).exists():
                self._detach("egress_out", interface)  # programs run in the order in which they were attached
            self._attach("wrap", "wrap", interface, device.index, ATTACH_TCX_INGRESS)
        self._attach("egress", "egress_out", interface, device.index, ATTACH_TCX_INGRESS)
        self._detach(handed.ON_ONRAMP_BEFORE, interface)
        if not device.bare:
            self._detach("wrap", interface)
        if attach == "xdp":
            self._keep(pin.name, attach_xdp(self._objects["fast"].programs["fast"], device.index, pin))
            # Else replies take tc, and only the clients' packets the short way.
            if takes_redirected(interface):
                self._tables.set_onramp(interface, pool, addresses, device.mtu, sources, *mss)
        else:
            self._detach("fast", interface)

    # tables

    def read(self) -> KernelState:
        """What the kernel holds, read anew."""
        return self._tables.read()

    @property
    def state(self) -> KernelState:
        """What the kernel holds, as of the last `apply` or `read`."""
        return self._tables.state

    @property
    def own_mac(self) -> str | None:
        """This server's MAC address, as its neighbours know it; None before the first `apply`."""
        return self.state.servers.get(self._tables.me)

    def apply(self, wanted: KernelState) -> int:
        """Makes the tables equal to `wanted`, adding before removing. Returns the number of changes.

        Leases older than those in force are refused: `state` says what came of it. New on-ramps are attached
        after their pool is there and detached before it goes. Raises InputError or KernelError, and then has
        changed nothing if there was no room; after any other error it can be repeated, or given another state.
        """
        wanted = self._tables.newest(wanted)
        self._tables.check(wanted)
        try:
            return self._apply(wanted)
        except BaseException:
            with suppress(SoftunicastError):
                self._tables.read()  # what is there now, so that the next attempt knows
            raise

    def _apply(self, wanted: KernelState) -> int:
        tables = self._tables
        if self._cgroup is not None:  # a cgroup comes with its service
            socket_hooks.set_excused(self._maps, self._cgroup, self._excused)
        changes = tables.set_servers(wanted)
        if (me := tables.server_index(tables.me)) != self._settings().self:
            self._write_settings(links.interface(self.uplink).index, me)
        if any(pool.dns for pool in wanted.pools.values()):
            self._attach_answers(wanted)
        changes += tables.add(wanted)
        for interface, pool in wanted.onramps.items():
            changed = tables.state.onramps.get(interface) != pool or self._has_other_mtu(interface)
            if changed or not self._is_attached(interface):
                self._attach_onramp(interface, pool)
                changes += 1
        for interface in set(tables.state.onramps) - set(wanted.onramps):
            for program in ON_ONRAMPS:
                self._detach(program, interface)
            set_exempt(self._maps, tables.remove_onramp(interface), ())
            changes += 1
        changes += tables.remove(wanted)
        self._attach_answers(wanted)
        return changes

    def _detach(self, program: str, interface: str) -> None:
        link = self._links.pop(f"{program}@{interface}", None)
        if link is not None:
            link.remove()
        else:  # of another process: the pin alone holds it, or an empty shell when its interface is gone
            self._pin(program, interface).unlink(missing_ok=True)

    def _is_attached(self, interface: str) -> bool:
        """Not when the interface was made anew under its old name: the attachment went with the old one."""
        index = links.index_of(interface)
        attached = f"egress_out@{interface}" in self._links
        return attached and self._tables.onramp_index(interface) == index

    def attachment(self, onramp: str) -> str:
        """By what the packets of its clients are taken: "tc" or "xdp"; "" while by nothing."""
        if not self._is_attached(onramp):
            return ""
        return "xdp" if f"fast@{onramp}" in self._links else "tc"

    def _mss_mtu(self, interface: str) -> int:
        """What SYNs of an on-ramp that clamps by the path must leave room for; 0 for others."""
        if not self._rules.get(interface, NO_RULES).mss_by_path:
            return 0
        return min(links.interface(name).mtu for name in (interface, self.uplink))

    def _has_other_mtu(self, interface: str) -> bool:
        there = links.index_of(interface) is not None
        return there and self._mss_mtu(interface) != self._tables.mss_mtu(interface)

    # reading

    def flows(self, limit: int, wanted: Callable[[Flow], bool] | None = None) -> tuple[int, list[Flow]]:
        """How many live flows there are (of those `wanted`), and the first `limit` of them."""
        return list_flows(self._claims(), limit, wanted, links.index_of(self.uplink) or 0)

    def count_flows(self, slices: Iterable[Slice]) -> dict[Slice, int]:
        """Live flows of each slice."""
        return count_by_slice(self._claims(), slices)

    def _claims(self) -> list[Map]:
        return [self._maps[family.named("claims")] for family in FAMILIES]

    def drops(self) -> list[Drop]:
        """Every reason with its count and its last packet."""
        return read_drops(self._maps["drops"])

    def traffic(self) -> dict[str, int]:
        """Packets that were not dropped, by what was done with them."""
        return read_traffic(self._maps["traffic"])

    def sweep(self) -> tuple[int, int]:
        """Frees expired claims; returns (freed, live)."""
        names = [family.named("sweep") for family in FAMILIES]
        done = [run_sweep(self._objects[name].programs[name]) for name in names]
        return sum(part.freed for part in done), sum(part.live for part in done)

    def run(self, name: str, context: bytes) -> bytes:
        """One of the programs that no packet runs: `grant` or `grant6`."""
        return run_syscall(self._objects[name].programs[name], context, f"running {name}")

    def usage(self) -> dict[str, Usage]:
        """How full each pool was at the last sweep; a pool without flows is not there."""
        return read_usage(self._maps, self._tables.pool_numbers())

    def pool_number(self, name: str) -> int | None:
        """What stands for the pool in the tables; None while it is in none."""
        return self._tables.pool_numbers().get(name)

    def memory_bytes(self) -> dict[str, int]:
        """What each map takes of the kernel's memory now, by the kernel's own account."""
        return {name: table.memory_bytes() for name, table in self._maps.items()}

    def table_descriptors(self) -> dict[str, int]:
        """Descriptors of the tables, for programs that shall see the same world (explain)."""
        return {name: self._maps[name].fd for name in TABLES}

    def map(self, name: str) -> Map:
        """One of the maps of bpf/maps.h."""
        return self._maps[name]

    # letting go

    def close(self) -> None:
        """This process lets go; the kernel carries on."""
        for link in self._links.values():
            with suppress(OSError):
                link.close()
        self._links = {}
        for obj in self._objects.values():
            obj.close()
        self._objects = {}

    def remove(self) -> None:
        """Detaches everything and removes the pins: first the on-ramps, last the guard."""
        for name in in_order(self._links, (*ON_ONRAMPS, "egress_in", "director", "remote", "guard")):
            self._links.pop(name).remove()
        remove_pins(self.folder)
        self.close()
