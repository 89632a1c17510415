"""`softunicast doctor`: reads this host and the agent's notes, and says what is wrong with its fix.

What to think of the facts is decided in softunicast.kernel.doctor; here it is only found out what the agent
knows, and printed.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from softunicast.cli import client, show
from softunicast.core.errors import AgentUnreachableError, HostError

if TYPE_CHECKING:
    from softunicast.agent.host import HostChanges
    from softunicast.core.config import Config
    from softunicast.kernel.doctor import Finding, Scope

EXIT_UNFIT = 3  # as for every other "this host cannot"

COLUMNS: list[show.Column] = [
    ("SEVERITY", lambda row: row["severity"]),
    ("WHAT", lambda row: row["what"]),
    ("FIX", lambda row: row["fix"]),
]


@click.command()
@click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The agent's configuration: also look at the interfaces and directories it names.",
)
@click.option("--all", "every", is_flag=True, help="Also what is well.")
@show.json_option
@click.pass_context
def command(context: click.Context, path: Path | None, every: bool, as_json: bool) -> None:
    """Can this host do it, is anything set wrong or left over?

    Looks at the kernel's features, libbpf, sysctls, interfaces, and at what an agent that is gone has left:
    pins, attached programs, addresses on lo. Changes nothing. Exit code 3 if anything is an error.

    \b
    Examples:
      softunicast doctor                       before the first start
      softunicast doctor --config agent.toml   this very configuration
      softunicast doctor --all
    """
    from softunicast.cli.agent import read_config
    from softunicast.kernel.doctor import Finding, Severity, examine, worst_first

    config = None if path is None else read_config(path)
    socket = context.obj if config is None else config.agent.socket
    state_dir = Path(socket).parent if config is None else Path(config.agent.state_dir)
    noted, unreadable = _noted(state_dir)
    status, silent = _status(socket)
    scope = _scope(socket, config, status, noted)
    findings = list(examine(scope if silent is None else replace(scope, agent_answers=None)))
    findings += _strategies()
    for trouble in (unreadable, silent):
        if trouble is not None:
            findings.append(Finding(Severity.ERROR, trouble.what, trouble.fix))
    for problem in status["problems"] if status else ():
        findings.append(Finding(Severity.WARNING, f"the agent says: {problem}", "see the agent's log"))
    _print(worst_first(findings), every, as_json)
    if any(finding.severity is Severity.ERROR for finding in findings):
        context.exit(EXIT_UNFIT)


def _strategies() -> list[Finding]:
    """A note for each that this host cannot run. What is not offered anywhere is nobody's trouble, and what our own
    lacks is an error that the kernel's features have told already."""
    from softunicast.kernel.doctor import Finding, Severity
    from softunicast.strategies import catalogue

    return [
        Finding(Severity.OK, f"the strategy {answer.name} can run")
        if answer.can_run
        else Finding(
            Severity.NOTE if answer.offered else Severity.OK,
            f"the strategy {answer.name} cannot run: {answer.why}",
            answer.fix,
        )
        for answer in catalogue.examine()
        if answer.can_run or answer.name != catalogue.OURS
    ]


def _print(findings: tuple[Finding, ...], every: bool, as_json: bool) -> None:
    rows = [
        {"severity": finding.severity.value, "what": finding.what, "fix": finding.fix} for finding in findings
    ]
    shown = [row for row in rows if every or row["severity"] != "ok"]
    show.rows(shown, COLUMNS, as_json=as_json, empty="nothing is wrong, nothing is left over")
    if not as_json and len(rows) > len(shown):
        show.remark(f"well: {len(rows) - len(shown)}, see --all")


def _noted(state_dir: Path) -> tuple[HostChanges | None, HostError | None]:
    """The journal of what an agent changed on this host, or why it cannot be read."""
    from softunicast.agent.host import HostChanges

    try:
        return HostChanges.open(state_dir), None
    except HostError as error:
        return None, error


def _scope(socket: str, config: Config | None, status: Any, noted: HostChanges | None) -> Scope:
    """What to look at: as the configuration has it, else as the agent that answers has it, else the defaults."""
    from softunicast.core.config import AgentConfig
    from softunicast.kernel.doctor import Scope

    slices, pools = (client.get(socket, f"/v1/{noun}") if status else [] for noun in ("slices", "pools"))
    onramps = set(config.onramps) if config else {name for pool in pools for name in pool["onramps"]}
    if config is not None and status is None:
        onramps -= set(config.tuns)  # the agent makes them
    return Scope(
        bpffs=Path((AgentConfig() if config is None else config.agent).bpffs),
        uplink=config.uplink.interface if config else status and str(status["uplink"]),
        onramps=tuple(sorted(onramps)),
        onramps6=tuple(
            sorted({name for pool in pools for name in pool["onramps"] if ":" in "".join(pool["addresses"])})
        ),
        agent_answers=status is not None,
        noted_settings=() if noted is None else tuple(noted.settings),
        noted_addresses=frozenset() if noted is None else frozenset(noted.addresses),
        noted_tuns=() if noted is None else tuple(sorted(noted.tuns)),
        shared=frozenset(ip_address(row["address"]) for row in slices),
    )


def _status(socket: str) -> tuple[Any, AgentUnreachableError | None]:
    """What the agent says of itself, None when there is none; and the error when that could not be told."""
    try:
        return client.get(socket, "/v1/status"), None
    except AgentUnreachableError as error:
        untold = isinstance(error.__cause__, TimeoutError | PermissionError)
        return None, error if untold else None
