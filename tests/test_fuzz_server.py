"""The attack of ``benchmarks/fuzz_server.py``, for seconds instead of minutes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_server_under_attack_stays_small_and_right_and_answers_before_it_stops(tmp_path: Path, tiny_model) -> None:
    tiny_model.save_pretrained(tmp_path / "tiny")
    how = ["--messages", "5000", "--minutes", "0.1", "--half", "3", "--clients", "8", "--period", "0.5"]
    what = ["--model", tmp_path / "tiny", "--instruction", "push the red bowl", "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/fuzz_server.py", *how, *map(str, what)],
        capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    decoder, server = found["decoder"], found["server"]
    assert decoder["failed"] == 0 and decoder["read"] + decoder["refused"] == 5000 and decoder["longest_refusal"] < 500
    assert server["bit_equal"] == server["answers"] > 0 and server["growth_mib"] < 200
    assert server["answered"] == server["in_flight"] == 4 and server["exit"] == 0 and server["sigterm_seconds"] <= 10
    assert server["server"]["failed"] == 0 and server["hostile"]["messages"] > 0
