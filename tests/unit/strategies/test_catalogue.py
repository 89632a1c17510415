"""The catalogue: names, and how an attempt that fails becomes a reason."""

from __future__ import annotations

import errno
import json

import pytest

from softunicast.cli.main import main
from softunicast.core.errors import HostError, UnknownNameError
from softunicast.strategies import catalogue
from softunicast.strategies.snat import Snat
from softunicast.strategies.terminate import WHY, Terminate


def refuse(error: Exception) -> classmethod[Snat, [], None]:
    def attempt(_: type[Snat]) -> None:
        raise error

    return classmethod(attempt)


@pytest.fixture(autouse=True)
def only_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "STRATEGIES", {"snat": Snat, "terminate": Terminate})


def test_names() -> None:
    assert catalogue.strategy("snat") is Snat
    with pytest.raises(UnknownNameError, match="there is no strategy 'nat'; fix: use one of snat, terminate"):
        catalogue.strategy("nat")


@pytest.mark.parametrize(
    ("error", "why", "fix"),
    [
        (HostError("no library", "install it"), "no library", "install it"),
        (
            OSError(errno.EOPNOTSUPP, "no such thing"),
            "the kernel says: no such thing",
            "see the kernel's options",
        ),
    ],
)
def test_why_not(error: Exception, why: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Snat, "attempt", refuse(error))
    snat, terminate = catalogue.examine()
    assert (snat.can_run, snat.offered, snat.why, snat.fix) == (False, True, why, fix)
    assert (terminate.can_run, terminate.offered, terminate.why) == (False, False, WHY)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Snat, "attempt", classmethod(lambda _: None))
    assert main(["strategies", "--json"]) == 0
    snat, terminate = json.loads(capsys.readouterr().out)
    assert (snat["name"], snat["runs_here"], snat["why"]) == ("snat", True, None)
    assert (terminate["offered"], terminate["runs_here"], terminate["why"]) == (False, False, WHY)
