"""The doctor's judgement, fact by fact; what is read from a real host is in tests/netns/test_doctor.py."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from softunicast.core.errors import HostError
from softunicast.kernel.attached import Attached
from softunicast.kernel.doctor import Facts, Finding, Scope, Severity, diagnose, worst_first
from softunicast.kernel.probe import Feature

SHARED = IPv4Address("198.51.100.10")
TCX = Feature("tcx", True, "6.6", "egress and the guard", "boot Linux 6.6 or newer", required=True)
ON_UPLINK = (
    Attached("uplink", "xdp", "director"),
    Attached("uplink", "tcx ingress", "egress_in"),
    Attached("uplink", "tcx egress", "guard"),
)
AT_TC = Attached("uplink", "tcx ingress", "director_tc")
ON_CLIENTS = Attached("clients", "tcx ingress", "egress_out")
ARP_OFF = {"net/ipv4/conf/uplink/arp_ignore": 1, "net/ipv4/conf/clients/arp_ignore": 1}
FORWARDING = "net/ipv4/conf/clients/forwarding"

NO_AGENT = Scope(Path("/sys/fs/bpf/softunicast"), uplink="uplink", onramps=("clients",))
CLEAN = Facts(
    features=(TCX,),
    interfaces=frozenset({"lo", "uplink", "clients"}),
    native_xdp=True,
    settings={"net/core/bpf_jit_enable": 1},
)
AGENT = replace(
    NO_AGENT,
    agent_answers=True,
    noted_settings=(FORWARDING,),
    noted_addresses=frozenset({SHARED}),
    shared=frozenset({SHARED}),
)
RUNNING = replace(
    CLEAN,
    attached=(*ON_UPLINK, ON_CLIENTS),
    settings={"net/core/bpf_jit_enable": 1, FORWARDING: 1, "net/ipv4/conf/all/arp_ignore": 0, **ARP_OFF},
    pins=17,
    loopback=frozenset({SHARED}),
)


def problems(scope: Scope, facts: Facts) -> list[Finding]:
    return [finding for finding in diagnose(scope, facts) if finding.severity is not Severity.OK]


def the_problem(scope: Scope, facts: Facts) -> tuple[str, str]:
    (finding,) = problems(scope, facts)
    return finding.severity.value, finding.what


@pytest.mark.parametrize(("scope", "facts"), [(NO_AGENT, CLEAN), (AGENT, RUNNING)])
def test_a_healthy_host_has_no_problem(scope: Scope, facts: Facts) -> None:
    assert problems(scope, facts) == []
    assert len(list(diagnose(scope, facts))) >= 4


@pytest.mark.parametrize(
    ("scope", "facts", "severity", "part"),
    [
        (
            NO_AGENT,
            replace(CLEAN, features=(replace(TCX, have=False),)),
            "error",
            "the kernel lacks tcx (since 6.6",
        ),
        (
            NO_AGENT,
            replace(CLEAN, features=(replace(TCX, have=False, required=False),)),
            "note",
            "the kernel lacks tcx",
        ),
        (NO_AGENT, replace(CLEAN, features=(replace(TCX, have=None),)), "warning", "could not tell whether"),
        (
            NO_AGENT,
            replace(CLEAN, features=(replace(TCX, have=None),), may_load=False),
            "error",
            "not allowed to load BPF programs",
        ),
        (
            NO_AGENT,
            replace(CLEAN, features=(), may_load=False, trouble=HostError("no libbpf", "install it")),
            "error",
            "no libbpf",
        ),
        (NO_AGENT, replace(CLEAN, native_xdp=False), "warning", "the driver of uplink has no XDP"),
        (
            NO_AGENT,
            replace(CLEAN, interfaces=frozenset({"clients"})),
            "error",
            "there is no interface uplink",
        ),
        (
            NO_AGENT,
            replace(CLEAN, interfaces=frozenset({"uplink"})),
            "warning",
            "there is no interface clients",
        ),
        (NO_AGENT, replace(CLEAN, settings={"net/core/bpf_jit_enable": 0}), "warning", "interpreted"),
        (
            NO_AGENT,
            replace(CLEAN, attached=(Attached("uplink", "xdp", "xdp_firewall"),)),
            "error",
            "uplink runs another XDP program, xdp_firewall",
        ),
        (
            NO_AGENT,
            replace(CLEAN, attached=ON_UPLINK),
            "warning",
            "director on uplink, egress_in on uplink",
        ),
        (NO_AGENT, replace(CLEAN, pins=17), "warning", "17 pins in /sys/fs/bpf/softunicast and no agent"),
        (
            replace(NO_AGENT, noted_settings=(FORWARDING,)),
            CLEAN,
            "warning",
            f"settings changed by an agent that is gone: {FORWARDING}",
        ),
        (
            replace(NO_AGENT, noted_tuns=("apps",)),
            CLEAN,
            "warning",
            "the TUN device apps, made by an agent that is gone",
        ),
        (
            NO_AGENT,
            replace(CLEAN, attached=(Attached("apps", "tcx ingress", "wrap"),)),
            "warning",
            "programs without an agent: wrap on apps",
        ),
        (
            replace(NO_AGENT, noted_addresses=frozenset({SHARED})),
            replace(CLEAN, loopback=frozenset({SHARED})),
            "warning",
            "198.51.100.10 on lo, put there by an agent that is gone",
        ),
        (
            NO_AGENT,
            replace(CLEAN, loopback=frozenset({SHARED})),
            "note",
            "198.51.100.10 on lo, and no agent noted",
        ),
        (
            replace(AGENT, noted_addresses=frozenset()),
            RUNNING,
            "note",
            "198.51.100.10 on lo, and no agent noted",
        ),
        (
            AGENT,
            replace(RUNNING, attached=(*ON_UPLINK[:2], ON_CLIENTS)),
            "error",
            "uplink is without guard (tcx",
        ),
        (
            AGENT,
            replace(RUNNING, attached=(*ON_UPLINK[1:], ON_CLIENTS)),
            "error",
            "uplink is without director (xdp or tcx ingress)",
        ),
        (
            replace(AGENT, onramps6=("clients",)),
            replace(RUNNING, settings={**RUNNING.settings, "net/ipv6/conf/clients/forwarding": 0}),
            "error",
            "clients does not forward",
        ),
        (
            AGENT,
            replace(RUNNING, settings={**RUNNING.settings, FORWARDING: 0}),
            "error",
            "clients does not forward",
        ),
        (
            AGENT,
            replace(RUNNING, settings={**RUNNING.settings, "net/ipv4/conf/uplink/arp_ignore": 0}),
            "error",
            "uplink answers ARP for the shared addresses",
        ),
    ],
)
def test_each_fact_is_named_with_its_fix(scope: Scope, facts: Facts, severity: str, part: str) -> None:
    found, what = the_problem(scope, facts)
    assert found == severity
    assert part in what
    (finding,) = problems(scope, facts)
    assert finding.fix
    assert "\n" not in finding.what + finding.fix


def test_arp_ignore_of_all_interfaces_counts() -> None:
    settings = {**RUNNING.settings, **dict.fromkeys(ARP_OFF, 0), "net/ipv4/conf/all/arp_ignore": 2}
    assert problems(AGENT, replace(RUNNING, settings=settings)) == []


def test_loopback_addresses_of_the_operator_are_not_the_agents_matter() -> None:
    loopback = frozenset({SHARED, IPv4Address("192.0.2.200")})
    assert problems(AGENT, replace(RUNNING, loopback=loopback)) == []


def test_nothing_is_called_left_over_while_there_may_be_an_agent() -> None:
    facts = replace(RUNNING, settings=CLEAN.settings)
    assert problems(replace(AGENT, agent_answers=None), facts) == []
    assert len(problems(replace(AGENT, agent_answers=False), facts)) == 4


def test_nothing_is_called_clean_that_could_not_be_read() -> None:
    findings = list(diagnose(NO_AGENT, replace(CLEAN, features=(), may_load=False)))
    assert not any("left over" in finding.what for finding in findings)


def test_worst_first() -> None:
    findings = [Finding(Severity(name), "") for name in ("ok", "warning", "error", "note")]
    assert [one.severity.value for one in worst_first(findings)] == ["error", "warning", "note", "ok"]


def test_without_cgroup2() -> None:
    severity, what = the_problem(NO_AGENT, replace(CLEAN, have_cgroup2=False))
    assert (severity, what[:22]) == ("note", "cgroup2 is not mounted")


def test_lookups_that_nothing_catches() -> None:
    severity, what = the_problem(NO_AGENT, replace(CLEAN, asks_resolved=True))
    assert (severity, what[:37]) == ("note", "/etc/nsswitch.conf names resolve: loo")
