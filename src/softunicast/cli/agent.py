"""`softunicast agent`: runs this server's agent in the foreground, or says what it would do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from softunicast.core.config import Config, parse_config
from softunicast.core.errors import HostError, InputError

CONFIG_BYTES_MAX = 1 << 20


@click.command()
@click.option(
    "--config",
    "path",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration (TOML).",
)
@click.option("--check", is_flag=True, help="Only check it and say what the agent would do; changes nothing.")
def command(path: Path, check: bool) -> None:
    """Run this server's agent: hold leases, program the kernel, answer the other nouns.

    Stays in the foreground and logs to stderr. SIGTERM or Ctrl-C gives the leases back and leaves the host as it
    was found, unless on_stop = "keep". When the agent is killed, packets keep flowing until the leases end; start
    it again before that.

    \b
    Examples:
      softunicast agent --config /etc/softunicast/agent.toml --check
      softunicast agent --config /etc/softunicast/agent.toml
    """
    config = read_config(path)
    if check:
        for line in intentions(config):
            click.echo(line)
        return
    from softunicast.agent.start import run

    run(config)


def read_config(path: Path) -> Config:
    """Raises InputError when the file cannot be read, ConfigError with every problem in it."""
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise InputError(
                f"{path} is no configuration: over {CONFIG_BYTES_MAX} bytes", "name the right file"
            )
        return parse_config(data.decode(), str(path))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}", "name a readable file with --config"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}", "write it in UTF-8") from error


def intentions(config: Config) -> Iterator[str]:
    """What the agent would do with this configuration on this host, line by line."""
    from softunicast.agent.descriptors import holders_of
    from softunicast.agent.lending import borrowers_of
    from softunicast.agent.start import identify

    yield f"{config.path}: no problems"
    server, agent = config.server, config.agent
    try:
        me, missing = identify(config)
        yield f"would register {me.name} at site {me.site}, reached at {me.address} ({me.mac})"
        for name in missing:
            yield f"note: on-ramp {name} is not on this host"
    except HostError as error:
        yield f"would register {server.name} at site {server.site}"
        yield f"note: on this host, {error}"
    try:
        holders_of(config)
        borrowers_of(config)
    except HostError as error:
        yield f"note: on this host, {error}"
    if not Path(config.ledger.path).exists():
        yield f"note: there is no ledger {config.ledger.path} on this host"
    yield f"would attach director and guard to {config.uplink.interface}, pinned in {agent.bpffs}"
    for pool in config.pools:
        tags = ", ".join(f"{key}={value}" for key, value in pool.tags.items()) or "any tags"
        clients = [name for name, of in config.onramps.items() if of == pool.name]
        slices = "a slice" if pool.slices_max == 1 else f"up to {pool.slices_max} slices"
        yield f"would hold {slices} for pool {pool.name} ({tags})"
        if clients:
            yield f"would translate what comes in by {', '.join(clients)} into pool {pool.name}"
        if pool.dns:
            yield f"would answer lookups on loopback in pool {pool.name} by {', '.join(map(str, pool.dns))}"
        if whose := _holders(pool.users, pool.groups):
            yield f"would let programs of {whose} use pool {pool.name}, at {agent.pool_socket}"
    yield f"would renew leases of {agent.ttl_s:g} s every {agent.ttl_s / 3:g} s and listen on {agent.socket}"
    for name, tun in config.tuns.items():
        whose = _holders(tun.users, tun.groups)
        addresses = ", ".join(str(one) for one in (tun.address, tun.address6) if one)
        yield f"would make the TUN device {name} ({addresses}) for {whose}, handed out at {agent.fd_socket}"
    after = "give everything back" if agent.on_stop == "restore" else "leave the data path running"
    yield f"would {after} when stopped"


def _holders(users: tuple[str, ...], groups: tuple[str, ...]) -> str:
    return ", ".join([*users, *(f"group {group}" for group in groups)])
