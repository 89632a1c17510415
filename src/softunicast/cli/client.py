"""Asking the agent: HTTP over its unix socket, with the standard library only (it imports fast).

Every request has a deadline. A refusal of the agent comes back as the same class of error it had there;
silence, a missing socket or no permission is AgentUnreachableError with the way out.
"""

from __future__ import annotations

import http.client
import json
import socket as sockets
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from softunicast.core.errors import AgentUnreachableError, HostError, InputError, SoftunicastError

CONNECT_TIMEOUT_S = 2.0
ANSWER_TIMEOUT_S = 15.0  # reading a full flow table (a million rows) takes the agent seconds
ANSWER_BYTES_MAX = 1 << 28  # a million flows at about 200 bytes, and no more


def get(socket: str, path: str, query: Mapping[str, object] | None = None) -> Any:
    """GET `path`; None values of `query` are left out. Returns the decoded JSON answer."""
    asked = {key: value for key, value in (query or {}).items() if value is not None}
    return _request(socket, "GET", f"{path}?{urlencode(asked)}" if asked else path, None)


def post(socket: str, path: str, body: Mapping[str, object]) -> Any:
    """POST `body` as JSON. Returns the decoded JSON answer."""
    return _request(socket, "POST", path, json.dumps(body))


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection whose transport is a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self.path = path

    def connect(self) -> None:
        self.sock = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        self.sock.settimeout(CONNECT_TIMEOUT_S)
        self.sock.connect(self.path)
        self.sock.settimeout(ANSWER_TIMEOUT_S)


def _request(socket: str, method: str, target: str, body: str | None) -> Any:
    connection = _UnixConnection(socket)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, target, body=body, headers=headers)
        response = connection.getresponse()
        payload = response.read(ANSWER_BYTES_MAX)
    except TimeoutError as error:
        raise AgentUnreachableError(
            f"the agent on {socket} did not answer within {ANSWER_TIMEOUT_S:.0f} s",
            "look at its log; kill and start it again, which drops no packet",
        ) from error
    except PermissionError as error:
        raise AgentUnreachableError(
            f"not allowed to open {socket}", "run as root, or join the group softunicast"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise AgentUnreachableError(
            f"no agent answers on {socket} ({why})",
            "start `softunicast agent --config FILE`, or name its socket: softunicast --socket PATH",
        ) from error
    finally:
        connection.close()
    return _decode(socket, response.status, payload)


def _decode(socket: str, status: int, payload: bytes) -> Any:
    try:
        answer = json.loads(payload)
        refusal = None if 200 <= status < 300 else answer["error"]
        if refusal is not None:
            what, fix, code = str(refusal["what"]), refusal.get("fix"), refusal.get("exit_code")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SoftunicastError(
            f"{socket} answered HTTP {status} with something that is not the agent's",
            "check that --socket names an agent of this version",
        ) from error
    if refusal is None:
        return answer
    kinds: dict[object, type[SoftunicastError]] = {2: InputError, 3: HostError}
    raise kinds.get(code, SoftunicastError)(what, fix)
