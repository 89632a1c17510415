"""Where the keys of a TOML text stand: `tomllib` gives values but no lines, and an error names its line.

`line_of_keys` reads a text that tomllib has accepted and only looks for structure: table headers, keys, the
nesting of values. It must not judge the text; on one that is not TOML the answer means nothing.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]
"""("pools", 0, "name"): the key `name` in the first `[[pools]]`."""

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # texts over several lines may end in up to two quotes of their own
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|\#[^\n]*"
    r"|[\[\]{}=,.\n]"
    r"|[^\s\[\]{}=,.\#\"']+",
    re.DOTALL,
)


def line_of_keys(text: str) -> Mapping[KeyPath, int]:
    """The line (from 1) of every table and key, of the last header when one names a table again."""
    return _Scan(text).lines


class _Scan:
    """One pass over the tokens; `table` is the table that the last header opened."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, int]] = []
        line, seen = 1, 0
        for match in _TOKEN.finditer(text):
            line += text.count("\n", seen, match.start())
            seen = match.start()
            if not match[0].startswith("#"):
                self.tokens.append((match[0], line))
        self.at = 0
        self.lines: dict[KeyPath, int] = {}
        self.counts: dict[KeyPath, int] = {}  # how many [[headers]] an array of tables had so far
        table: KeyPath = ()
        while self.at < len(self.tokens):
            if self.peek() == "\n":
                self.at += 1
            elif self.peek() == "[":
                table = self.header()
            else:
                self.pair(table)

    def peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1][0]

    def key(self) -> tuple[str, ...]:
        """A key, dotted or not, up to the token after it."""
        parts = [_plain(self.take())]
        while self.peek() == ".":
            self.at += 1
            parts.append(_plain(self.take()))
        return tuple(parts)

    def header(self) -> KeyPath:
        """`[table]` or `[[table]]`; the parts before the last mean the newest entry of an array."""
        line = self.tokens[self.at][1]
        depth = 0
        while self.peek() == "[":
            depth += 1
            self.at += 1
        path: KeyPath = ()
        parts = self.key()
        for number, part in enumerate(parts, 1):
            path = (*path, part)
            self.lines.setdefault(path, line)
            if depth == 2 and number == len(parts):
                self.counts[path] = self.counts.get(path, 0) + 1
            if path in self.counts:
                path = (*path, self.counts[path] - 1)
        self.lines[path] = line
        self.at += depth
        return path

    def pair(self, table: KeyPath) -> None:
        """`key = value`; every part of a dotted key gets the line."""
        line = self.tokens[self.at][1]
        path = table
        for part in self.key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at += 1
        self.value(path)

    def value(self, path: KeyPath) -> None:
        opened = self.take()
        if opened == "{":
            while self.peek() not in ("}", ""):
                self.pair(path) if self.peek() not in (",", "\n") else self.take()
            self.at += 1
        elif opened == "[":
            self.array(path)
        else:
            while self.peek() not in ("\n", ",", "]", "}", ""):  # 1.5 and dates are several tokens
                self.at += 1

    def array(self, path: KeyPath) -> None:
        number = 0
        while self.peek() not in ("]", ""):
            if self.peek() in (",", "\n"):
                self.at += 1
                continue
            self.lines[(*path, number)] = self.tokens[self.at][1]
            self.value((*path, number))
            number += 1
        self.at += 1


def _plain(token: str) -> str:
    """A key as tomllib gives it: quoted ones without quotes and escapes."""
    if token[:1] not in "\"'":
        return token
    return str(tomllib.loads(f"key = {token}")["key"])
