"""Lines of keys, against tomllib on generated documents: every key has the line it was written on."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from softunicast.core.toml_lines import KeyPath, line_of_keys

TEXT = """\
# a comment with [brackets] = "and quotes"
title = "a # b [c]"

[server]   # the header
name = 'x=1'
address.v4 = 1.5

[[pools]]
name = "one"
tags = { country = "gb", "with space" = "a,b" }
list = [
    1,
    { deep = [ 2, 3 ] },
]
text = \"\"\"
[not.a.table]
key = "value" \\\"\"\"
\"\"\"

[[pools]]
name = "two"
[pools.timers]
udp_s = 2024-01-01T10:00:00Z
last = '''
x = 1'''
after = true
"""


def test_every_kind_of_key_has_its_line() -> None:
    lines = line_of_keys(TEXT)
    expected: dict[KeyPath, int] = {
        ("title",): 2,
        ("server",): 4,
        ("server", "name"): 5,
        ("server", "address", "v4"): 6,
        ("pools",): 8,
        ("pools", 0): 8,
        ("pools", 0, "name"): 9,
        ("pools", 0, "tags", "country"): 10,
        ("pools", 0, "tags", "with space"): 10,
        ("pools", 0, "list", 0): 12,
        ("pools", 0, "list", 1, "deep", 1): 13,
        ("pools", 0, "text"): 15,
        ("pools", 1): 20,
        ("pools", 1, "name"): 21,
        ("pools", 1, "timers"): 22,
        ("pools", 1, "timers", "udp_s"): 23,
        ("pools", 1, "timers", "after"): 26,
    }
    assert {path: lines.get(path) for path in expected} == expected


keys = st.sampled_from(["a", "b-1", '"q.r"', "'s t'", '"\\u00e9"', '"]"'])
scalars = st.sampled_from(
    [
        "1",
        "-2.5",
        "true",
        '"x"',
        '"[#]"',
        "'}'",
        '"""a\n"b"\n"""',
        "'''\n=\n'''",
        "1979-05-27T07:32:00Z",
        "[]",
        "{}",
    ]
)


def inline(value: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.lists(st.tuples(keys, value), unique_by=lambda pair: pair[0], max_size=3)
    return st.one_of(
        st.lists(value, max_size=3).map(lambda items: "[" + ",\n".join(items) + " # c ]\n]"),
        pairs.map(lambda items: "{ " + ", ".join(f"{key} = {text}" for key, text in items) + " }"),
    )


values = st.recursive(scalars, inline, max_leaves=8)
bodies = st.lists(st.tuples(keys, values), unique_by=lambda pair: pair[0], max_size=4)


def paths(value: Any, at: KeyPath = ()) -> list[KeyPath]:
    """Every key and element of a parsed document, the naive way."""
    if isinstance(value, dict):
        inside = [paths(item, (*at, key)) for key, item in value.items()]
    elif isinstance(value, list):
        inside = [paths(item, (*at, number)) for number, item in enumerate(value)]
    else:
        inside = []
    return ([at] if at else []) + [path for found in inside for path in found]


@given(st.lists(st.tuples(st.sampled_from(["[x]", "[[y]]", "[[y.z]]", '[x."v.w"]']), bodies), max_size=5))
def test_agrees_with_tomllib(tables: list[tuple[str, list[tuple[str, str]]]]) -> None:
    text = "".join(
        header + "\n" + "".join(f"{key} = {value}\n" for key, value in body) for header, body in tables
    )
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # the same table twice
        return
    lines = line_of_keys(text)
    source = text.split("\n")
    for path in paths(document):
        assert path in lines, (path, text)
        if isinstance(path[-1], str) and path[-1].isalnum() and path[-1].isascii():
            assert path[-1] in source[lines[path] - 1]
