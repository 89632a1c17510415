"""Reading a TOML text with all its problems at once, each with its line and its fix.

A `Section` hands out the values of one table. A value that is missing or wrong is noted as a problem and
replaced by a harmless stand-in of the right type, so that reading goes on and the person gets the whole list;
`Problems.refuse` then raises it as one ConfigError. What the keys mean is not known here.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from softunicast.core.errors import ConfigError, InputError
from softunicast.core.toml_lines import KeyPath, line_of_keys

N = TypeVar("N", int, float)

_AT_LINE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_SHOWN_CHARS_MAX: Final = 40  # of a wrong value, so that a problem stays one readable line
_NAMES_SHOWN_MAX: Final = 12


class Problems:
    """What was wrong in the file called `path`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._found: list[tuple[int, str]] = []

    def add(self, line: int, what: str, fix: str) -> None:
        self._found.append((line, f"line {line}: {what}; fix: {fix}"))

    def __len__(self) -> int:
        return len(self._found)

    def refuse(self) -> None:
        """Raises ConfigError with every problem, by line, when there is any."""
        if self._found:
            raise ConfigError(self.path, [text for _, text in sorted(self._found)])


class Section:
    """One table: its values, where each stands, and which were asked for."""

    def __init__(
        self, values: Mapping[str, Any], at: KeyPath, lines: Mapping[KeyPath, int], problems: Problems
    ) -> None:
        self.at = at
        self.problems = problems
        self._values = values
        self._lines = lines
        self._known: set[str] = set()

    @classmethod
    def parse(cls, text: str, problems: Problems) -> Section:
        """The document. Raises ConfigError at once when it is not TOML: nothing after that can be trusted."""
        try:
            return cls(tomllib.loads(text), (), line_of_keys(text), problems)
        except tomllib.TOMLDecodeError as error:
            place = _AT_LINE.search(str(error))
            line = int(place[1]) if place and place[1] else text.rstrip().count("\n") + 1
            what = _AT_LINE.sub("", str(error))
            problems.add(line, f"not TOML: {what}", "write key = value, with texts in double quotes")
            problems.refuse()
            raise

    def line(self, key: str | None = None) -> int:
        """The line of `key`, or of the table when the key is not there."""
        at = self.at if key is None else (*self.at, key)
        while at and at not in self._lines:
            at = at[:-1]
        return self._lines.get(at, 1)

    def wrong(self, key: str | None, what: str, fix: str) -> None:
        """Notes a problem with the value of `key`, or with the table."""
        where = key if not self.at or key is None else f"{_dotted(self.at)}.{key}"
        self.problems.add(self.line(key), what if where is None else f"{where}: {what}", fix)

    def have(self, key: str) -> bool:
        self._known.add(key)
        return key in self._values

    def text(self, key: str, default: str | None = None) -> str:
        """A text that is not empty; a stand-in is empty."""
        value = self._value(key, default, "a text")
        if isinstance(value, str) and value and value.isprintable():
            return value
        if value is not None:
            self.wrong(key, f"{_shown(value)} is not a text", f'give {key} = "..."')
        return ""

    def name(self, key: str, pattern: re.Pattern[str]) -> str:
        """A name as `pattern` wants it (which is 1-32 of a-z 0-9 . _ -); a stand-in is empty."""
        value = self.text(key)
        if value and not pattern.fullmatch(value):
            self.wrong(
                key,
                f"{_shown(value)} is not a name",
                "use 1-32 of a-z 0-9 . _ - starting with a letter or digit",
            )
            return ""
        return value

    def choice(self, key: str, options: Collection[str], default: str | None = None) -> str:
        """One of `options`; a stand-in is the first."""
        value = self._value(key, default, f"one of {', '.join(options)}")
        if isinstance(value, str) and value in options:
            return value
        if value is not None:
            self.wrong(key, f"{_shown(value)} is not known", suggestion(str(value), options))
        return next(iter(options))

    def path(self, key: str, default: str | None = None) -> str:
        """An absolute path without `..`."""
        value = self.text(key, default)
        if value and (not value.startswith("/") or ".." in value.split("/")):
            self.wrong(key, f"{_shown(value)} is not an absolute path", "start it with / and leave out ..")
        return value

    def number(self, key: str, default: N, low: N, high: N) -> N:
        """A number from `low` to `high`, of the type of `default`: whole when that is an int."""
        value = self._value(key, default, "a number")
        kinds = (int,) if isinstance(default, int) else (int, float)
        if type(value) in kinds and low <= value <= high:
            return type(default)(value)
        whole = "whole " if isinstance(default, int) else ""
        self.wrong(
            key, f"{_shown(value)} is not possible", f"give a {whole}number from {low:.12g} to {high:.12g}"
        )
        return default

    def number_or_choice(self, key: str, options: tuple[str, ...], low: int, high: int) -> int | str:
        """A whole number from `low` to `high`, or one of `options`, of which the first is the default."""
        value = self._value(key, options[0], "a number or a text")
        if value in options or (type(value) is int and low <= value <= high):
            found: int | str = value
            return found
        words = " or ".join(f'"{option}"' for option in options)
        self.wrong(
            key, f"{_shown(value)} is not possible", f"give {words}, or a whole number from {low} to {high}"
        )
        return options[0]

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._value(key, default, "true or false")
        if isinstance(value, bool):
            return value
        self.wrong(key, f"{_shown(value)} is neither true nor false", f"write {key} = true or {key} = false")
        return default

    def list_of_texts(self, key: str, count_max: int) -> list[str]:
        """Texts that are not empty, at most so many; missing is none."""
        values = self._value(key, [], "a list of texts")
        if not isinstance(values, list) or not all(isinstance(one, str) and one for one in values):
            self.wrong(key, f"{_shown(values)} is not a list of texts", f'write {key} = ["...", "..."]')
            return []
        if len(values) > count_max:
            self.wrong(key, f"{len(values)} entries", f"use at most {count_max}")
        return values[:count_max]

    def texts(self, key: str) -> dict[str, str]:
        """A table of texts, such as tags; missing is empty."""
        found = {}
        section = self.section(key)
        for name in section._values:
            if value := section.text(name):
                found[name] = value
        return found

    def section(self, key: str, needed_for: str | None = None) -> Section:
        """The table `key`; when missing an empty one, which is a problem if it is `needed_for` something."""
        value = self._values.get(key, {})
        if not self.have(key) and needed_for is not None:
            self.wrong(None, f"no [{key}]", f"add a table [{key}] {needed_for}")
        if not isinstance(value, dict):
            self.wrong(key, f"{_shown(value)} is not a table", f"write [{key}] and its keys below it")
            value = {}
        return Section(value, (*self.at, key), self._lines, self.problems)

    def sections(self, key: str) -> tuple[Section, ...]:
        """The tables of the array `[[key]]`; none when missing."""
        values = self._values.get(key, []) if self.have(key) else []
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            self.wrong(key, "not a list of tables", f"write [[{key}]] with two brackets, once for each")
            values = []
        return tuple(
            Section(value, (*self.at, key, number), self._lines, self.problems)
            for number, value in enumerate(values)
        )

    def done(self) -> None:
        """Every key that nobody asked for is a problem: it would silently do nothing."""
        for key in self._values:
            if key not in self._known:
                self.wrong(key, "unknown key", suggestion(key, self._known))

    def _value(self, key: str, default: object, kind: str) -> Any:
        """The value, or the default; None (a problem, noted) when there is neither."""
        if self.have(key):
            return self._values[key]
        if default is None and (self.at in self._lines or not self.at):
            self.wrong(None, f"{_dotted(self.at)} has no {key}", f"add {key} = ... ({kind})")
        return default


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """The fix for a name that does not exist: the one that was probably meant, or those there are."""
    names = sorted(known)
    if close := get_close_matches(wrong, names, n=1):
        return f"did you mean {close[0]}?"
    shown = ", ".join(names[:_NAMES_SHOWN_MAX]) + (", ..." if len(names) > _NAMES_SHOWN_MAX else "")
    return f"use one of {shown}" if names else "remove it"


def reason(error: InputError) -> tuple[str, str]:
    """What was wrong and the fix, of an error that a parser of core raised."""
    return error.what, error.fix or "correct it"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS_MAX else text[: _SHOWN_CHARS_MAX - 3] + "..."


def _dotted(at: KeyPath) -> str:
    """("pools", 0) as `pools[1]`: people count from one."""
    text = ""
    for part in at:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text
