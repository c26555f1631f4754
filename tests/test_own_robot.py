"""The whole loop of docs/own_robot.md, by commands alone, for robots that the product does not know."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagine.policy.robots.gym import GymRobot
from imagine.policy.robots.registry import load_robot

EXAMPLES = Path(__file__).parents[1] / "examples"
RECIPE = """
codec: {channels: 4, widths: [8, 16]}
codec_fit: {steps: 30, batch: 8, warmup: 2, eval_every: 30, mixed_precision: "no"}
dit: {layers: 2, heads: 2, head_dim: 16, ffn_dim: 32, patch: [2, 4, 4], decoder: {blocks: 1, width: 16, memory: 8}}
joint: {chunks: [2]}
model_fit: {steps: 20, batch: 8, warmup: 2, eval_every: 20, mixed_precision: "no"}
judge_fit: {steps: 12, batch: 16, warmup: 2, eval_every: 12, mixed_precision: "no"}
"""

Imagine = Callable[..., dict[str, Any]]


@pytest.fixture
def imagine(tmp_path: Path) -> Imagine:
    """Run the command line in ``tmp_path``; returns the object that ``--json`` prints."""
    where = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])

    def run(*words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "imagine.configs.cli", *words, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": where}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run


@pytest.mark.slow
def test_pusht_goes_through_the_whole_loop(imagine: Imagine, tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed", exc_type=ImportError)
    shutil.copytree(EXAMPLES / "pusht", tmp_path, dirs_exist_ok=True)
    (tmp_path / "short.yaml").write_text(RECIPE)
    model = ("--model", "run/pusht")
    assert imagine("record", "--robot", "pusht.yaml", "--out", "data", "--episodes", "24", "--workers", "1",
                   "--option", "seconds=6", "--option", "failure_share=0.2")["episodes"] == 24  # fmt: skip
    imagine("train", "--robot", "pusht.yaml", "--dataset", "data", "--preset", "short.yaml",
            "--name", "pusht", "--out", "run")  # fmt: skip
    found = imagine(
        "evaluate",
        "world-model",
        *model,
        "--episodes",
        "2",
        "--windows",
        "16",
        "--chunks",
        "2",
        "--write",
        "--out",
        "f",
    )
    assert found["n"] == 16 and found["psnr_true"] > 0
    dreamt = imagine("rollout", *model, "--world", "imagined", "--episodes", "2", "--out", "r")
    assert len(dreamt["episodes"]) == 2 and list((tmp_path / "r").rglob("*.mp4"))
    rates = imagine("evaluate", *model, "--policy", "expert,random", "--world", "sim", "--episodes", "4", "--out", "e")
    expert, random = (row["sim"]["success_rate"] for row in rates["policies"])
    assert expert > random
    both = imagine("evaluate", *model, "--policy", "base", "--world", "both", "--episodes", "2", "--horizon", "2",
                   "--unchecked", "--out", "b")  # fmt: skip
    assert both["policies"][0]["policy"] == "base"
    planned = imagine(
        "plan", *model, "--candidates", "2", "--compare", "--episodes", "2", "--horizon", "2", "--out", "p"
    )
    assert planned["judged_per_decision"] == 2
    imagine("finetune", "bc", *model, "--dataset", "data", "--everything", "--steps", "3", "--out", "weak")
    better = imagine("finetune", "rl", *model, "--policy", "weak/adapter", "--set", "updates=1,groups=2,members=2",
                     "--test-episodes", "2", "--watch-starts", "2", "--out", "i")  # fmt: skip
    assert Path(tmp_path / "i").is_dir() and better


def test_the_robot_files_of_the_examples_are_whole() -> None:
    for name, tasks in {"metaworld/sawyer": 2, "pusht/pusht": 1}.items():
        robot = load_robot(EXAMPLES / f"{name}.yaml")
        assert isinstance(robot, GymRobot)
        assert len(robot.options()["tasks"]) == tasks and robot.has_env
        assert (
            robot.recorder().options["afterwards"] == robot.cfg.record["afterwards"]
        )  # the file says, not the default
    lines = {path.name: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*/*.py")}
    assert all(count <= 40 for count in lines.values()), lines
