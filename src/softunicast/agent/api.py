"""The agent's API: HTTP/1.1 and JSON over a unix socket, for the command line and for scripts. It only looks.

Who may connect is the socket's mode: its owner (root) and, where the group `softunicast` exists, its members.
Everything is bounded: requests at a time, the size of what is sent and of what is answered; the reads that walk
a whole table go one by one, so that however many are asked, changes to the data path get in between.
Errors are {"error": {"what", "fix", "exit_code"}}.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from softunicast.agent import views
from softunicast.agent.daemon import Daemon
from softunicast.agent.listening import REQUESTS_MAX, STOP_TIMEOUT_S, listen
from softunicast.core.errors import InputError, SoftunicastError
from softunicast.core.events import EVENTS_MAX
from softunicast.core.ledger import HISTORY_LIMIT_MAX
from softunicast.core.slices import Slice
from softunicast.kernel.explain import Explanation
from softunicast.kernel.frames import End, build
from softunicast.observe.logs import Log

GROUP: Final = "softunicast"
BODY_BYTES_MAX: Final = 4096  # the question of `explain` has 200
FLOWS_DEFAULT: Final = 1000
FLOWS_MAX: Final = 1_000_000
HISTORY_DEFAULT: Final = 100
IDLE_CONNECTION_S: Final = 15.0

Explain = Callable[[bytes, str, bool], Explanation]


class Api:
    """Serves one daemon on one socket."""

    def __init__(self, daemon: Daemon, explain: Explain, path: Path, log: Log) -> None:
        self._daemon = daemon
        self._log = log
        self._explain = explain
        self._path = path
        self._slots = asyncio.Semaphore(REQUESTS_MAX)
        self._walk = asyncio.Lock()
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Raises HostError when the socket cannot be made, or when another agent answers on it."""
        app = web.Application(middlewares=[self._guarded], client_max_size=BODY_BYTES_MAX)
        for name in (
            "status",
            "slices",
            "leases",
            "pools",
            "onramps",
            "agreements",
            "servers",
            "flows",
            "drops",
            "traffic",
            "events",
        ):
            app.router.add_get(f"/v1/{name}", getattr(self, f"_{name}"))
        app.router.add_post("/v1/explain", self._explained)
        listener = listen(self._path, socket.SOCK_STREAM, "socket", group=GROUP)
        self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=IDLE_CONNECTION_S, shutdown_timeout=STOP_TIMEOUT_S
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """Answers what was asked, for a moment, and removes the socket. Stopping twice is no error."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            self._path.unlink(missing_ok=True)

    @web.middleware
    async def _guarded(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Every refusal, ours or aiohttp's, in the one form; and no more at a time than there are slots."""
        if self._slots.locked():
            return _refusal(503, f"{REQUESTS_MAX} requests are being answered", "ask again", 1)
        async with self._slots:
            try:
                return await handler(request)
            except InputError as error:
                return _refusal(400, error.what, error.fix, error.exit_code)
            except SoftunicastError as error:
                return _refusal(503, error.what, error.fix, error.exit_code)
            except web.HTTPException as error:
                return _refusal(error.status, f"{request.method} {request.path}: {error.reason}", None, 2)
            except Exception as error:  # a defect of ours must not look like an agent that is gone
                self._log.exception("defect", request=f"{request.method} {request.path}")
                return _refusal(500, f"defect: {type(error).__name__}: {error}", "see the agent's log", 1)

    # -- answers ---------------------------------------------------------------------------------------------

    async def _status(self, request: web.Request) -> web.Response:
        _only(request)
        return web.json_response(await self._daemon.status())

    async def _slices(self, request: web.Request) -> web.Response:
        _only(request)
        daemon, datapath = self._daemon, self._daemon.effects.datapath
        async with self._walk:
            state = await daemon.kernel(datapath.read)
            here = [slice_ for slice_, owner in views.owners(state) if owner.server == daemon.me.name]
            flows = await daemon.kernel(datapath.count_flows, here)
        draining = daemon.keeper.draining()
        return web.json_response(views.slices(state, daemon.me.name, draining, flows, daemon.now_ns()))

    async def _leases(self, request: web.Request) -> web.Response:
        query = _only(request, "history", "slice", "at", "limit", "who")
        daemon = self._daemon
        at = _number(query, "at", None)
        if "who" in query:
            end = End.parse(query["who"])
            moment = time.time() if at is None else at
            entry = await daemon.keeper.ask(daemon.ledger.holder(end.address, end.port, moment))
            return web.json_response(None if entry is None else views.history(entry))
        slice_ = Slice.parse(query["slice"]) if "slice" in query else None
        if "history" in query:
            limit = _count(query, HISTORY_DEFAULT, HISTORY_LIMIT_MAX)
            entries = await daemon.keeper.ask(daemon.ledger.history(slice_, at, limit))
            return web.json_response([views.history(entry) for entry in entries])
        snapshot = await daemon.keeper.ask(daemon.ledger.snapshot())
        return web.json_response(views.leases(snapshot, daemon.ledger.now()))

    async def _pools(self, request: web.Request) -> web.Response:
        _only(request)
        daemon, datapath = self._daemon, self._daemon.effects.datapath
        state = datapath.state
        used = views.PortsUsed(slice_ for pool in state.pools.values() for slice_ in pool.slices)
        async with self._walk:
            await daemon.kernel(datapath.flows, 0, used.see)
        return web.json_response(
            views.pools(
                daemon.config.pools,
                daemon.me.site,
                daemon.latest_snapshot(),
                state,
                used.counts(),
                daemon.watch.usage,
            )
        )

    async def _onramps(self, request: web.Request) -> web.Response:
        _only(request)
        config = self._daemon.config
        found = await self._daemon.kernel(self._daemon.effects.look_at_onramps, list(config.onramps))
        return web.json_response(views.onramps(config, found))

    async def _agreements(self, request: web.Request) -> web.Response:
        _only(request)
        sockets = self._daemon.effects.sockets
        return web.json_response(views.agreements(await self._daemon.kernel(sockets.members)))

    async def _servers(self, request: web.Request) -> web.Response:
        _only(request)
        state = self._daemon.effects.datapath.state
        return web.json_response(views.servers(self._daemon.latest_snapshot(), state, self._daemon.me.name))

    async def _flows(self, request: web.Request) -> web.Response:
        query = _only(request, "limit", "protocol", "client", "local", "remote")
        limit = _count(query, FLOWS_DEFAULT, FLOWS_MAX)
        wanted = views.flow_filter(query)
        daemon, datapath = self._daemon, self._daemon.effects.datapath

        def listing() -> str:
            total, flows = datapath.flows(limit, wanted)
            rows = [asdict(flow) for flow in flows]
            return json.dumps({"total": total, "shown": len(rows), "flows": rows})

        async with self._walk:
            # Also the text is made in the kernel thread: a million flows would keep the event loop for seconds.
            text = await daemon.kernel(listing)
        return web.Response(text=text, content_type="application/json")

    async def _drops(self, request: web.Request) -> web.Response:
        _only(request)
        return web.json_response(views.drops(await self._daemon.kernel(self._daemon.effects.datapath.drops)))

    async def _traffic(self, request: web.Request) -> web.Response:
        _only(request)
        return web.json_response(await self._daemon.kernel(self._daemon.effects.datapath.traffic))

    async def _events(self, request: web.Request) -> web.Response:
        query = _only(request, "since", "limit")
        since = _number(query, "since", 0.0)
        book = self._daemon.event_log.book
        found = book.since(int(since or 0), _count(query, EVENTS_MAX, EVENTS_MAX))
        return web.json_response(
            {"last": book.last, "events": [views.event(one) for one in found]}, dumps=views.as_text
        )

    async def _explained(self, request: web.Request) -> web.Response:
        question = _Question.read(await request.read())
        async with self._walk:
            found = await self._daemon.kernel(
                self._explain, question.frame, question.interface, question.leaving
            )
        return web.json_response(
            {
                "verdict": found.verdict,
                "reason": found.reason.name.lower() if found.reason else None,
                "meaning": found.meaning or None,
                "packet_in": found.packet_in,
                "packet_out": found.packet_out,
                "steps": found.steps,
            }
        )


class _Question:
    """What `explain` is asked: {"from", "protocol", "source", "destination", "flags"?, "leaving"?}."""

    _TEXTS = ("from", "protocol", "source", "destination")

    def __init__(self, frame: bytes, interface: str, leaving: bool) -> None:
        self.frame, self.interface, self.leaving = frame, interface, leaving

    @classmethod
    def read(cls, body: bytes) -> _Question:
        try:
            asked = json.loads(body)
        except ValueError:
            asked = None
        if not isinstance(asked, dict):
            raise InputError("the question is not a JSON object", "send {" + ", ".join(cls._TEXTS) + "}")
        for name in cls._TEXTS:
            if not isinstance(asked.get(name), str):
                raise InputError(f"{name} is missing or not a text", f'give "{name}": "..."')
        if unknown := set(asked) - {*cls._TEXTS, "flags", "leaving"}:
            raise InputError(f"unknown: {', '.join(sorted(unknown))}", "leave it out")
        flags = asked.get("flags", [])
        if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
            raise InputError("flags is not a list of texts", 'give "flags": ["syn"]')
        source, destination = (
            # Echo requests have an identifier and no ports: people leave out what is not there.
            text if ":" in text or asked["protocol"] != "icmp" else f"{text}:0"
            for text in (asked["source"], asked["destination"])
        )
        frame = build(asked["protocol"], End.parse(source), End.parse(destination), tuple(flags))
        return cls(frame, asked["from"], asked.get("leaving") is True)


def _only(request: web.Request, *known: str) -> Mapping[str, str]:
    """The query, unless it asks for something that would be ignored."""
    if unknown := sorted(set(request.query) - set(known)):
        raise InputError(
            f"{request.path} has no parameter {unknown[0][:40]!r}",
            f"use one of {', '.join(known)}" if known else "leave it out",
        )
    return request.query


def _number(query: Mapping[str, str], name: str, default: float | None) -> float | None:
    try:
        return float(query[name]) if name in query else default
    except ValueError as error:
        raise InputError(f"{name}={query[name][:40]!r} is not a number", "give unix seconds") from error


def _count(query: Mapping[str, str], default: int, highest: int) -> int:
    text = query.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= highest:
        raise InputError(f"limit={text[:40]!r} is not possible", f"give a whole number from 1 to {highest}")
    return int(text)


def _refusal(status: int, what: str, fix: str | None, exit_code: int) -> web.Response:
    error: dict[str, Any] = {"what": what, "fix": fix, "exit_code": exit_code}
    return web.json_response({"error": error}, status=status)
