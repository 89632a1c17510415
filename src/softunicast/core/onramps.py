"""On-ramps as the configuration has them: where clients come in, whom to believe, and TUN devices for programs.

Texts only, like all of the configuration: whether an interface or a user exists is for whoever uses the values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import (
    AddressValueError,
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    IPv6Network,
    NetmaskValueError,
    ip_network,
)
from typing import Final

from softunicast.core.config_sharing import holders, onramp_rules
from softunicast.core.onramp_rules import NO_RULES, OnrampRules
from softunicast.core.toml_reader import Section, suggestion

ONRAMPS_MAX: Final = 1024  # entries of the kernel's table of on-ramps
ATTACHMENTS: Final = ("auto", "tc", "xdp")  # of an on-ramp, and of the uplink
SOURCES_MAX: Final = 16  # the same number as ONRAMP_SOURCES_MAX in bpf/abi.h
MTU_MIN, MTU_MAX = 576, 65535  # RFC 791's least that everybody takes; the most that a TUN has
MTU6_MIN: Final = 1280  # RFC 8200: a device with less has no IPv6
MTU_DEFAULT: Final = 1500
_INTERFACE: Final = re.compile(r"[^\s/:%]{1,15}")  # what the kernel's dev_valid_name lets through
_NOT_INTERFACES: Final = (".", "..", "all", "default")  # the last two mean every interface to sysctl
IPNetwork = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Tun:
    """A TUN device that the agent makes and whose descriptor programs of these `users` and `groups` (names or
    numbers) get. `address`: the server's own on it; `address6`: likewise, where the program has IPv6. `offload`:
    packets have a virtio_net header, so that many can be given as one large one."""

    address: IPv4Interface
    mtu: int = MTU_DEFAULT
    offload: bool = False
    users: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    address6: IPv6Interface | None = None


@dataclass(frozen=True, slots=True)
class Onramp:
    """`name` is the interface's. `sources`: addresses that clients may have; none: any. `tun`: of kind "fd".
    `rules`: what it exempts and clamps."""

    name: str
    pool: str
    attach: str = "auto"
    sources: tuple[IPNetwork, ...] = ()
    tun: Tun | None = None
    rules: OnrampRules = NO_RULES


def parse_onramps(document: Section, uplink: str, pools: list[str]) -> tuple[Onramp, ...]:
    """The `[[onramps]]`, each name once."""
    found: dict[str, Onramp] = {}
    sections = document.sections("onramps")
    for section in sections:
        onramp = _onramp(section)
        name, key = onramp.name, "name" if onramp.tun else "interface"
        if name and name in found:
            section.wrong(key, f"{name} is an on-ramp already", "give each interface one pool")
        if name and name == uplink:
            section.wrong(key, f"{name} is the uplink", "name the interface clients come in by")
        if onramp.pool and onramp.pool not in pools:
            fix = suggestion(onramp.pool, pools) if pools else "add a [[pools]]"
            section.wrong("pool", f"no pool {onramp.pool}", fix)
        section.done()
        found.setdefault(name, onramp)
    if len(sections) > ONRAMPS_MAX:
        document.wrong("onramps", f"{len(sections)} on-ramps", f"use at most {ONRAMPS_MAX}")
    return tuple(found.values())


def interface_name(section: Section, key: str = "interface") -> str:
    """A name that an interface can have; a stand-in is empty."""
    name = section.text(key)
    if name and (not _INTERFACE.fullmatch(name) or name in _NOT_INTERFACES or not name.isascii()):
        section.wrong(key, f"{name!r} is no interface name", "give one as `ip link` prints it")
        return ""
    return name


def _onramp(section: Section) -> Onramp:
    if section.choice("kind", ("interface", "fd"), "interface") == "interface":
        name = interface_name(section)
        attach = section.choice("attach", ATTACHMENTS, "auto")
        return Onramp(name, section.text("pool"), attach, _sources(section), rules=onramp_rules(section))
    name = interface_name(section, "name")
    tun = Tun(
        _address(section),
        section.number("mtu", MTU_DEFAULT, MTU_MIN, MTU_MAX),
        section.flag("offload", False),
        holders(section, "users"),
        holders(section, "groups"),
        _address6(section) if section.have("address6") else None,
    )
    sources = _sources(section)
    if tun.address6 is None and not section.have("address6") and any(one.version == 6 for one in sources):
        fix = 'give the server one, too: address6 = "2001:db8:9::1/64"'
        section.wrong("sources", "IPv6 prefixes, but the device has no IPv6 address", fix)
    if tun.address6 is not None and tun.mtu < MTU6_MIN:
        section.wrong("mtu", f"{tun.mtu} is too little for IPv6", f"give at least {MTU6_MIN}, or no address6")
    if tun.address6 is not None and sources and all(one.version == 4 for one in sources):
        section.wrong("address6", "sources has no IPv6 prefix", "add those that the program may use")
    if not sources and not section.have("sources"):
        section.wrong(
            "sources", "missing", 'say which addresses the program may use: sources = ["10.9.0.0/24"]'
        )
    if not tun.users and not tun.groups:
        section.wrong("users", "nobody may open it", 'name them: users = ["..."] or groups = ["..."]')
    return Onramp(name, section.text("pool"), "tc", sources, tun, onramp_rules(section))


def _address(section: Section) -> IPv4Interface:
    text = section.text("address")
    try:
        if text and "/" in text:
            return IPv4Interface(text)
    except (AddressValueError, NetmaskValueError):
        pass
    if text:
        section.wrong(
            "address", f"{text!r} is not an address with its prefix length", "write it like 10.9.0.1/24"
        )
    return IPv4Interface("0.0.0.0/0")


def _address6(section: Section) -> IPv6Interface | None:
    text = section.text("address6")
    try:
        if "/" in text and "%" not in text:
            found = IPv6Interface(text)
            if not (found.is_link_local or found.is_multicast or found.is_unspecified or found.is_loopback):
                return found
    except (AddressValueError, NetmaskValueError):
        pass
    if text:
        fix = "write it like 2001:db8:9::1/64; link-local ones are not forwarded"
        section.wrong("address6", f"{text!r} is not an IPv6 address with its prefix length", fix)
    return None


def _sources(section: Section) -> tuple[IPNetwork, ...]:
    found = []
    for text in section.list_of_texts("sources", SOURCES_MAX):
        try:
            prefix = None if "%" in text else ip_network(text)
        except ValueError:
            prefix = None
        if prefix is None:
            fix = "write it like 10.9.0.0/24 or 2001:db8:9::/64, host bits zero"
            section.wrong("sources", f"{text!r} is no prefix", fix)
        elif prefix.version == 6 and (prefix.is_link_local or prefix.is_multicast):
            section.wrong("sources", f"{text} is of one link", "name addresses that can be forwarded")
        else:
            found.append(prefix)
    if section.have("sources") and not found:
        section.wrong("sources", "no address may come in", "name at least one prefix, or leave it out")
    return tuple(found)
