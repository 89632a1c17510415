"""Every page: its links, the files it names and its examples. Every file: no package host, no place on a machine."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
from tests.unit.pages import CODE, PAGES, ROOT, blocks, files, prose

from softunicast.core.config import parse_config
from softunicast.core.inventory import parse_inventory


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(PAGES[name])):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name: str) -> None:
    homes = (ROOT, ROOT / "src/softunicast", (ROOT / name).parent)
    found = files()
    top = "|".join({path.relative_to(ROOT).parts[0] for path in found})
    for text in CODE.findall(prose(PAGES[name])):
        if re.search(r"\b[A-Z]+\b/|/[A-Z]+$", text):
            continue  # a part of it stands for a name: `bpf/NODE/maps`
        if re.fullmatch(rf"([\w.-]+/)+[\w.-]+\.(py|c|h|md|sh|in|txt)|({top})/[\w./-]*", text):
            assert any((home / text).exists() for home in homes), text
        elif re.fullmatch(r"[\w.]+\.(py|c|h)", text):
            assert any(path.name == text for path in found), text


@pytest.mark.parametrize("name", PAGES)
def test_examples_are_read_by_the_real_parsers(name: str) -> None:
    for text in blocks(PAGES[name], "toml"):
        if "[server]" in text:
            parse_config(text, name)
        elif "[[blocks]]" in text:
            parse_inventory(text, name)
        else:
            tomllib.loads(text)
    for text in blocks(PAGES[name], "json"):
        json.loads(text)


def test_the_readme_shows_both_files() -> None:
    text = "".join(blocks(PAGES["README.md"], "toml"))
    assert "[server]" in text
    assert "[[blocks]]" in text


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", PAGES["docs/README.md"]))
    pages = {name.removeprefix("docs/") for name in PAGES if name.startswith("docs/")}
    assert pages - {"README.md"} <= linked


HOSTS = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|crates|rubygems|golang|debian|docker|artifactory)\.(?:org|com|io|net)\b"
)
PLACES = re.compile(r"(?<![\w.$}*-])/(?:work\b|(?:tmp|root|home)/[\w.])")


def test_no_file_names_a_package_host_or_a_place_on_this_machine() -> None:
    named = []
    for path in files():
        text = path.read_bytes().decode(errors="replace")
        for found in (*HOSTS.finditer(text), *PLACES.finditer(text)):
            line = text.count("\n", 0, found.start()) + 1
            named.append(f"{path.relative_to(ROOT)}:{line}: {found[0]}")
    assert named == []
