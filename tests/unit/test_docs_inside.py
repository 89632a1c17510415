"""What the reference says, compared with what the program is, second half: what people look at. Maps, counters, reasons
and kernel features; the ledger's events; labs; environment variables, make targets and the log. See test_docs.py.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, cast

from tests.unit.pages import CODE, ROOT, entries, own, page, rows, section

from softunicast.core.events import KINDS
from softunicast.core.leases import LeaseEvent, LeaseState
from softunicast.kernel import abi, probe
from softunicast.kernel.reasons import MEANING
from softunicast.lab import catalogue, internet, traffic
from softunicast.lab.failures import FAILURES
from softunicast.strategies.catalogue import STRATEGIES

SOURCE = ROOT / "src/softunicast"

# -- kernel --------------------------------------------------------------------------------------------------

MAP = re.compile(r"struct \{(.*?)\} (\w+) SEC\(\"\.maps\"\);", re.DOTALL)
TYPES = {
    "ARRAY": "array",
    "LPM_TRIE": "LPM trie",
    "HASH": "hash",
    "LRU_HASH": "LRU hash",
    "PERCPU_ARRAY": "per-CPU array",
    "PROG_ARRAY": "program array",
    "SK_STORAGE": "socket storage",
}


def test_every_map() -> None:
    headers = "".join(
        (ROOT / "bpf" / name).read_text()
        for name in (
            *("maps.h", "scratch.h", "handed.h", "agreement.h", "remade.bpf.c", "socket.h", "sender.h"),
            *("granted.h", "asked.h"),
        )
    )
    header = re.sub(r"#else.*?#endif", "", headers, flags=re.DOTALL)  # IPv6
    maps = {name: body for body, name in MAP.findall(header)}
    sized = dict(re.findall(r'"(\w+)": .*\blimits\.(\w+)', (SOURCE / "kernel/datapath.py").read_text()))
    said = {
        **entries(section(page("maps"), "Tables: written by the agent")),
        **entries(section(page("maps"), "Made by packets")),
    }
    assert said.keys() == maps.keys()
    assert sized.keys() <= maps.keys()
    for name, body in maps.items():
        _, kind, key, value, count, setting = said[name]
        assert kind == TYPES[re.findall(r"BPF_MAP_TYPE_(\w+)", body)[0]]
        assert all(struct in f"{key} {value}" for struct in re.findall(r"struct \w+", body))
        entry_count = next(iter(re.findall(r"max_entries, (\w+)", body)), "0")
        assert count == (entry_count if entry_count.isdigit() else "one per " + value_name(entry_count))
        assert setting == (f"`{sized[name]}`" if name in sized else "")


def value_name(constant: str) -> str:
    return {
        "REASON_MAX": "reason",
        "TRAFFIC_MAX": "counter",
        "HANDED_MAX": "program",
        "HANDED_TC_MAX": "program",
    }[constant]


def enum_of_header(prefix: str) -> set[str]:
    names = set(re.findall(rf"^\t{prefix}_(\w+)", (ROOT / "bpf/abi.h").read_text(), re.MULTILINE))
    return {name.lower() for name in names - {"NONE", "MAX"}}


def test_every_drop_reason() -> None:
    said = {reason: row[2] for reason, row in entries(page("drops")).items()}
    assert said == {reason.name.lower(): meaning for reason, meaning in MEANING.items()}
    assert said.keys() == enum_of_header("REASON")
    assert set(MEANING) == set(abi.Reason) - {abi.Reason.NONE, abi.Reason.MAX}


def test_every_traffic_counter() -> None:
    said = entries(section(page("maps"), "Traffic counters")).keys()
    assert said == enum_of_header("TRAFFIC") == {one.name.lower() for one in abi.Traffic} - {"max"}


def test_every_kernel_feature() -> None:
    said = {name: (row[1], row[2].replace("`", "")) for name, row in entries(features_section()).items()}
    assert said == {name: (one.since, one.needed_for.replace("`", "")) for name, one in probe._PROBES.items()}
    optional = {name for name, one in probe._PROBES.items() if not one.required}
    assert set(CODE.findall(features_section().splitlines()[2])) == {"softunicast doctor", *optional}


def features_section() -> str:
    return section(page("environment"), "Kernel features")


# -- ledger, lab ---------------------------------------------------------------------------------------------


def test_every_event_and_state_of_a_lease() -> None:
    events = {str(event) for event in LeaseEvent} - {"renewed"}
    written = re.findall(r'"((?:server|host)_\w+)"', (SOURCE / "ledger/book.py").read_text())
    changes = {f"{what}_{done}" for what in ("block", "address") for done in ("added", "changed", "removed")}
    assert entries(section(page("ledger"), "History")).keys() == {
        *events,
        *written,
        *(changes - {"block_changed"}),  # a block is nothing but its prefix
    }
    said = entries(section(page("ledger"), "The life of a lease"))
    assert said.keys() == {str(state) for state in LeaseState}


def test_every_topology_with_its_nodes() -> None:
    for name, build in catalogue.TOPOLOGIES.items():
        text = section(page("lab"), f"The topology {name}")
        topology = build()
        assert {node.name for node in topology.nodes} == entries(text).keys()
        ports = {port.interface for link in topology.links for port in link.ends}
        assert all(f"`{interface}`" in text for interface in ports)


def test_every_probe_and_every_answer_of_the_internet() -> None:
    said = entries(section(page("lab"), "Probes"))
    probes = next(iter(traffic._parser()._subparsers._group_actions)).choices  # type: ignore[union-attr]
    assert isinstance(probes, dict)
    assert said.keys() == probes.keys()
    for name, parser in probes.items():
        options = {option for action in parser._actions for option in action.option_strings}
        assert set(re.findall(r"--[a-z-]+", said[name][2])) == options - {"-h", "--help"}
    application = internet.Web(internet.Visitors()).application
    answers = {
        (route.method, str(cast(Any, route.resource).canonical)) for route in application.router.routes()
    }
    requests = entries(section(page("lab"), "The node internet"))
    spoken = {(one.split()[0], re.sub(r"/N.*", "/{size}", one.split()[1])) for one in requests}
    assert spoken == {(method, path) for method, path in answers if method != "HEAD"}


def test_every_strategy_and_its_failures() -> None:
    text = own(section(page("strategies"), "The strategies"))
    said = {row[0].strip("`"): row for row in rows(text)}
    assert said.keys() == STRATEGIES.keys()
    for name, kind in STRATEGIES.items():
        idea, _, fails = said[name][1:]
        assert idea == kind.about
        known = {one.name for one in FAILURES.values() if name in one.of}
        assert set(CODE.findall(fails)) == known or name == "claims"


def test_every_failure() -> None:
    said = {row[0].strip("`"): row for row in rows(section(page("strategies"), "The failures"))}
    assert said.keys() == FAILURES.keys()
    for name, one in FAILURES.items():
        _, of, about, avoided, _ = said[name]
        assert tuple(CODE.findall(of)) == one.of
        assert (about, avoided) == (one.about, "yes" if one.avoided else "no")


# -- surroundings --------------------------------------------------------------------------------------------


@cache
def sources() -> str:
    return "\n".join(path.read_text() for path in (*SOURCE.rglob("*.py"), ROOT / "Makefile"))


def test_every_environment_variable() -> None:
    said = entries(section(page("environment"), "Variables")).keys()
    assert {name for name in said if name.startswith("SOFTUNICAST")} == set(
        re.findall(r"SOFTUNICAST_[A-Z_]+", sources())
    )


def test_every_make_target() -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text().replace("\\\n", " "), re.MULTILINE)
    targets = " ".join(phony).split()
    assert len(targets) > 10
    assert entries(section(page("environment"), "make")).keys() == {f"make {target}" for target in targets}


def test_every_event_of_the_log() -> None:
    troubles = re.findall(r'Trouble\("([^"]+)"', sources())
    found = set()
    for level, event in re.findall(r'log\.(\w+)\(\s*f?"([^"]+)"', sources()):
        for one in (event.replace("{self._what}", trouble) for trouble in troubles):
            found.add((one, "error" if level == "exception" else level))
    said = set()
    for row in rows(section(page("environment"), "The agent's log")):
        events, levels = CODE.findall(row[0]), row[1].split(", ")
        said |= set(zip(events, levels * len(events) if len(levels) == 1 else levels, strict=True))
    assert said == found


def test_every_kind_of_event() -> None:
    said = {CODE.findall(row[0])[0]: (row[1], row[2]) for row in rows(section(page("events"), "Kinds"))}
    known = {
        name: ("-" if kind.nat_event is None else str(kind.nat_event), kind.meaning)
        for name, kind in KINDS.items()
    }
    assert said == known
    logged = set(re.findall(r'log\.(?:info|warning|error)\(\s*"([^"]+)"', sources()))
    assert known.keys() <= logged
