"""Forged datagrams are what scapy builds for the same source and destination."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP

from softunicast.lab.forge import datagram

ENDPOINTS = st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535))


@given(ENDPOINTS, ENDPOINTS, st.binary(max_size=40))
def test_datagram(source: tuple[str, int], destination: tuple[str, int], payload: bytes) -> None:
    expected = IP(src=source[0], dst=destination[0], flags="DF", id=0, ttl=64) / UDP(
        sport=source[1], dport=destination[1]
    )
    assert datagram(source, destination, payload) == bytes(expected / payload)
