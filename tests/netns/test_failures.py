"""Every failure of the other strategies happens as described, and the same situation under claims is right."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from tests.netns.traces import traces

from softunicast.cli.main import main
from softunicast.lab import failures, stage, state


@pytest.mark.parametrize("name", failures.FAILURES)
def test_it_fails_as_described_and_claims_does_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = secrets.token_hex(4)
    monkeypatch.setattr(state, "RUN_DIR", tmp_path)
    monkeypatch.setattr(stage, "token_hex", lambda _: marker)
    report = failures.run(name)
    assert report.reproduced
    assert report.under_claims
    assert [check for check in (*report.reproduced, *report.under_claims) if not check.passed] == []
    assert traces(marker, tmp_path) == []


def test_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(state, "RUN_DIR", tmp_path)
    assert main(["lab", "failure", "range_ignored"]) == 0
    assert "3 of 3 held" in capsys.readouterr().out
    assert main(["lab", "failure", "range_ignored", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
