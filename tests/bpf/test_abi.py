"""The border between C and Python: generated, current, and of the sizes that the kernel's maps have."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.bpf.world import World

from softunicast.kernel import abi, abigen
from softunicast.kernel.reasons import MEANING
from softunicast.kernel.words import be16, be32, bytes_name, name_bytes

STRUCTS = {
    name[: -len("_BYTES")].lower(): size
    for name, size in vars(abi).items()
    if name.endswith("_BYTES") and isinstance(size, int)
}
MAPS = {
    "settings": (None, "settings"),
    "blocks": ("block_key", None),
    "groups": (None, "group_line"),
    "addresses": (None, "address_line"),
    "owners": (None, "owner_line"),
    "slots": (None, "slot"),
    "servers": (None, "server"),
    "pools": (None, "pool"),
    "onramps": (None, "onramp"),
    "flows": ("flow_key", "flow"),
    "claims": ("claim_key", "claim"),
    "drops": (None, "drop"),
}


def test_the_python_side_is_what_the_objects_say() -> None:
    assert abigen.TARGET.read_text() == abigen.generate()


def test_check_tells_of_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["abigen", "--check"])
    abigen.main()
    other = tmp_path / "abi.py"
    other.write_text(abigen.TARGET.read_text().replace("FLOW_KEY_BYTES", "FLOW_KEYS_BYTES"))
    monkeypatch.setattr(abigen, "TARGET", other)
    with pytest.raises(SystemExit, match=r"abi.py differs from the BTF of the objects; fix: make abi"):
        abigen.main()


def test_every_object_can_be_read() -> None:
    """Also what abi.h has none of, such as functions; nothing is skipped over by guessing its length."""
    for name, known in (
        ("abi", "flow_key"),
        ("director", "director"),
        ("egress", "egress_in"),
        ("sweep", "sweep"),
    ):
        types = abigen.read_btf(abigen.OBJECT.with_name(f"{name}.bpf.o"))
        assert known in {found.name for found in types}, name


def test_every_reason_has_a_meaning_that_fits_on_a_line() -> None:
    assert set(MEANING) == set(abi.Reason) - {abi.Reason.NONE, abi.Reason.MAX}
    for reason, meaning in MEANING.items():
        assert meaning.endswith((".", "?")), reason
        assert len(meaning) <= 110, reason
        assert "\n" not in meaning


@pytest.mark.parametrize("enum", [abi.Reason, abi.Traffic])
def test_counters_are_numbered_without_gaps(enum: type[IntEnum]) -> None:
    assert sorted(enum) == list(range(len(enum)))


def test_maps_have_the_sizes_of_their_structs(world: World) -> None:
    for name, (key, value) in MAPS.items():
        found = world.datapath.map(name)
        assert found.key_bytes == (STRUCTS[key] if key else 4), name
        assert found.value_bytes == (STRUCTS[value] if value else 4), name
    assert world.datapath.map("drops").max_entries == abi.Reason.MAX
    assert world.datapath.map("traffic").max_entries == abi.Traffic.MAX


@given(st.data())
def test_structs_go_there_and_back(data: st.DataObject) -> None:
    """What `unpack` drops is padding, and `pack` writes it as zeros: keys of hashes compare every byte."""
    name = data.draw(st.sampled_from(sorted(STRUCTS)))
    struct = getattr(abi, "".join(part.capitalize() for part in name.split("_")))
    raw = data.draw(st.binary(min_size=STRUCTS[name], max_size=STRUCTS[name]))
    once = struct.unpack(raw)
    packed = once.pack()
    assert len(packed) == STRUCTS[name]
    assert struct.unpack(packed) == once
    assert all(after in (before, 0) for before, after in zip(raw, packed, strict=True))


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF), st.text(max_size=11))
def test_words(short: int, long: int, name: str) -> None:
    assert be16(be16(short)) == short
    assert be16(short).to_bytes(2, "little") == short.to_bytes(2, "big")
    assert be32(long).to_bytes(4, "little") == long.to_bytes(4, "big")
    if "\0" not in name:
        assert bytes_name(name_bytes(name)) == name
