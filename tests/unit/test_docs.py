"""What the reference says, compared with what the program is; in both directions, so that nothing is missing and
nothing is left over. Settings, commands, exit codes, endpoints, fields and limits are taken from the code
itself and never listed here. This file: what people and programs type, from the parsers, the click tree and the
routes; test_docs_inside.py: what they look at.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from tests.unit.pages import FENCE, ROOT, blocks, entries, own, page, rows, section

from softunicast.agent import api
from softunicast.cli import doctor, main
from softunicast.core.config import parse_config
from softunicast.core.errors import SoftunicastError
from softunicast.core.inventory import parse_inventory
from softunicast.core.ledger import HISTORY_LIMIT_MAX
from softunicast.core.records import HistoryEntry
from softunicast.core.toml_reader import Section
from softunicast.kernel.flows import Flow, Sample

SOURCE = ROOT / "src/softunicast"
# What is asked for only when it is there: the interface's own stands for it, or all of a prefix, or nothing.
WITHOUT_DEFAULT = {
    ("sockets", "cgroup"),
    ("uplink", "address"),
    ("addresses", "count"),
    ("onramps", "address6"),
}


# -- settings ------------------------------------------------------------------------------------------------


def number_text(number: float) -> str:
    return f"{number:f}".rstrip("0").rstrip(".") if isinstance(number, float) else str(number)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], tuple[str, list[str]]]:
    """(table, key) -> (default, bounds) of everything that the parsers ask a file for, as the pages write it."""
    found: dict[tuple[str, str], tuple[str, list[str]]] = {}
    inside: list[str] = []

    def listen(name: str) -> None:
        method = getattr(Section, name)

        def heard(self: Section, key: str, *args: Any, **more: Any) -> Any:
            table = next((part for part in reversed(self.at) if isinstance(part, str)), "")
            if not inside and table:
                found[table, key] = described(name, args)
            inside.append(key)
            try:
                return method(self, key, *args, **more)
            finally:
                inside.pop()

        monkeypatch.setattr(Section, name, heard)

    def described(name: str, args: tuple[Any, ...]) -> tuple[str, list[str]]:
        if name == "number":
            return f"`{number_text(args[0])}`", [f"{number_text(args[1])} to {number_text(args[2])}"]
        if name in ("texts", "section"):
            return "`{}`", []
        if name == "flag":
            return f"`{str(args[0]).lower()}`", []
        if name == "list_of_texts":
            return "`[]`", [f"at most {args[0]}"]
        if name == "number_or_choice":
            return f"`{args[0][0]}`", [*(f"`{option}`" for option in args[0]), f"{args[1]} to {args[2]}"]
        if name == "choice":
            return (f"`{args[1]}`" if len(args) > 1 else "required"), [f"`{option}`" for option in args[0]]
        return (f"`{args[0]}`" if name != "name" and args else "required"), []

    taking = ("number", "texts", "section", "choice", "path", "text", "name", "flag", "list_of_texts")
    for name in (*taking, "number_or_choice"):
        listen(name)
    return found


def check_settings(text: str, asked: dict[tuple[str, str], tuple[str, list[str]]]) -> None:
    tables = {table for table, _ in asked}
    documented = {(table, key) for table in tables for key in entries(section(text, table))}
    assert documented == set(asked)
    for (table, key), (default, bounds) in asked.items():
        _, _, said_default, said_bounds, _ = entries(section(text, table))[key]
        if (table, key) not in WITHOUT_DEFAULT:
            assert said_default == default, (table, key)
        assert all(bound in said_bounds for bound in bounds), (table, key, bounds)


def test_every_setting_of_the_agent(asked: dict[tuple[str, str], tuple[str, list[str]]]) -> None:
    text = page("configuration")
    whole = max(blocks(text, "toml"), key=len)
    parse_config(whole, "example")
    check_settings(text, asked)
    assert {key for _, key in asked} - {"timers"} <= set(re.findall(r"\b(\w+) = ", whole))


def test_every_setting_of_the_inventory(asked: dict[tuple[str, str], tuple[str, list[str]]]) -> None:
    text = page("ledger")
    parse_inventory(blocks(text, "toml")[0], "example")
    check_settings(section(text, "The inventory file"), asked)


# -- commands ------------------------------------------------------------------------------------------------


def tree(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from tree(below, f"{path} {name}")


COMMANDS = dict(tree(main.cli, "softunicast"))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_with_its_options(path: str) -> None:
    heading = "Synopsis" if path == "softunicast" else path
    text = own(section(page("cli"), heading))
    said = {name: row for row in rows(text) for name in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", row[0])}
    known = {"-h", "--help"} if path == "softunicast" else set()
    for parameter in COMMANDS[path].params:
        if isinstance(parameter, click.Option):
            names = {*parameter.opts, *parameter.secondary_opts}
            known |= names
            assert names <= said.keys()
            _, default, meaning = said[parameter.opts[0]]
            assert parameter.opts[0] in FENCE.findall(text)[0][1]
            assert (default == "required") == parameter.required, parameter.opts
            if parameter.show_default:
                assert default == f"`{parameter.default}`"
            variable = parameter.envvar or ""
            assert isinstance(variable, str)
            assert variable in meaning
        else:
            _, _, meaning = entries(text)[parameter.make_metavar(click.Context(COMMANDS[path]))]
        kind = parameter.type
        if isinstance(kind, click.IntRange):
            assert f"{kind.min} to {kind.max}" in meaning
        if isinstance(kind, click.Choice):
            assert all(choice in text for choice in kind.choices)
    assert said.keys() <= known


def test_every_heading_of_a_command_is_one() -> None:
    said = re.findall(r"^#+ (softunicast .+)$", page("cli"), re.MULTILINE)
    assert set(said) == COMMANDS.keys() - {"softunicast"}


def test_every_exit_code() -> None:
    def below(kind: type[SoftunicastError]) -> Iterator[int]:
        yield kind.exit_code
        for one in kind.__subclasses__():
            yield from below(one)

    ours = {main.EXIT_INTERRUPTED, main.EXIT_READER_GONE, doctor.EXIT_UNFIT, click.UsageError.exit_code}
    said = {int(row[0]) for row in rows(section(page("cli"), "Exit codes"))}
    assert said == {0, *ours, *below(SoftunicastError)}


# -- API -----------------------------------------------------------------------------------------------------


async def test_every_endpoint(tmp_path: Path) -> None:
    nothing: Any = None
    served = api.Api(nothing, nothing, tmp_path / "s", nothing)
    await served.start()
    try:
        assert served._runner is not None
        routes = served._runner.app.router.routes()
        endpoints = {f"{route.method} {route.resource.canonical}" for route in routes if route.resource}
    finally:
        await served.stop()
    endpoints = {endpoint for endpoint in endpoints if not endpoint.startswith("HEAD")}
    assert set(re.findall(r"^### (.+)$", page("api"), re.MULTILINE)) == endpoints
    assert entries(own(section(page("api"), "Endpoints"))).keys() == endpoints


def functions(*modules: str) -> dict[str, ast.AST]:
    trees = [ast.parse((SOURCE / module).read_text()) for module in modules]
    nodes = [node for tree_ in trees for node in ast.walk(tree_)]
    return {node.name: node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def keys_and_parameters(function: ast.AST) -> set[str]:
    """What a function puts into JSON objects, and what it takes from the query."""
    found: list[ast.expr | None] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            found += node.keys
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_only":
            found += node.args
    return {str(one.value) for one in found if isinstance(one, ast.Constant)}


@pytest.mark.parametrize(
    ("endpoint", "names", "more"),
    [
        ("GET /v1/status", ["status"], []),
        ("GET /v1/slices", ["slices", "_slices"], []),
        ("GET /v1/leases", ["_lease", "_leases"], HistoryEntry.__dataclass_fields__),
        ("GET /v1/pools", ["pools", "_pools"], []),
        ("GET /v1/onramps", ["onramps", "_onramps"], []),
        ("GET /v1/agreements", ["agreements", "_agreements"], []),
        ("GET /v1/servers", ["servers", "_servers"], []),
        ("GET /v1/flows", ["_flows"], Flow.__dataclass_fields__),
        ("GET /v1/drops", ["drops", "_drops"], Sample.__dataclass_fields__),
        ("GET /v1/events", ["event", "_events"], []),
        ("POST /v1/explain", ["_explained"], [*api._Question._TEXTS, "flags", "leaving"]),
    ],
)
def test_every_field_and_parameter(endpoint: str, names: list[str], more: Iterable[str]) -> None:
    known = functions("agent/api.py", "agent/daemon.py", "agent/views.py")
    wanted = set(more).union(*(keys_and_parameters(known[name]) for name in names))
    assert len(wanted) > 3
    assert entries(section(page("api"), endpoint)).keys() == wanted


@pytest.mark.parametrize(
    "limit",
    [
        api.REQUESTS_MAX,
        api.BODY_BYTES_MAX,
        api.FLOWS_DEFAULT,
        api.FLOWS_MAX,
        api.HISTORY_DEFAULT,
        api.EVENTS_MAX,
        HISTORY_LIMIT_MAX,
    ],
)
def test_every_limit_of_the_api(limit: int) -> None:
    assert re.search(rf"\b{limit}\b", page("api"))
