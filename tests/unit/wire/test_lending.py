"""Asking for sockets and ports: what is said comes out at the other end, and garbage in the one documented error."""

from __future__ import annotations

import errno
import json
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from softunicast.core.errors import HostError, InputError, KernelError, SoftunicastError, UnknownNameError
from softunicast.wire import lending

names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=32)
choices = st.builds(lending.Choice, names) | st.builds(
    lambda tags: lending.Choice(None, tags), st.dictionaries(names, names, max_size=lending.TAGS_MAX)
)
protocols, addresses, ports = st.sampled_from(lending.PROTOCOLS), st.ip_addresses(), st.integers(0, 65535)
requests = (
    st.builds(lending.Agree, st.integers(1, lending.SOCKETS_MAX), choices)
    | st.builds(lending.Take, protocols, st.sampled_from(lending.FAMILIES), st.booleans(), choices)
    | st.builds(lending.Release, protocols, addresses, ports)
)
gifts = st.builds(lending.Given, names) | st.builds(lending.Given, names, addresses, ports)


@given(requests)
def test_the_question(asked: lending.Request) -> None:
    data = asked.data()
    assert len(data) <= lending.REQUEST_BYTES_MAX
    assert lending.parse_request(data) == asked


@given(gifts)
def test_the_answer(given_: lending.Given) -> None:
    data = lending.answer(given_)
    assert len(data) <= lending.ANSWER_BYTES_MAX
    assert lending.parse_answer(data) == given_


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (UnknownNameError("no pool", "use another"), InputError, "no pool; fix: use another"),
        (HostError("not here"), HostError, "not here"),
        (KernelError("denied", errno.EACCES, "ask"), PermissionError, "denied; fix: ask"),
        (KernelError("full " * 5000, errno.EADDRNOTAVAIL), OSError, "full "),
    ],
)
def test_the_refusal(error: SoftunicastError, kind: type[Exception], says: str) -> None:
    data = lending.refusal(error)
    assert len(data) <= lending.ANSWER_BYTES_MAX
    with pytest.raises(kind, match=says) as caught:
        lending.parse_answer(data)
    if isinstance(caught.value, OSError):
        assert isinstance(error, KernelError)
        assert caught.value.errno == error.errno


WRONG = [
    {},
    {"agree": 1},
    {"agree": 0, "pool": "gb"},
    {"agree": 17, "pool": "gb"},
    {"agree": True, "pool": "gb"},
    {"agree": 1, "pool": "gb", "tags": {}},
    {"agree": 1, "pool": 7},
    {"agree": 1, "tags": {"country": 7}},
    {"agree": 1, "tags": {str(number): "x" for number in range(33)}},
    {"agree": 1, "pool": "gb", "x": 1},
    {"lease": "icmp", "family": 4, "any_port": False, "pool": "gb"},
    {"lease": ["tcp"], "family": 4, "any_port": False, "pool": "gb"},
    {"lease": "tcp", "family": 5, "any_port": False, "pool": "gb"},
    {"lease": "tcp", "family": 4, "any_port": 0, "pool": "gb"},
    {"lease": "tcp", "family": 4, "pool": "gb"},
    {"release": "tcp", "address": "198.51.100.10", "port": 65536},
    {"release": "tcp", "address": "198.51.100.10", "port": -1},
    {"release": "tcp", "address": 7, "port": 1},
    {"release": "tcp", "address": "fe80::1%lo", "port": 1},
    {"release": "tcp", "address": "198.51.100.10", "port": 1, "pool": "gb"},
]


@pytest.mark.parametrize("value", WRONG, ids=json.dumps)
def test_questions_that_are_none(value: object) -> None:
    with pytest.raises(InputError, match="that is no request"):
        lending.parse_request(json.dumps(value).encode())


def test_a_question_that_is_too_long() -> None:
    data = lending.Agree(1, lending.Choice("x" * lending.REQUEST_BYTES_MAX)).data()
    with pytest.raises(InputError, match="that is no request"):
        lending.parse_request(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["agree", "lease", "release", "pool", "tags", "family", "port", "error", "errno", "what"]
            ),
            inner,
        )
    ),
)
garbage = st.binary() | values.map(lambda value: json.dumps(value).encode())


@given(garbage)
@example(b"[" * 3000)
@example(b'{"lease": {}, "family": 4, "any_port": false, "pool": "gb"}')
def test_garbage_for_the_agent(data: bytes) -> None:
    try:
        found = lending.parse_request(data)
    except InputError as error:
        assert "that is no request" in str(error)  # noqa: PT017 what is no error must be a question
    else:
        assert lending.parse_request(found.data()) == found


@given(garbage)
@example(b'{"error": {"exit_code": 2}}')
@example(b'{"error": 7}')
@example(b'{"error": {"what": "x", "fix": null, "exit_code": 2, "errno": "x"}}')
@example(b'{"pool": "gb", "address": "198.51.100.10", "port": Infinity}')
@example(b'{"pool": "gb", "address": ["198.51.100.10"], "port": 1}')
def test_garbage_for_the_program(data: bytes) -> None:
    try:
        found = lending.parse_answer(data)
    except (HostError, InputError, OSError):
        return
    assert lending.parse_answer(lending.answer(found)) == found


def test_both_families_travel() -> None:
    for address in (IPv4Address("198.51.100.10"), IPv6Address("2001:db8::1")):
        found = lending.parse_answer(lending.answer(lending.Given("gb", address, 2049)))
        assert found.address == address
