"""``imagine finetune rl`` under ``kill -9``: another process, no warning, and the same weights in the end."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = "updates=3,groups=2,members=2,horizon=1,look_every=100,epochs=1"
ROOT = Path(__file__).parent.parent


def start(out: Path) -> subprocess.Popen[bytes]:
    words = [
        "finetune",
        "rl",
        "--set",
        SMALL,
        "--unguarded",
        "--lanes",
        "4",
        "--watch-starts",
        "2",
        "--test-episodes",
        "0",
        "--out",
        str(out),
    ]
    line = [sys.executable, "-m", "imagine.configs.cli", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)  # type: ignore[call-overload, no-any-return]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_kill_9_in_mid_training(tmp_path: Path) -> None:
    assert start(tmp_path / "straight").wait() == 0
    killed = start(tmp_path / "killed")
    state, deadline = tmp_path / "killed" / "state.pt", time.monotonic() + 120
    while not state.is_file() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL, "it was alive when it was killed"
    assert not (tmp_path / "killed" / "metrics.json").is_file()
    assert start(tmp_path / "killed").wait() == 0
    assert digest(tmp_path / "killed") == digest(tmp_path / "straight")
