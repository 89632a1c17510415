"""The pages of the documentation as data: sections by heading, rows of tables by what their first cell names.

Knows Markdown as far as our pages use it, and nothing about what they say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = "docs/reference"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
_IGNORED = {
    line.strip("/\n") for line in (ROOT / ".gitignore").read_text().splitlines() if line.endswith("/")
}
_BUILT = (".o", ".pyc")


def files(*suffixes: str) -> list[Path]:
    """Every file of the repository that is not built, or those with these suffixes."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name != ".git" and name not in _IGNORED]
        found += [Path(folder, name) for name in names if not name.endswith(_BUILT)]
    return sorted(path for path in found if path.is_file() and (not suffixes or path.suffix in suffixes))


PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in files(".md")}


def page(name: str) -> str:
    """A page of the reference."""
    return PAGES[f"{REFERENCE}/{name}.md"]


def prose(text: str) -> str:
    """Without blocks of code."""
    return FENCE.sub("", text)


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code in this language."""
    return [body for kind, body in FENCE.findall(text) if kind == language]


def section(text: str, heading: str) -> str:
    """From the heading to the next one that is not below it. Headings are compared without # ` and brackets."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        if line.startswith("#") and re.sub(r"[#`\[\]]", "", line).strip() == heading:
            deeper = line.split(" ")[0] + "#"
            ends = (number for number in range(start + 1, len(lines)) if re.match("#+ ", lines[number]))
            end = next((number for number in ends if not lines[number].startswith(deeper)), len(lines))
            return "\n".join(lines[start:end])
    raise AssertionError(f"no section {heading!r}")


def own(text: str) -> str:
    """A section without those below its heading."""
    return re.split(r"^(?=#+ )", text, flags=re.MULTILINE)[1]


def rows(text: str) -> Iterator[list[str]]:
    """The rows of all tables, as cells; without headings."""
    lines = prose(text).splitlines()
    for number, line in enumerate(lines):
        is_heading = number + 1 < len(lines) and lines[number + 1].startswith("|---")
        if line.startswith("| ") and not is_heading:
            yield [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def entries(text: str) -> dict[str, list[str]]:
    """Rows by each `code` in their first cell."""
    return {name: row for row in rows(text) for name in CODE.findall(row[0])}
