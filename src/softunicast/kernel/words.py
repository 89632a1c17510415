"""Numbers and names as they lie in the kernel's maps, and back. Network order fields are integers in memory order."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import overload

from softunicast.core.errors import InputError
from softunicast.core.slices import IPAddress
from softunicast.kernel import abi


def be16(value: int) -> int:
    """Swaps 16 bits: host order to the integer that lies in memory in network order, and back."""
    return int.from_bytes(value.to_bytes(2, "big"), "little")


def be32(value: int) -> int:
    """Swaps 32 bits."""
    return int.from_bytes(value.to_bytes(4, "big"), "little")


@overload
def address_word(address: IPv4Address) -> int: ...
@overload
def address_word(address: IPAddress) -> int | bytes: ...
def address_word(address: IPAddress) -> int | bytes:
    """An address as the data path holds it: IPv4 as an integer, IPv6 as bytes."""
    return be32(int(address)) if isinstance(address, IPv4Address) else address.packed


@overload
def word_address(word: int) -> IPv4Address: ...
@overload
def word_address(word: int | bytes) -> IPAddress: ...
def word_address(word: int | bytes) -> IPAddress:
    """The other way."""
    return IPv4Address(be32(word)) if isinstance(word, int) else IPv6Address(word)


def mac_bytes(mac: str) -> bytes:
    """`02:00:00:00:00:01` as six bytes."""
    return bytes.fromhex(mac.replace(":", ""))


def index_key(index: int) -> bytes:
    """The key of an array."""
    return index.to_bytes(4, "little")


def name_bytes(name: str, size: int = abi.AbiLimit.NAME_BYTES) -> bytes:
    """A name as the kernel holds it; InputError when it is too long."""
    data = name.encode()
    if len(data) >= size:
        raise InputError(f"the name {name!r} is longer than {size - 1} bytes", "shorten it")
    return data.ljust(size, b"\0")


def bytes_name(data: bytes) -> str:
    """The other way."""
    return data.rstrip(b"\0").decode()
