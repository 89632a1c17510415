"""What files say about name lookups, and what of it programs in a pool are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from softunicast.kernel import lookups

RESOLVED = (
    "names resolve: systemd-resolved looks names up, and asks from the host's own address, whatever dns says"
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lookups, "RESOLVERS", tmp_path / "resolv.conf")
    monkeypatch.setattr(lookups, "SWITCH", tmp_path / "nsswitch.conf")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "resolvers"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", ["127.0.0.53"]),
        ("# nameserver 127.0.0.53\nnameserver 192.0.2.53\n", []),
        ("nameserver 192.0.2.53\n\tnameserver   ::1 \nnameserver 0.0.0.0\n", ["::1", "0.0.0.0"]),
        ("nameserver fe80::1%lo\nnameserver nonsense\nnameserver\n", []),
        ("", []),
    ],
)
def test_resolvers_on_this_host(files: Path, text: str, resolvers: list[str]) -> None:
    assert lookups.loopback_resolvers() == ()
    (files / "resolv.conf").write_text(text)
    assert [str(one) for one in lookups.loopback_resolvers()] == resolvers


@pytest.mark.parametrize(
    ("line", "asks"),
    [
        ("hosts: files resolve [!UNAVAIL=return] dns", True),
        ("hosts:\tresolve", True),
        ("hosts: files dns # resolve", False),
        ("# hosts: resolve", False),
        ("networks: resolve", False),
        ("hosts: files myresolve", False),
        ("hosts", False),
    ],
)
def test_resolved_is_asked(files: Path, line: str, asks: bool) -> None:
    assert not lookups.asks_resolved()
    (files / "nsswitch.conf").write_text(f"passwd: files\n{line}\n")
    assert lookups.asks_resolved() == asks


@pytest.mark.parametrize(
    ("dns", "says"),
    [
        (
            [],
            "names 127.0.0.53: another process looks names up, and asks from the host's own address "
            "(no dns for pool gb)",
        ),
        (["192.0.2.53"], "names ::1, and dns of pool gb no address of IPv6: lookups there are refused"),
        (
            ["2001:db8::53"],
            "names 127.0.0.53, and dns of pool gb no address of IPv4: lookups there are refused",
        ),
        (["2001:db8::53", "192.0.2.53"], None),
    ],
)
def test_what_does_not_ask_the_pools_resolvers(files: Path, dns: list[str], says: str | None) -> None:
    (files / "resolv.conf").write_text("nameserver 127.0.0.53\nnameserver ::1\n")
    said = [f"{files}/resolv.conf {says}"] if says else []
    assert list(lookups.outside("gb", dns)) == said
    (files / "nsswitch.conf").write_text("hosts: resolve\n")
    assert list(lookups.outside("gb", dns)) == [*said, f"{files}/nsswitch.conf {RESOLVED}"]
