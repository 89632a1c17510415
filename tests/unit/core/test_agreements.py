"""Choosing a pool by name or tags, and what the agent tells about them."""

from __future__ import annotations

import json

import pytest

from softunicast.core.agreements import Board, PoolSign, choose, parse_tags
from softunicast.core.errors import InputError, UnknownNameError

GB = PoolSign("gb", {"country": "gb", "product": "proxy"})
DE = PoolSign("de", {"country": "de", "product": "proxy"})
VPN = PoolSign("vpn", {"country": "gb", "product": "vpn"}, ("192.0.2.53", "2001:db8::53"))
POOLS = (GB, DE, VPN)


@pytest.mark.parametrize(
    ("name", "tags", "pool"),
    [
        ("gb", {}, GB),
        ("vpn", {}, VPN),
        (None, {"country": "de"}, DE),
        (None, {"product": "vpn"}, VPN),
        (None, {"country": "gb", "product": "proxy"}, GB),
    ],
)
def test_chosen(name: str | None, tags: dict[str, str], pool: PoolSign) -> None:
    assert choose(POOLS, name, tags) is pool


def test_the_only_one_needs_no_name() -> None:
    assert choose([GB], None, {}) is GB


@pytest.mark.parametrize(
    ("name", "tags", "kind", "says"),
    [
        ("fr", {}, UnknownNameError, "there is no pool 'fr'; fix: known pools: de, gb, vpn"),
        (
            None,
            {"region": "x"},
            UnknownNameError,
            "no pool has a tag 'region'; fix: known tags: country, product",
        ),
        (
            None,
            {"country": "fr"},
            UnknownNameError,
            "no pool has country=fr; fix: known values of country: de, gb",
        ),
        (
            None,
            {"country": "de", "product": "vpn"},
            UnknownNameError,
            "no pool has country=de product=vpn together; fix: known pools: de, gb, vpn",
        ),
        (
            None,
            {"country": "gb"},
            InputError,
            "country=gb fits 2 pools; fix: choose one by name: gb, vpn",
        ),
        (None, {}, InputError, "no tag fits 3 pools; fix: choose one by name: de, gb, vpn"),
        ("gb", {"country": "gb"}, InputError, "a pool and tags are given; fix: choose by name or by tags"),
    ],
)
def test_refused(name: str | None, tags: dict[str, str], kind: type[InputError], says: str) -> None:
    with pytest.raises(kind) as caught:
        choose(POOLS, name, tags)
    assert str(caught.value) == says


def test_without_pools() -> None:
    with pytest.raises(UnknownNameError, match="the agent has no pools"):
        choose([], None, {})
    with pytest.raises(UnknownNameError, match="there are no pools"):
        choose([], "gb", {})


def test_many_names_do_not_fill_the_screen() -> None:
    with pytest.raises(UnknownNameError) as caught:
        choose([PoolSign(f"p{number:03}", {}) for number in range(200)], "gb", {})
    assert str(caught.value).endswith("p009, ...")


def test_tags() -> None:
    assert parse_tags(["country=gb", "product=a=b", "country=gb"]) == {"country": "gb", "product": "a=b"}
    for text in ("country", "country=", "=gb", ""):
        with pytest.raises(InputError, match="not of the form key=value"):
            parse_tags([text])
    with pytest.raises(InputError, match="country is given as gb and as de"):
        parse_tags(["country=gb", "country=de"])


def test_a_board_is_read_as_it_was_written() -> None:
    for off in (None, "cgroup2 is not mounted"):
        cgroup = None if off else "/sys/fs/cgroup"
        board = Board("server1", "/sys/fs/bpf/softunicast", 1 << 60, cgroup, off, POOLS)
        assert Board.parse(board.text()) == board


def test_a_board_of_before_there_were_resolvers() -> None:
    board = json.loads(Board("server1", "/sys/fs/bpf/softunicast", 1, None, None, (GB, DE)).text())
    for pool in board["pools"]:
        del pool["dns"]
    assert Board.parse(json.dumps(board)).pools == (GB, DE)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"pools": 3},
        {"pools": [{}]},
        {"pools": [{"name": "a", "tags": 1}]},
        {"pools": [{"name": "a", "tags": {}, "dns": ["resolver"]}]},
        {"cookie": "x"},
        {"cookie": None},
    ],
)
def test_what_is_no_board(change: dict[str, object]) -> None:
    board = Board("server1", "/sys/fs/bpf/softunicast", 1, "/sys/fs/cgroup", None, POOLS)
    with pytest.raises(ValueError):  # noqa: PT011
        Board.parse(json.dumps(json.loads(board.text()) | change))


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", "{}"])
def test_garbage_is_no_board(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Board.parse(text)
