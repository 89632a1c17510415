"""The agent's configuration file: TOML text in, frozen records out.

Every problem is reported at once, with its line and its fix; an unknown key is a problem, because a setting
that does nothing is worse than one that is refused. Texts only: whether an interface exists, a path can be
written or a tag is carried by some address is for whoever uses the values. Defaults live here and only here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import AddressValueError, IPv4Address
from typing import Final

from softunicast.core.config_sharing import client_limits, holders, thresholds
from softunicast.core.config_sockets import SocketsConfig, parse_sockets, resolvers
from softunicast.core.errors import InputError
from softunicast.core.leases import QUARANTINE_DEFAULT_S, TTL_DEFAULT_S
from softunicast.core.onramp_rules import OnrampRules
from softunicast.core.onramps import ATTACHMENTS, IPNetwork, Tun, interface_name, parse_onramps
from softunicast.core.pools import (
    ICMP_ERRORS_PER_S,
    PROTOCOLS,
    TAG_PATTERN,
    WARN_AT,
    WARN_CLEAR_AT,
    WHEN_FULL,
    Behaviour,
    Pool,
    Timers,
    check_tags,
)
from softunicast.core.toml_reader import Problems, Section, reason

POOL_SLICES_MAX: Final = 256  # the same number as in bpf/abi.h: slices one server can use in one pool
POOLS_MAX: Final = 256  # entries of the kernel's table of pools
ICMP_ERRORS_MAX: Final = 1_000_000  # one for each microsecond
TIMER_MAX_S: Final = 7 * 86400
SOCKET_BYTES_MAX: Final = 107  # sockaddr_un.sun_path less its zero byte


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Who this server is: its name among all servers, and the site whose addresses it can use."""

    name: str
    site: str


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """Where packets leave. `address`: how site neighbours reach it; None: the interface's first IPv4.

    `attach`: by what the director takes packets: "auto", "tc" or "xdp".
    """

    interface: str
    address: IPv4Address | None = None
    attach: str = "auto"


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """Where the book is. `kind` is "sqlite", `path` its file."""

    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How the agent runs. `settle_s`: how long a new slice waits for the neighbours to learn of it.

    `on_stop`: "restore" gives leases back and leaves the host as it was found; "keep" leaves the data path
    running for an agent that is started again before the leases end, as after a crash.
    """

    socket: str = "/run/softunicast/agent.sock"
    fd_socket: str = "/run/softunicast/fd.sock"
    pool_socket: str = "/run/softunicast/pools.sock"
    state_dir: str = "/run/softunicast"
    bpffs: str = "/sys/fs/bpf/softunicast"
    ttl_s: float = TTL_DEFAULT_S
    quarantine_s: float = QUARANTINE_DEFAULT_S
    poll_s: float = 0.2
    settle_s: float = 0.5
    on_stop: str = "restore"
    log_level: str = "info"
    log_format: str = "auto"


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of the kernel's tables: flows and clients of this server, shared addresses and slices of its site,
    datagrams in fragments, and fragments that wait for their first; and from which share of `flows_max` on the
    operator is warned."""

    flows_max: int = 262_144
    clients_max: int = 65_536
    addresses_max: int = 1024
    slots_max: int = 65_536
    fragments_max: int = 16_384
    held_max: int = 1024
    warn_at: float = WARN_AT
    warn_clear_at: float = WARN_CLEAR_AT


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration without problems. By the name of an on-ramp's interface: `onramps` -> pool name; `attach` ->
    "auto", "tc", "xdp"; `sources` -> the addresses its clients may have, where listed; `tuns` -> those that the agent
    makes; `rules` -> what it exempts and clamps."""

    path: str
    server: ServerConfig
    uplink: UplinkConfig
    ledger: LedgerConfig
    agent: AgentConfig
    limits: Limits
    pools: tuple[Pool, ...]
    onramps: Mapping[str, str]
    attach: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, tuple[IPNetwork, ...]] = field(default_factory=dict)
    tuns: Mapping[str, Tun] = field(default_factory=dict)
    rules: Mapping[str, OnrampRules] = field(default_factory=dict)
    sockets: SocketsConfig = field(default_factory=SocketsConfig)


def parse_config(text: str, path: str) -> Config:
    """The agent's configuration; raises ConfigError with every problem of the file."""
    problems = Problems(path)
    document = Section.parse(text, problems)
    server = document.section("server", needed_for="with name and site")
    uplink = document.section("uplink", needed_for="with the interface that packets leave by")
    ledger = document.section("ledger", needed_for="with kind and path")
    limits = _limits(document.section("limits"))
    pools = _pools(document, limits)
    interface = interface_name(uplink)
    onramps = parse_onramps(document, interface, [pool.name for pool in pools])
    config = Config(
        path=path,
        server=ServerConfig(server.name("name", TAG_PATTERN), server.name("site", TAG_PATTERN)),
        uplink=UplinkConfig(
            interface,
            _ipv4(uplink, "address") if uplink.have("address") else None,
            uplink.choice("attach", ATTACHMENTS, "auto"),
        ),
        ledger=LedgerConfig(ledger.choice("kind", ("sqlite",)), ledger.path("path")),
        agent=_agent(document.section("agent")),
        limits=limits,
        pools=pools,
        onramps={one.name: one.pool for one in onramps},
        attach={one.name: one.attach for one in onramps},
        sources={one.name: one.sources for one in onramps if one.sources},
        tuns={one.name: one.tun for one in onramps if one.tun},
        rules={one.name: one.rules for one in onramps},
        sockets=parse_sockets(document.section("sockets")),
    )
    for section in (server, uplink, ledger, document):
        section.done()
    problems.refuse()
    return config


def _agent(section: Section) -> AgentConfig:
    base = AgentConfig()
    # A lease must outlast its margin of a second, the poll and a few failed tries to renew.
    agent = AgentConfig(
        socket=section.path("socket", base.socket),
        fd_socket=section.path("fd_socket", base.fd_socket),
        pool_socket=section.path("pool_socket", base.pool_socket),
        state_dir=section.path("state_dir", base.state_dir),
        bpffs=section.path("bpffs", base.bpffs),
        ttl_s=section.number("ttl_s", base.ttl_s, 3.0, 86400.0),
        quarantine_s=section.number("quarantine_s", base.quarantine_s, 0.0, 86400.0),
        poll_s=section.number("poll_s", base.poll_s, 0.02, 60.0),
        settle_s=section.number("settle_s", base.settle_s, 0.0, 60.0),
        on_stop=section.choice("on_stop", ("restore", "keep"), base.on_stop),
        log_level=section.choice("log_level", ("debug", "info", "warning", "error"), base.log_level),
        log_format=section.choice("log_format", ("auto", "json", "console"), base.log_format),
    )
    for key in ("socket", "fd_socket", "pool_socket"):
        if len(getattr(agent, key).encode()) > SOCKET_BYTES_MAX:
            section.wrong(key, "too long for a socket", f"use at most {SOCKET_BYTES_MAX} bytes")
    if agent.fd_socket == agent.socket:
        section.wrong("fd_socket", "the API listens there", "give it another path")
    if agent.pool_socket in (agent.socket, agent.fd_socket):
        section.wrong("pool_socket", "the agent listens there for something else", "give it another path")
    if agent.settle_s < agent.poll_s:
        section.wrong(
            "settle_s",
            f"{agent.settle_s:g} s is shorter than poll_s, so neighbours would not know a slice in time",
            f"give at least {agent.poll_s:g}",
        )
    if agent.poll_s > agent.ttl_s / 10:
        section.wrong("poll_s", "too slow for ttl_s", f"give at most {agent.ttl_s / 10:g}")
    section.done()
    return agent


def _limits(section: Section) -> Limits:
    base, (warn_at, warn_clear_at) = Limits(), thresholds(section)
    limits = Limits(
        flows_max=section.number("flows_max", base.flows_max, 1024, 1 << 26),
        clients_max=section.number("clients_max", base.clients_max, 16, 1 << 26),
        addresses_max=section.number("addresses_max", base.addresses_max, 1, 1 << 20),
        slots_max=section.number("slots_max", base.slots_max, 16, 1 << 24),
        fragments_max=section.number("fragments_max", base.fragments_max, 1024, 1 << 22),
        held_max=section.number("held_max", base.held_max, 64, 1 << 18),
        warn_at=warn_at,
        warn_clear_at=warn_clear_at,
    )
    section.done()
    return limits


def _pools(document: Section, limits: Limits) -> tuple[Pool, ...]:
    pools: dict[str, Pool] = {}
    sections = document.sections("pools")
    for section in sections:
        name = section.name("name", TAG_PATTERN)
        if name in pools:
            section.wrong("name", f"pool {name} is here twice", "give each pool its own name")
        timers = section.section("timers")
        values = {
            timer.name: timers.number(timer.name, int(getattr(Timers(), timer.name)), 1, TIMER_MAX_S)
            for timer in fields(Timers)
        }
        timers.done()
        slices_max = section.number("slices_max", 1, 1, min(POOL_SLICES_MAX, limits.slots_max))
        pool = Pool(
            name,
            read_tags(section),
            slices_max,
            Timers(**values),
            _behaviour(section),
            client_limits(section),
            section.number("icmp_errors_per_s", ICMP_ERRORS_PER_S, 0, ICMP_ERRORS_MAX),
            section.choice("when_full", WHEN_FULL, WHEN_FULL[0]),
            *thresholds(section),
            holders(section, "users"),
            holders(section, "groups"),
            resolvers(section),
        )
        section.done()
        if name:
            pools.setdefault(name, pool)
    if len(sections) > POOLS_MAX:
        document.wrong("pools", f"{len(sections)} pools", f"use at most {POOLS_MAX}")
    return tuple(pools.values())


def _behaviour(section: Section) -> Behaviour:
    """`mapping` and `filtering`: tables of "independent" or "dependent" by protocol."""
    default, found = Behaviour(), list[frozenset[str]]()
    for key, usual in (
        ("mapping", default.independent_mapping),
        ("filtering", default.independent_filtering),
    ):
        table = section.section(key)
        chosen = {
            name: table.choice(
                name, ("dependent", "independent"), "independent" if name in usual else "dependent"
            )
            for name in PROTOCOLS
        }
        table.done()
        found.append(frozenset(name for name, how in chosen.items() if how == "independent"))
    mapping, filtering = found
    for name in sorted(filtering - mapping):
        section.wrong(
            "filtering",
            f"{name} filters independently but maps dependently",
            f'set mapping.{name} = "independent"',
        )
    return Behaviour(mapping, filtering)


def read_tags(section: Section) -> dict[str, str]:
    """`tags` of a pool or an address."""
    tags = section.texts("tags")
    try:
        check_tags(tags)
    except InputError as error:
        section.wrong("tags", *reason(error))
    return tags


def _ipv4(section: Section, key: str) -> IPv4Address | None:
    text = section.text(key)
    try:
        return IPv4Address(text) if text else None
    except AddressValueError:
        section.wrong(key, f"{text!r} is not an IPv4 address", "write it like 192.0.2.1")
        return None
