"""Random damage to datasets: read right, or refused in one sentence. benchmarks/fuzz_datasets.py does more of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[1] / "benchmarks/fuzz_datasets.py"


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_datasets", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_datasets_are_read_right_or_refused_in_a_sentence(fuzz: ModuleType) -> None:
    failures: list[str] = []
    result = fuzz.run(60, 11, "", failures.append)
    assert not failures
    assert result["outcomes"]["refused"] > 20 and result["outcomes"]["read"] > 5


def test_a_difference_without_a_word_is_a_failure(fuzz: ModuleType, tmp_path: Path) -> None:
    fuzz.version_3(tmp_path / "d")
    digest, texts, warnings = fuzz.read(tmp_path / "d")
    assert fuzz.outcome(tmp_path / "d", (digest, texts, warnings), "any") == ("read", "")
    assert fuzz.outcome(tmp_path / "d", ("0", texts, warnings), "any")[0] == "SILENT DIFFERENCE"
    (tmp_path / "d/meta/tasks.parquet").unlink()
    assert fuzz.outcome(tmp_path / "d", (digest, texts, warnings), "same")[0] == "REFUSED WRONGLY"
