"""Every command on a robot that nobody has a plug-in or a simulator for: a model folder, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from imagine.configs import cli


def run(*words: str) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*words, "--json"]) == 0
    return json.loads(out.getvalue())


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main([*words, "--json"]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_policy_is_filmed_in_the_dream(foreign: Path) -> None:
    got = run("rollout", "--model", str(foreign), "--episodes", "2", "--out", "run")
    assert [e["instruction"] for e in got["episodes"]] == ["push the bowl", "reach the bowl"]  # from 900000 % 3 = 0 on
    assert all(Path("run", e["video"]).stat().st_size > 100 for e in got["episodes"])


def test_policies_are_evaluated_in_the_dream(foreign: Path) -> None:
    words = ("evaluate", "--model", str(foreign), "--policy", "base,random,base+delay=2", "--episodes", "6")
    got = run(*words, "--num-envs", "3", "--horizon", "2", "--unchecked", "--out", "run")
    assert got["worlds"] == ["imagined"] and got["judge"]["name"] == "latent"
    assert got["policies"][0]["imagined"]["per_task"].keys() == {"push the bowl", "reach the bowl", "push the red bowl"}


def test_real_trials_stand_beside_the_dream(foreign: Path) -> None:
    rows = ["policy,start,success", "base,0,true", "base,saved-2,false", "random,0,false", "random,2,false"]
    Path("trials.csv").write_text("\n".join(rows) + "\n")
    words = ("evaluate", "--model", str(foreign), "--real", "trials.csv", "--unchecked", "--num-envs", "3")
    got = run(*words, "--horizon", "1", "--out", "run")
    assert [(one["policy"], one["real"]["n"], one["ppi"]["only_imagined"]) for one in got["policies"]] == [
        ("base", 2, 1),
        ("random", 2, 1),
    ]
    assert got["starts"] == 2 and "real trials" in Path("run/report.html").read_text()


def test_a_plan_is_made_and_carried_out_in_the_dream(foreign: Path) -> None:
    words = ("plan", "--model", str(foreign), "--candidates", "2", "--episodes", "2", "--horizon", "2")
    got = run(*words, "--compare", "--out", "run")
    assert got["world"] == "imagined" and got["n"] == got["alone"]["n"] == 2


@pytest.mark.slow
def test_a_policy_is_improved_and_proved_in_the_dream(foreign: Path) -> None:
    small = ("--set", "updates=1,groups=2,members=2,horizon=2", "--num-envs", "4", "--test-episodes", "2")
    got = run("finetune", "rl", "--model", str(foreign), *small, "--out", "run")
    assert {"imagined_before", "imagined_after", "imagined_gain"} <= got.keys() and "gain" not in got
    assert "Improved in the dream" in Path("run/report.html").read_text()
    again = ("evaluate", "--model", str(foreign), "--policy", got["adapter"], "--episodes", "2", "--unchecked")
    assert run(*again, "--out", "again")["n"] == 2


@pytest.mark.slow
def test_a_stock_agent_learns_in_the_dream(foreign: Path) -> None:
    small = ("--steps", "8", "--num-envs", "2", "--test-episodes", "2", "--horizon", "2")
    got = run(
        "finetune", "steer", "--model", str(foreign), "--adapter", "base", "--scenes", "2", *small, "--out", "run"
    )
    assert got["success"]["gain"]["n"] == 2


def test_everything_is_timed(foreign: Path) -> None:
    assert run("evaluate", "speed", "--model", str(foreign), "--repeats", "1", "--out", "run")["chunk_ms"].keys() == {
        "1",
        "4",
    }


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("evaluate", "--world", "sim"), "has no simulator to compare with; use --world imagined, --dataset"),
        (("evaluate", "--zoo"), "has no simulator to compare with"),
        (("evaluate", "--world", "imagined"), "has not been measured"),
        (("evaluate", "--policy", "expert", "--world", "imagined"), "reads the true state"),
        (("evaluate", "--told", "colour", "--unchecked"), "swaps no instruction by 'colour'"),
        (("plan", "--world", "sim"), "has no environment to act in; use recordings (--dataset) or the imagined world"),
        (("rollout", "--world", "sim"), "has no environment to act in"),
        (("rollout", "--option", "blocks=3"), "robot 'tiny' has no option 'blocks'; it has: none"),
        (("rollout", "--option", "blocks"), "--option is 'blocks', expected NAME=VALUE"),
        (("rollout", "--world", "mars"), "expected sim or imagined"),
        (("evaluate", "world-model"), "records no episodes; give recorded ones with --dataset"),
        (("evaluate", "judge"), "has no simulator; give recorded episodes with --dataset"),
        (("finetune", "steer", "--adapter", "base", "--sim-episodes", "4"), "has no simulator to prove it on"),
        (("demo",), "a robot with a simulator"),
        (("finetune", "rl", "--policy", "nobody"), "no adapter 'nobody'; expected base"),
    ],
)
def test_what_needs_a_simulator_says_so_in_one_sentence(
    foreign: Path, words: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint in refused(capsys, *words, "--model", str(foreign), "--out", "run")


def test_the_former_name_of_the_simulator_is_taken_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert "real is 'sim' now" in refused(capsys, "rollout", "--world", "real", "--instruction", "nimm den Block")
