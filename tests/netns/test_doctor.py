"""The doctor on a real data path, in a namespace and a bpffs of its own: clean, running, left behind, clean."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from softunicast.core.config import Limits
from softunicast.kernel import links, namespaces, sysctl
from softunicast.kernel.attached import Attached, attached
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.doctor import Finding, Scope, Severity, examine
from softunicast.kernel.native_xdp import have_native_xdp
from softunicast.kernel.passing import attach_pass

SHARED = IPv4Address("198.51.100.10")
FORWARDING = sysctl.ipv4_conf("clients", "forwarding")
LIMITS = Limits(flows_max=1024, addresses_max=16, slots_max=64)


@dataclass(frozen=True)
class Host:
    """A namespace that plays a server."""

    netns: str
    scope: Scope

    def problems(self, scope: Scope | None = None) -> list[Finding]:
        found = namespaces.run_in(self.netns, examine, scope or self.scope)
        return [finding for finding in found if finding.severity is not Severity.OK]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    name = f"sutest-doctor-{os.getpid()}"
    bpffs = tmp_path / "bpf"
    bpffs.mkdir()
    namespaces.create(name)
    try:
        namespaces.mount("bpf", "bpf", bpffs)
        namespaces.run_in(name, _build)
        yield Host(name, Scope(bpffs, uplink="uplink", onramps=("clients",)))
    finally:
        namespaces.unmount(bpffs)
        namespaces.delete(name)


def _build() -> None:
    for interface in ("uplink", "clients"):
        command = f"ip link add {interface} type veth peer name {interface}-peer"
        subprocess.run(command.split(), check=True, capture_output=True)
    sysctl.write(FORWARDING, 0)


def data_path(host: Host) -> Datapath:
    return namespaces.run_in(host.netns, Datapath.open, host.scope.bpffs, "uplink", "server1", LIMITS)


def test_a_fresh_host_has_no_problem(host: Host) -> None:
    assert host.problems() == []


def test_a_data_path_without_an_agent_is_found_until_it_is_removed(host: Host) -> None:
    datapath = data_path(host)
    datapath.close()
    programs, pins = host.problems()
    assert programs.what.startswith("programs without an agent: director_tc on uplink, egress_in on uplink")
    assert pins.what.endswith(f"pins in {host.scope.bpffs} and no agent")
    assert host.problems(replace(host.scope, agent_answers=None)) == []
    data_path(host).remove()
    assert host.problems() == []


def test_what_the_running_data_path_lacks_is_found(host: Host) -> None:
    scope = replace(host.scope, agent_answers=True, onramps=())
    (finding,) = host.problems(scope)
    assert finding.what == (
        "the agent answers, but uplink is without director (xdp or tcx ingress), egress_in (tcx ingress), "
        "guard (tcx egress)"
    )
    datapath = data_path(host)
    assert host.problems(scope) == []
    datapath.remove()


def test_programs_are_listed_where_they_are(host: Host) -> None:
    assert namespaces.run_in(host.netns, attached, "uplink") == ()
    datapath = data_path(host)
    assert namespaces.run_in(host.netns, attached, "uplink") == (
        Attached("uplink", "tcx ingress", "director_tc"),
        Attached("uplink", "tcx ingress", "egress_in"),
        Attached("uplink", "tcx egress", "guard"),
    )
    assert namespaces.run_in(host.netns, attached, "clients") == ()
    datapath.remove()


def test_another_xdp_program_is_in_the_way(host: Host) -> None:
    namespaces.run_in(host.netns, attach_pass, "uplink", host.scope.bpffs / "pass")
    (finding,) = host.problems()
    assert (finding.severity, finding.what) == (
        Severity.ERROR,
        "uplink runs another XDP program, pass: the director cannot attach",
    )


def test_addresses_and_settings_of_a_dead_agent(host: Host) -> None:
    assert namespaces.run_in(host.netns, links.add_loopback_address, SHARED)
    (stranger,) = host.problems()
    assert (stranger.severity, stranger.fix) == (
        Severity.NOTE,
        "if nothing else needs it: ip address del 198.51.100.10/32 dev lo",
    )
    noted = replace(host.scope, noted_settings=(FORWARDING,), noted_addresses=frozenset({SHARED}))
    address, setting = host.problems(noted)
    assert address.what == "198.51.100.10 on lo, put there by an agent that is gone"
    assert setting.what == f"settings changed by an agent that is gone: {FORWARDING}"


def test_settings_that_somebody_turned_back(host: Host) -> None:
    datapath = data_path(host)
    assert namespaces.run_in(host.netns, links.add_loopback_address, SHARED)
    noted = {"noted_addresses": frozenset({SHARED}), "shared": frozenset({SHARED})}
    scope = replace(host.scope, agent_answers=True, **noted)
    assert [finding.what for finding in host.problems(scope)] == [
        "clients does not forward, so its clients' packets are dropped as no_route",
        "uplink answers ARP for the shared addresses, as every server there would",
        "clients answers ARP for the shared addresses, as every server there would",
    ]
    for name in (
        FORWARDING,
        sysctl.ipv4_conf("uplink", "arp_ignore"),
        sysctl.ipv4_conf("clients", "arp_ignore"),
    ):
        namespaces.run_in(host.netns, sysctl.write, name, 1)
    assert host.problems(scope) == []
    datapath.remove()


def test_native_xdp_is_asked_of_the_driver(host: Host) -> None:
    assert namespaces.run_in(host.netns, have_native_xdp, "uplink") is True  # veth has it
    assert namespaces.run_in(host.netns, have_native_xdp, "lo") is False
    assert namespaces.run_in(host.netns, have_native_xdp, "eth9") is None
