"""softunicast.pools for asyncio: connections that leave from a pool, without blocking the loop.

    reader, writer = await softunicast.aio.open_connection("example.com", 80, pool="gb")

What is raised is what softunicast.pools raises; a `timeout` that has passed is a TimeoutError.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

from softunicast.core.errors import InputError
from softunicast.pools import Pool
from softunicast.wire.lending import SOCKETS_MAX


async def connect(
    address: tuple[str, int],
    *,
    pool: str | Pool | None = None,
    tags: Mapping[str, str] | None = None,
    timeout: float | None = None,  # noqa: ASYNC109 as asyncio's own streams and socket.create_connection have it
    protocol: str = "tcp",
    agent: str | None = None,
) -> socket.socket:
    """A socket that does not block, connected to `address` (host and port) from a port of the pool: for
    loop.create_connection(sock=...) and the like. Every address of the host is tried until one answers.

    `pool`: its name, or a Pool, which asks the agent over one connection. `timeout`: seconds for all of it.
    """
    if isinstance(pool, Pool):
        if tags is not None:
            raise InputError("both a pool and tags", "give one of them")
        async with asyncio.timeout(timeout):
            return await _connect(pool, address, protocol)
    with Pool(pool, tags=tags, agent=agent) as one:
        async with asyncio.timeout(timeout):
            return await _connect(one, address, protocol)


async def open_connection(
    host: str,
    port: int,
    *,
    pool: str | Pool | None = None,
    tags: Mapping[str, str] | None = None,
    timeout: float | None = None,  # noqa: ASYNC109
    agent: str | None = None,
    **more: Any,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As asyncio.open_connection, which takes `more`; but the connection leaves from the pool. `timeout`: seconds until
    it is there, TLS excepted."""
    connection = await connect((host, port), pool=pool, tags=tags, timeout=timeout, agent=agent)
    if more.get("ssl"):
        more.setdefault("server_hostname", host)
    try:
        return await asyncio.open_connection(sock=connection, **more)
    except BaseException:
        connection.close()
        raise


async def _connect(pool: Pool, address: tuple[str, int], protocol: str) -> socket.socket:
    loop = asyncio.get_running_loop()
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    found = (await loop.getaddrinfo(*address[:2], type=kind))[:SOCKETS_MAX]
    sockets = await asyncio.to_thread(pool.sockets, [one[0] for one in found], protocol)
    error: OSError | None = None
    try:
        for one, (*_, target) in zip(list(sockets), found, strict=True):
            one.setblocking(False)
            try:
                await loop.sock_connect(one, target)
            except OSError as problem:
                error = problem
            else:
                sockets.remove(one)
                return one
    finally:
        for one in sockets:
            one.close()
    raise error or OSError(f"getaddrinfo gave nothing for {address[0]}")
