"""Who came to the lab's internet, as it tells itself: asked over HTTP from inside its node."""

from __future__ import annotations

import http.client
import json
from typing import Final, NamedTuple

from softunicast.core.errors import LabError
from softunicast.kernel import namespaces
from softunicast.lab.state import Lab

NODE: Final = "internet"
TIMEOUT_S: Final = 10.0


class Peer(NamedTuple):
    """Somebody who came. `label`: the User-Agent for HTTP, else empty."""

    protocol: str
    address: str
    port: int
    label: str = ""


def seen(lab: Lab) -> dict[Peer, int]:
    """Peer -> how often it came, since the start or the last `forget`. LabError when it does not answer."""
    rows = json.loads(_ask(lab, "GET"))["peers"]
    return {Peer(row["protocol"], row["address"], row["port"], row["label"]): row["times"] for row in rows}


def forget(lab: Lab) -> None:
    """Begin a new record."""
    _ask(lab, "DELETE")


def _ask(lab: Lab, method: str) -> bytes:
    return namespaces.run_in(lab.namespace(NODE), _request, method)


def _request(method: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", 80, timeout=TIMEOUT_S)
    try:
        connection.request(method, "/peers")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise LabError(f"the lab's internet does not answer: {error}") from error
    finally:
        connection.close()
    if answer.status not in (http.client.OK, http.client.NO_CONTENT):
        raise LabError(f"the lab's internet answers {method} /peers with {answer.status}")
    return body
