"""Damaged models, judges, caches and run folders are read or refused in one sentence that names the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

from fuzz_models import fuzz, of_models, of_runs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind, cases", [("models", 40), ("runs", 40)])
def test_no_damage_ends_in_a_traceback(kind: str, cases: int, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    targets = {"models": of_models, "runs": of_runs}[kind](tmp_path / "whole")
    for target in targets.values():
        target.use(target.folder)  # whole, each is read
    found = fuzz(targets, cases, 20_000, tmp_path)
    assert not found.failures
    assert found.refused.keys() == targets.keys(), "of every kind some damage is found"
