"""What the protocols of the agent's own sockets (descriptor.py, lending.py) have in common: messages are JSON objects
in UTF-8, one to a datagram, and a refusal has one form: {"error": {"what", "fix", "exit_code"}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from softunicast.core.errors import HostError, InputError, SoftunicastError

WHAT_CHARS_MAX: Final = 1024  # an error's sentence fits a message, whatever is in it


def read(data: bytes) -> Mapping[str, Any]:
    """Empty for whatever is no JSON object."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def refusal(error: SoftunicastError, **more: object) -> bytes:
    """The answer that says why there is nothing."""
    text = {"what": error.what[:WHAT_CHARS_MAX], "fix": error.fix, "exit_code": error.exit_code}
    return json.dumps({"error": text | more}).encode()


def refused(answer: Mapping[str, Any]) -> SoftunicastError | None:
    """What the agent refused, as InputError or HostError. Raises KeyError or TypeError when it is in no such form."""
    if "error" not in answer:
        return None
    error = answer["error"]
    kind = InputError if error["exit_code"] == InputError.exit_code else HostError
    return kind(str(error["what"]), error["fix"] and str(error["fix"]))
