"""From a configuration to a running agent and back: what is opened in which order, and closed again.

Everything that can be refused is refused before anything is changed. When the start fails later, a data path
that was there before is left running, and a new one is taken back. A clean stop restores the host unless the
configuration says "keep"; any other end (a crash, SIGKILL) leaves the data path to carry on until its deadlines,
for the next agent to adopt. So does a lost uplink, only that the addresses are taken from `lo`.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Mapping
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from softunicast import __version__
from softunicast.agent.api import Api
from softunicast.agent.daemon import Daemon
from softunicast.agent.descriptors import Descriptors, holders_of
from softunicast.agent.effects import NodeEffects
from softunicast.agent.host import JOURNAL_FILE, HostChanges
from softunicast.agent.keeper import Timing
from softunicast.agent.kernel_thread import KernelThread
from softunicast.agent.lending import Lending, borrowers_of
from softunicast.agent.lock import StateLock
from softunicast.agent.notify import notify
from softunicast.agent.peers import Holders
from softunicast.agent.privileges import require_privileges
from softunicast.agent.sockets import Sockets, board_of, look_after
from softunicast.core.config import Config
from softunicast.core.errors import HostError, InputError, SoftunicastError
from softunicast.core.pools import check_dns, select
from softunicast.core.records import Server
from softunicast.kernel import links, probe
from softunicast.kernel.datapath import Datapath
from softunicast.kernel.explain import explain
from softunicast.kernel.grants import Grants
from softunicast.ledger.sqlite import SqliteLedger
from softunicast.observe import logs


def run(config: Config) -> None:
    """Runs the agent in the calling process until SIGTERM or SIGINT. Raises SoftunicastError."""
    logs.configure(config.agent.log_format, config.agent.log_level)
    require_privileges()
    probe.require()
    me, onramps = identify(config)
    # A server with an address in one of the uplink's own prefixes needs no router to be reached.
    segment = tuple(address.network for address in links.interface(config.uplink.interface).addresses)
    holders, borrowers = holders_of(config), borrowers_of(config)
    # A mistake in the configuration shows at the first start. After a crash the data path is to be taken over
    # whatever became of one on-ramp meanwhile; it waits, as it would have in a running agent.
    if onramps and not (Path(config.agent.state_dir) / JOURNAL_FILE).exists():
        raise HostError(
            f"there is no interface {onramps[0]}, an on-ramp", "see [[onramps]] in the configuration"
        )
    if not Path(config.ledger.path).exists():
        raise InputError(
            f"there is no ledger {config.ledger.path}",
            f"make it with `softunicast ledger apply --ledger {config.ledger.path} INVENTORY`",
        )
    lock = StateLock.take(Path(config.agent.state_dir))
    try:
        asyncio.run(_run(config, me, segment, holders, borrowers))
    finally:
        lock.release()


def identify(config: Config) -> tuple[Server, tuple[str, ...]]:
    """This server as its neighbours see it, and the on-ramps that are not there. Raises HostError.

    Needs no privilege and changes nothing.
    """
    uplink = links.interface(config.uplink.interface)
    if uplink.mac is None:
        raise HostError(
            f"the uplink {uplink.name} is no Ethernet interface", "neighbours are reached by MAC address"
        )
    addresses = [address.ip for address in uplink.addresses]
    if config.uplink.address is None and not addresses:
        raise HostError(
            f"the uplink {uplink.name} has no IPv4 address", "give it one before the agent starts"
        )
    if config.uplink.address is not None and config.uplink.address not in addresses:
        raise HostError(
            f"the uplink {uplink.name} does not have the address {config.uplink.address}",
            f"use one it has: {', '.join(map(str, addresses)) or 'none'}",
        )
    me = Server(config.server.name, config.server.site, config.uplink.address or addresses[0], uplink.mac)
    return me, tuple(
        name for name in config.onramps if name not in config.tuns and links.index_of(name) is None
    )


async def _run(
    config: Config,
    me: Server,
    segment: tuple[IPv4Network, ...],
    holders: Mapping[str, Holders],
    borrowers: Mapping[str, Holders],
) -> None:
    log = logs.logger(server=me.name)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    possible = look_after(config.sockets)
    ledger = await SqliteLedger.open(Path(config.ledger.path), quarantine_s=config.agent.quarantine_s)
    kernel = KernelThread()
    try:
        addresses = (await ledger.snapshot()).addresses
        for pool in config.pools:
            check_dns(pool, select(pool, addresses, me.site))
        host = HostChanges.open(Path(config.agent.state_dir))
        datapath = await kernel(
            Datapath.open,
            Path(config.agent.bpffs),
            config.uplink.interface,
            me.name,
            config.limits,
            {**config.attach, config.uplink.interface: config.uplink.attach},
            config.sources,
            config.rules,
            possible[0],
        )
    except BaseException:
        kernel.close()
        await ledger.close()
        raise
    timing = Timing(config.agent.ttl_s, config.agent.settle_s, time.monotonic_ns, random.random)
    sockets = Sockets(Path(config.agent.state_dir), board_of(config, *possible))
    effects = NodeEffects(datapath, host, sockets, config.uplink.interface, me.name, tuns=config.tuns)
    daemon = Daemon(config, me, ledger, kernel, effects, timing, log, segment)
    api = Api(daemon, partial(explain, datapath), Path(config.agent.socket), log)
    descriptors = Descriptors(daemon, holders, log)
    lending = Lending(daemon, Grants(datapath), borrowers, log)
    restore = not datapath.adopted
    try:
        await daemon.begin()
        await api.start()
        await descriptors.start()
        await kernel(sockets.publish)
        await lending.start()
        restore = False  # from here on only a clean stop takes anything back
        daemon.event_log.info(
            "agent ready", version=__version__, adopted=datapath.adopted, address=me.address
        )
        await daemon.run(stop, partial(notify, "READY=1"))
        restore = config.agent.on_stop == "restore"
    except Exception as error:
        # One line is enough for what the operator can do something about; a defect needs the whole story.
        log.error("agent failed", why=str(error), exc_info=not isinstance(error, SoftunicastError))
        raise
    finally:
        notify("STOPPING=1")
        await lending.stop()
        await descriptors.stop()
        await api.stop()
        clean = await daemon.end(restore)
        log.info("agent stopped", restored=restore and clean)
