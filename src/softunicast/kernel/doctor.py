"""What is wrong with this host, or left over on it, and what to do about each.

Two halves: `look` reads the host and decides nothing; `diagnose` decides and reads nothing, so that every
finding has a test without root. Nothing here changes the host. What the agent knows (does it answer, which
addresses are shared, what an agent noted to have changed) is passed in by the caller as a `Scope`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from softunicast.core.endpoints import address_order
from softunicast.core.errors import HostError, SoftunicastError
from softunicast.core.slices import IPAddress
from softunicast.kernel import cgroups, links, lookups, probe, sysctl
from softunicast.kernel.attached import TCX_EGRESS, TCX_INGRESS, XDP, Attached, attached
from softunicast.kernel.native_xdp import have_native_xdp
from softunicast.kernel.probe import Feature

JIT: Final = "net/core/bpf_jit_enable"
IN_XDP: Final = (XDP, "director")
AT_TC: Final = (TCX_INGRESS, "director_tc")
ON_UPLINK: Final = ((TCX_INGRESS, "egress_in"), (TCX_EGRESS, "guard"))
ON_ONRAMPS: Final = (
    (TCX_INGRESS, "egress_out"),
    (TCX_INGRESS, "wrap"),
    (XDP, "fast"),
)
OURS: Final = frozenset({IN_XDP, AT_TC, *ON_UPLINK, *ON_ONRAMPS})
START_AGAIN: Final = "start the agent again, it takes over; stopped cleanly it removes everything"


class Severity(StrEnum):
    ERROR = "error"  # softunicast cannot work, or does not do what it should
    WARNING = "warning"  # it works, but slower or not for long; or something was left behind
    NOTE = "note"
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """`fix` is None only for what is well."""

    severity: Severity
    what: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What to look at. `uplink` is None when nobody could tell which interface it is, `agent_answers` when
    there may be an agent or not.

    `noted_settings`, `noted_addresses`, `noted_tuns`: what the journal of an agent says it has changed on this host.
    `shared`: the addresses that the agent's data path knows; `onramps6`: on-ramps whose pool has some of IPv6.
    """

    bpffs: Path
    uplink: str | None = None
    onramps: tuple[str, ...] = ()
    onramps6: tuple[str, ...] = ()
    agent_answers: bool | None = False
    noted_settings: tuple[str, ...] = ()
    noted_addresses: frozenset[IPAddress] = frozenset()
    noted_tuns: tuple[str, ...] = ()
    shared: frozenset[IPAddress] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read. `trouble`: why the kernel's features could not be asked for at all."""

    features: tuple[Feature, ...] = ()
    trouble: HostError | None = None
    may_load: bool = True
    interfaces: frozenset[str] = frozenset()
    native_xdp: bool | None = None
    attached: tuple[Attached, ...] = ()
    settings: Mapping[str, int | None] = field(default_factory=dict)
    pins: int = 0
    loopback: frozenset[IPAddress] = frozenset()
    have_cgroup2: bool = True
    asks_resolved: bool = False


def examine(scope: Scope) -> tuple[Finding, ...]:
    """Everything found, the worst first. Raises KernelError only when netlink fails altogether."""
    return worst_first(diagnose(scope, look(scope)))


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """In the order of `Severity`; what is equally bad stays in order."""
    order = list(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))


# -- reading -------------------------------------------------------------------------------------------------


def look(scope: Scope) -> Facts:
    """Reads the host, in the network namespace of the calling thread."""
    features: tuple[Feature, ...] = ()
    trouble, may_load = None, False
    try:
        features, may_load = probe.features(), probe.may_load()
    except HostError as error:
        trouble = error
    interfaces = tuple(name for _, name in socket.if_nameindex())
    uplink = scope.uplink if scope.uplink in interfaces else None
    return Facts(
        features=features,
        trouble=trouble,
        may_load=may_load,
        interfaces=frozenset(interfaces),
        native_xdp=None if uplink is None else have_native_xdp(uplink),
        attached=tuple(one for name in interfaces for one in _attached(name)) if may_load else (),
        settings={name: _setting(name) for name in _settings_of_interest(scope)},
        pins=_pins(scope.bpffs),
        loopback=links.loopback_addresses(),
        have_cgroup2=cgroups.find_root() is not None,
        asks_resolved=lookups.asks_resolved(),
    )


def _attached(interface: str) -> tuple[Attached, ...]:
    try:
        return attached(interface)
    except SoftunicastError:  # gone since, or a kernel that does not know these hooks: the probe says so
        return ()


def _settings_of_interest(scope: Scope) -> Iterator[str]:
    yield JIT
    for onramp in scope.onramps:
        yield sysctl.ipv4_conf(onramp, "forwarding")
    for onramp in scope.onramps6:
        yield sysctl.ipv6_conf(onramp, "forwarding")
    for interface in {scope.uplink, *scope.onramps, "all"} - {None}:
        yield sysctl.ipv4_conf(str(interface), "arp_ignore")


def _setting(name: str) -> int | None:
    try:
        return sysctl.read(name)
    except SoftunicastError:  # some are for root's eyes only
        return None


def _pins(bpffs: Path) -> int:
    """Only where the data path pins: the root of a bpffs has files of the kernel's own."""
    try:
        return sum(1 for folder in ("maps", "links") for _ in (bpffs / folder).glob("*"))
    except OSError:
        return 0


# -- deciding ------------------------------------------------------------------------------------------------


def diagnose(scope: Scope, facts: Facts) -> Iterator[Finding]:
    """What the facts mean."""
    yield from _features(facts)
    yield from _interfaces(scope, facts)
    yield from _settings(scope, facts)
    yield from _programs(scope, facts)
    yield from _leftovers(scope, facts)


def _features(facts: Facts) -> Iterator[Finding]:
    if facts.trouble is not None:
        yield Finding(Severity.ERROR, facts.trouble.what, facts.trouble.fix)
        return
    if not facts.may_load:
        what = "not allowed to load BPF programs, so most could not be examined"
        yield Finding(Severity.ERROR, what, probe.PERMISSION_FIX)
    for feature in facts.features:
        about = f"{feature.name} (since {feature.since}, for {feature.needed_for})"
        if feature.have:
            yield Finding(Severity.OK, f"the kernel has {about}")
        elif feature.have is False:
            severity = Severity.ERROR if feature.required else Severity.NOTE
            yield Finding(severity, f"the kernel lacks {about}", feature.fix)
        elif facts.may_load:
            yield Finding(Severity.WARNING, f"could not tell whether the kernel has {about}", feature.fix)
    if not facts.have_cgroup2:
        what = "cgroup2 is not mounted: programs of this host cannot leave from pools (softunicast run)"
        yield Finding(Severity.NOTE, what, "mount -t cgroup2 none DIR, then restart the agent")
    if facts.asks_resolved:
        what = (
            f"{lookups.SWITCH} names resolve: lookups of programs in pools leave from this host's own address"
        )
        yield Finding(Severity.NOTE, what, "take resolve from its line hosts, and give the pools dns")


def _interfaces(scope: Scope, facts: Facts) -> Iterator[Finding]:
    if scope.uplink is not None and scope.uplink not in facts.interfaces:
        fix = "name one that `ip link` shows as [uplink] interface"
        yield Finding(Severity.ERROR, f"there is no interface {scope.uplink}, the uplink", fix)
    for onramp in scope.onramps:
        if onramp not in facts.interfaces:
            fix = "make it, or name another as [[onramps]] interface"
            yield Finding(Severity.WARNING, f"there is no interface {onramp}, an on-ramp", fix)
    if facts.native_xdp is False:
        what = f"the driver of {scope.uplink} has no XDP of its own: the director runs later and slower"
        fix = "use a driver or driver setting with native XDP (virtio_net, ena: enough queues)"
        yield Finding(Severity.WARNING, what, fix)
    elif facts.native_xdp:
        yield Finding(Severity.OK, f"the driver of {scope.uplink} runs XDP itself")


def _settings(scope: Scope, facts: Facts) -> Iterator[Finding]:
    if facts.settings.get(JIT) == 0:
        what = "net.core.bpf_jit_enable=0: programs are interpreted, several times slower"
        yield Finding(Severity.WARNING, what, "sysctl -w net.core.bpf_jit_enable=1")
    elif facts.settings.get(JIT) is not None:
        yield Finding(Severity.OK, "BPF programs are compiled (net.core.bpf_jit_enable)")
    if not scope.agent_answers:
        return  # the agent changes the rest when it starts, and puts it back when it stops
    forwarding = [(onramp, sysctl.ipv4_conf(onramp, "forwarding")) for onramp in scope.onramps]
    forwarding += [(onramp, sysctl.ipv6_conf(onramp, "forwarding")) for onramp in scope.onramps6]
    for onramp, name in forwarding:
        if facts.settings.get(name) == 0:
            what = f"{onramp} does not forward, so its clients' packets are dropped as no_route"
            yield Finding(Severity.ERROR, what, f"find out who sets it to 0; echo 1 > /proc/sys/{name}")
    everywhere = facts.settings.get(sysctl.ipv4_conf("all", "arp_ignore")) or 0
    for interface in (scope.uplink, *scope.onramps):
        name = sysctl.ipv4_conf(str(interface), "arp_ignore")
        here = facts.settings.get(name)
        if here is not None and max(here, everywhere) == 0 and scope.shared & facts.loopback:
            what = f"{interface} answers ARP for the shared addresses, as every server there would"
            yield Finding(Severity.ERROR, what, f"find out who sets it to 0; echo 1 > /proc/sys/{name}")


def _programs(scope: Scope, facts: Facts) -> Iterator[Finding]:
    ours = [one for one in facts.attached if (one.hook, one.program) in OURS]
    there = {(one.hook, one.program) for one in ours if one.interface == scope.uplink}
    for one in facts.attached:
        in_the_way = one.interface == scope.uplink and one.hook == XDP and one not in ours
        if in_the_way and (TCX_INGRESS, "director_tc") not in there:
            what = f"{one.interface} runs another XDP program, {one.program}: the director cannot attach"
            fix = f'ip link set dev {one.interface} xdp off, or stop its owner; or [uplink] attach = "tc"'
            yield Finding(Severity.ERROR, what, fix)
    if scope.agent_answers and facts.may_load and scope.uplink in facts.interfaces:
        missing = [] if there & {IN_XDP, AT_TC} else ["director (xdp or tcx ingress)"]
        missing += [f"{program} ({hook})" for hook, program in ON_UPLINK if (hook, program) not in there]
        if missing:
            what = f"the agent answers, but {scope.uplink} is without {', '.join(missing)}"
            yield Finding(Severity.ERROR, what, "restart the agent, it attaches them again")
        else:
            yield Finding(Severity.OK, f"director, egress and guard are attached to {scope.uplink}")
    if ours and scope.agent_answers is False:
        where = ", ".join(f"{one.program} on {one.interface}" for one in ours)
        what = f"programs without an agent: {where}; new flows end with the leases"
        yield Finding(Severity.WARNING, what, START_AGAIN)


def _leftovers(scope: Scope, facts: Facts) -> Iterator[Finding]:
    strangers = facts.loopback - scope.noted_addresses
    if scope.agent_answers is not False:
        strangers &= scope.shared  # others may well be the operator's own
    for address in sorted(strangers, key=address_order):
        fix = f"if nothing else needs it: ip address del {address}/{address.max_prefixlen} dev lo"
        yield Finding(Severity.NOTE, f"{address} on lo, and no agent noted that it put it there", fix)
    if scope.agent_answers is not False:
        return
    left = facts.loopback & scope.noted_addresses
    for address in sorted(left, key=address_order):
        yield Finding(Severity.WARNING, f"{address} on lo, put there by an agent that is gone", START_AGAIN)
    for name in scope.noted_tuns:
        yield Finding(Severity.WARNING, f"the TUN device {name}, made by an agent that is gone", START_AGAIN)
    if facts.pins:
        what = f"{facts.pins} pins in {scope.bpffs} and no agent"
        yield Finding(Severity.WARNING, what, START_AGAIN)
    if scope.noted_settings:
        what = f"settings changed by an agent that is gone: {', '.join(scope.noted_settings)}"
        yield Finding(Severity.WARNING, what, START_AGAIN)
    if facts.may_load and not (left or facts.pins or scope.noted_settings or scope.noted_tuns):
        yield Finding(Severity.OK, "nothing is left over of an earlier agent")
