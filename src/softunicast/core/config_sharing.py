"""The settings about sharing fairly: limits of a client, thresholds, what an on-ramp exempts and clamps.

Read like everything else of the configuration (core/config.py, of which this is a part): every problem is noted in the
section, and a stand-in returned.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Final

from softunicast.core.errors import InputError
from softunicast.core.onramp_rules import EXEMPT_MAX, MSS_MAX, MSS_MIN, OnrampRules
from softunicast.core.pools import WARN_AT, WARN_CLEAR_AT, ClientLimits
from softunicast.core.slices import Slice
from softunicast.core.toml_reader import Section, reason

HOLDERS_MAX: Final = 64  # names in `users` or `groups`
_HOLDER: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,31}\$?")
CLIENT_MAX: Final = 1 << 26  # flows, or new flows per second, of one client


def thresholds(section: Section) -> tuple[float, float]:
    """`warn_at` and `warn_clear_at`: shares of what there is."""
    warn_at = section.number("warn_at", WARN_AT, 0.01, 1.0)
    clear_at = section.number("warn_clear_at", min(WARN_CLEAR_AT, warn_at), 0.0, 1.0)
    if clear_at > warn_at:
        section.wrong("warn_clear_at", f"{clear_at:g} is above warn_at", f"give at most {warn_at:g}")
    return warn_at, clear_at


def client_limits(section: Section) -> ClientLimits:
    table = section.section("client_limits")
    limits = ClientLimits(
        **{limit.name: table.number(limit.name, 0, 0, CLIENT_MAX) for limit in fields(ClientLimits)}
    )
    table.done()
    return limits


def onramp_rules(section: Section) -> OnrampRules:
    """`exempt`: a list of prefixes; `mss_clamp`: "off", "pmtu" or a number."""
    exempt = list[Slice]()
    for text in section.list_of_texts("exempt", EXEMPT_MAX):
        try:
            prefix = Slice.parse(text)
        except InputError as error:
            section.wrong("exempt", *reason(error))
            continue
        if prefix.is_port_slice:
            fix = "write it like 192.0.2.0/24 or 2001:db8:7::/48"
            section.wrong("exempt", f"{text} is no prefix of whole addresses", fix)
        exempt.append(prefix)
    clamp = section.number_or_choice("mss_clamp", ("off", "pmtu"), MSS_MIN, MSS_MAX)
    return OnrampRules(tuple(exempt), clamp if isinstance(clamp, int) else 0, clamp == "pmtu")


def holders(section: Section, key: str) -> tuple[str, ...]:
    """`users` or `groups`: who may have what the section is about, by name or number."""
    names = section.list_of_texts(key, HOLDERS_MAX)
    for name in names:
        if not _HOLDER.fullmatch(name):
            section.wrong(key, f"{name!r} is neither a name nor a number", "give one as `id` prints it")
    return tuple(names)
