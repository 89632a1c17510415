"""Asking for a descriptor: what is said comes out at the other end, and garbage in the one documented error."""

from __future__ import annotations

import json
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from softunicast.core.errors import HostError, InputError, KernelError, SoftunicastError, UnknownNameError
from softunicast.wire import descriptor

prefixes = st.builds(
    lambda number, length: IPv4Network((number >> (32 - length) << (32 - length), length)),
    st.integers(0, (1 << 32) - 1),
    st.integers(0, 32),
)
prefixes6 = st.builds(
    lambda number, length: IPv6Network((number >> (128 - length) << (128 - length), length)),
    st.integers(0, (1 << 128) - 1),
    st.integers(0, 128),
)
addresses6 = st.builds(
    lambda number, length: IPv6Interface((number, length)),
    st.integers(0, (1 << 128) - 1),
    st.integers(0, 128),
)
addresses = st.builds(
    lambda number, length: IPv4Interface((number, length)), st.integers(0, (1 << 32) - 1), st.integers(0, 32)
)
names = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=15)
grants = st.builds(
    descriptor.Grant,
    names,
    addresses,
    st.lists(prefixes | prefixes6, max_size=16).map(tuple),
    st.integers(576, 65535),
    st.sampled_from([0, descriptor.HEADER_BYTES]),
    st.none() | addresses6,
)


@given(names)
def test_the_question(name: str) -> None:
    data = descriptor.request(name)
    assert len(data) <= descriptor.REQUEST_BYTES_MAX
    assert descriptor.parse_request(data) == name


@given(grants)
def test_the_answer(grant: descriptor.Grant) -> None:
    data = descriptor.grant(grant)
    assert len(data) <= descriptor.ANSWER_BYTES_MAX
    assert descriptor.parse_answer(data) == grant


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UnknownNameError("no on-ramp", "use another"), InputError),
        (HostError("not you"), HostError),
        (KernelError("busy " * 5000, 16), HostError),
    ],
)
def test_the_refusal(error: SoftunicastError, kind: type[SoftunicastError]) -> None:
    data = descriptor.refusal(error)
    assert len(data) <= descriptor.ANSWER_BYTES_MAX
    with pytest.raises(kind) as caught:
        descriptor.parse_answer(data)
    assert error.what.startswith(caught.value.what)
    assert caught.value.fix == error.fix


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["open", "error", "mtu", "what", "x"]), inner)
    ),
)
garbage = st.binary() | values.map(lambda value: json.dumps(value).encode())


@given(garbage)
@example(b"[" * 3000)
def test_garbage_for_the_agent(data: bytes) -> None:
    """The strategy makes no request that is right: `open` is never a text there."""
    with pytest.raises(InputError, match="that is no request"):
        descriptor.parse_request(data)


@given(garbage)
@example(b'{"interface": "x", "address": "1.2.3.4/5", "sources": [], "mtu": Infinity, "header_bytes": 0}')
@example(b'{"error": {"exit_code": 2}}')
@example(b'{"error": 7}')
def test_garbage_for_the_program(data: bytes) -> None:
    with pytest.raises((HostError, InputError)):
        descriptor.parse_answer(data)
