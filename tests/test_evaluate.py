"""Evaluations in parts, flawed policies, and ``imagine evaluate`` in both worlds."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagine.agents.evaluate import Part, carry_out, outcomes, parts, summarise
from imagine.agents.zoo import Flaw, Flawed
from imagine.configs import cli
from imagine.embodiment import Embodiment
from imagine.model.model import resolve
from imagine.policy.robots.g1_table.env import FOLDER
from imagine.types import ImagineError


def rows_of(part: Part) -> list[dict[str, Any]]:
    """Outcomes that are a function of the part alone."""
    won = {s: bool(np.random.default_rng([s, len(part.policy)]).uniform() < 0.5) for s in part.seeds}
    return [
        {
            **{"policy": part.policy, "world": part.world, "start_id": f"seed-{s}", "seed": s, "task": "push"},
            **{"instruction": "push it", "success": won[s], "unbelievable": False, "chunks": 1},
            **{"judged": None, "hallucination": None},
        }
        for s in part.seeds
    ]


class Counted:
    """Work that counts itself, and dies at a given part."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.done: list[Part] = []
        self.dies_at = dies_at

    def __call__(self, part: Part) -> list[dict[str, Any]]:
        if len(self.done) == self.dies_at:
            raise KeyboardInterrupt
        self.done.append(part)
        return rows_of(part)


WANTED = parts(["a", "bb"], ["real", "imagined"], range(10), 4)


def test_parts_cover_every_episode_once() -> None:
    assert len(WANTED) == 2 * 2 * 3
    episodes = [(p.policy, p.world, s) for p in WANTED for s in p.seeds]
    assert len(set(episodes)) == len(episodes) == 2 * 2 * 10
    assert len({p.name for p in WANTED}) == len(WANTED)


@pytest.mark.parametrize(
    "policies, worlds, seeds", [([], ["real"], [1]), (["a", "a"], ["real"], [1]), (["a"], ["real"], [])]
)
def test_nothing_to_evaluate_is_refused(policies: list[str], worlds: list[str], seeds: list[int]) -> None:
    with pytest.raises(ImagineError, match="expected one or more, each once"):
        parts(policies, worlds, seeds, 4)


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = carry_out(WANTED, Counted, tmp_path / "whole")
    first, second, third = Counted(dies_at=5), Counted(), Counted()
    with pytest.raises(KeyboardInterrupt):
        carry_out(WANTED, lambda: first, tmp_path / "killed")
    (tmp_path / "killed" / "parts" / f"{WANTED[5].name}.tmp").write_bytes(b"half a fi")
    again = carry_out(WANTED, lambda: second, tmp_path / "killed")
    assert len(first.done) == 5 and len(second.done) == len(WANTED) - 5
    assert again.equals(whole) and pq.read_table(tmp_path / "killed" / "episodes.parquet").equals(whole)
    assert carry_out(WANTED, lambda: third, tmp_path / "killed").equals(whole) and not third.done


def test_parts_of_other_weights_are_not_taken_for_these(tmp_path: Path) -> None:
    first, other, again = Counted(), Counted(), Counted()
    for work, weights in ((first, "a"), (other, "b"), (again, "a")):
        carry_out(WANTED, lambda work=work: work, tmp_path, stamp=weights)  # type: ignore[misc]
    assert (len(first.done), len(other.done), len(again.done)) == (len(WANTED), len(WANTED), 0)


@pytest.mark.slow
def test_one_and_two_ray_workers_give_the_table_of_none(tmp_path: Path) -> None:
    here = carry_out(WANTED, Counted, tmp_path / "here")
    for workers in (1, 2):
        assert carry_out(WANTED, Counted, tmp_path / str(workers), ray="local", workers=workers).equals(here)


def test_outcomes_are_aligned_by_start_and_gaps_are_refused(tmp_path: Path) -> None:
    table = carry_out(WANTED, Counted, tmp_path)
    shuffled = table.take(pa.array(np.random.default_rng(0).permutation(len(table))))
    for world in ("real", "imagined"):
        mine = outcomes(shuffled, ["bb", "a"], world, [3, 1, 7])
        want = [[rows_of(Part(p, world, (s,)))[0]["success"] for s in (3, 1, 7)] for p in ("bb", "a")]
        assert mine.tolist() == want
    with pytest.raises(ImagineError, match="holds no real episode"):
        outcomes(table, ["a"], "real", [99])


def test_the_summary_counts() -> None:
    got = summarise([True, False, True, True], ["x", "x", "y", "y"])
    assert (got["success_rate"], got["n"], got["per_task"]["x"]["success_rate"]) == (0.75, 4, 0.5)


# ---------------------------------------------------------------------- flaws
class Straight:
    """Always the same chunk: arms move, grippers open."""

    def __init__(self, body: Embodiment):
        k = body.chunk_actions
        moving = np.array(body.anchors_in_proprio()) >= 0
        self.chunk = np.where(moving, 0.1 * np.linspace(0, 1, k + 1)[1:, None], 0.9).astype(np.float32)

    def act(self, observation: dict[str, np.ndarray], seeds: Any = None, episodes: Any = None) -> np.ndarray:
        return np.repeat(self.chunk[None], len(observation["proprio"]), 0)

    def reset(self, episodes: Any = None) -> None:
        pass


BODY = Embodiment.load(FOLDER / "g1_eef.yaml")
ARMS = np.array(BODY.anchors_in_proprio()) >= 0


def flawed(text: str, lanes: int = 400) -> np.ndarray:
    seen = {"proprio": np.zeros((lanes, BODY.proprio_dim), np.float32)}
    return Flawed(Straight(BODY), Flaw.parse(text), BODY).act(seen, range(lanes))


def test_no_flaw_changes_nothing() -> None:
    assert np.array_equal(flawed("noise=0", 3)[1], Straight(BODY).chunk)


def test_a_late_chunk_waits_where_it_is_and_is_cut_short() -> None:
    chunk, late = Straight(BODY).chunk, flawed("delay=5", 2)[0]
    assert (late[:5][:, ARMS] == 0).all() and np.array_equal(late[5:], chunk[:-5])
    assert (flawed("delay=99", 1)[0][:, ARMS] == 0).all()


def test_noise_is_as_large_as_said_and_grows_along_the_chunk() -> None:
    off = (flawed("noise=0.03") - Straight(BODY).chunk)[:, :, ARMS] / (BODY.action_high - BODY.action_low)[ARMS]
    np.testing.assert_allclose(off[:, -1].std(), 0.03, rtol=0.06)
    np.testing.assert_allclose(off[:, BODY.chunk_actions // 2 - 1].std(), 0.015, rtol=0.06)


def test_bias_lasts_an_episode_and_noise_a_chunk() -> None:
    policy = Flawed(Straight(BODY), Flaw(bias=0.02), BODY)
    seen = {"proprio": np.zeros((1, BODY.proprio_dim), np.float32)}
    first, second, other = (policy.act(seen, [s], [e]) for s, e in ((0, 7), (1, 7), (0, 8)))
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_chances_are_chances() -> None:
    chunk = Straight(BODY).chunk
    idle = (flawed("idle=0.3")[:, -1][:, ARMS] == 0).all(1).mean()
    flipped = np.isclose(flawed("grip=0.7")[:, -1][:, ~ARMS], 1 - chunk[-1, ~ARMS]).all(1).mean()
    assert abs(idle - 0.3) < 0.08 and abs(flipped - 0.7) < 0.08


def test_joints_that_are_commanded_absolutely_stay_where_they_are_when_idle() -> None:
    values = BODY.model_dump()
    for part in values["action"]:
        if part["kind"] == "position":
            part.update(relative_to=None, mode="absolute", low=-2.0, high=2.0)
    body = Embodiment.model_validate(values)
    now = np.linspace(-1, 1, 3 * body.proprio_dim, dtype=np.float32).reshape(3, -1)
    idle = Flawed(Straight(body), Flaw(idle=1), body).act({"proprio": now}, range(3), range(3))
    assert (idle == idle[:, :1]).all()
    at = [i for i, _ in body.commanded_in_proprio()]
    np.testing.assert_allclose(idle[:, 0, ARMS], now[:, at][:, ARMS], rtol=1e-6)
    late = Flawed(Straight(body), Flaw(delay=1), body).act({"proprio": now}, range(3), range(3))
    np.testing.assert_array_equal(late[:, 0], idle[:, 0])
    np.testing.assert_array_equal(late[:, 1:], Straight(body).chunk[None, :-1].repeat(3, 0))


def test_a_flaw_depends_on_the_seed_alone() -> None:
    one = Flawed(Straight(BODY), Flaw.parse("noise=0.05+idle=0.4+grip=0.4"), BODY)
    seen = {"proprio": np.zeros((5, BODY.proprio_dim), np.float32)}
    together = one.act(seen, range(5), range(5))
    alone = [one.act({k: v[:1] for k, v in seen.items()}, [i], [i])[0] for i in range(5)]
    assert np.array_equal(together, np.stack(alone))
    with pytest.raises(ImagineError, match="seeds"):
        one.act(seen)


@pytest.mark.parametrize("text", ["speed=3", "noise", "noise=much", "idle=1.5", "noise=-1", "delay=0.5"])
def test_an_unknown_flaw_is_refused(text: str) -> None:
    with pytest.raises(ImagineError, match="expected NAME=NUMBER"):
        Flaw.parse(text)


# ---------------------------------------------------------------------- the command
def run(*words: str) -> dict[str, Any]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main([*words, "--json"]) == 0
    return json.loads(out.getvalue())


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main([*words, "--json"]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_two_worlds_three_policies(tmp_path: Path) -> None:
    words = ("evaluate", "--policy", "base,base+grip=1,random", "--world", "both", "--episodes", "4", "--num-envs", "4")
    got = run(*words, "--videos", "1", "--horizon", "2", "--out", str(tmp_path))
    assert got["n"] == 4 and [p["policy"] for p in got["policies"]] == ["base", "base+grip=1", "random"]
    assert {"pearson", "spearman", "kendall", "mmrv", "pairs", "regret", "bias", "rmse", "judge"} <= got.keys()
    assert {"value", "ci_low", "ci_high", "n"} == got["pearson"].keys()
    for one in got["policies"]:
        assert {"sim", "imagined", "difference", "same_outcome"} <= one.keys()
    table = pq.read_table(tmp_path / "episodes.parquet")
    assert {"pearson", "mmrv", "bias", "same_outcome"} <= got["frozen"].keys() and "same_outcome" in got
    assert [one["frozen"]["n"] for one in got["frozen"]["policies"]] == [4] * 3
    assert len(table) == 3 * 3 * 4 and max(table["chunks"].to_pylist()) <= 2
    starts = {w: set() for w in ("sim", "imagined", "frozen")}
    for r in table.to_pylist():
        starts[r["world"]].add((r["start_id"], r["instruction"]))
    assert starts["sim"] == starts["imagined"] == starts["frozen"], "the same start says the same in both worlds"
    assert "Does imagination agree" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "agreement.png").stat().st_size > 5_000
    assert run(*words, "--videos", "1", "--horizon", "2", "--out", str(tmp_path)) == got


@pytest.mark.slow
def test_recorded_episodes_are_dreamt_again(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    run(
        "record",
        "--out",
        data,
        "--episodes",
        "6",
        "--seed",
        "850500",
        "--option",
        "families=pick_up",
        "--workers",
        "1",
    )
    got = run("evaluate", "--dataset", data, "--episodes", "6", "--num-envs", "4", "--out", str(tmp_path / "run"))
    (one,) = got["policies"]
    assert got["worlds"] == ["recorded", "imagined"] and one["recorded"]["n"] == one["imagined"]["n"] == got["n"] > 0
    assert got["frozen"]["worlds"] == ["recorded", "frozen"] and got["frozen"]["policies"][0]["frozen"]["n"] == got["n"]


def own(model: Any) -> Any:
    """A policy of somebody else's, for ``module:name``."""
    return Straight(model.body)


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(resolve("g1-table-tiny"), bare, ignore=shutil.ignore_patterns("metrics.json"))
    at = ("--out", str(tmp_path / "run"))
    assert "fidelity of model" in refused(capsys, "evaluate", "--world", "imagined", "--model", str(bare), *at)
    assert "named twice" in refused(capsys, "evaluate", "--policy", "base,base", "--episodes", "1", *at)
    assert "horizon" in refused(capsys, "evaluate", "--horizon", "0", *at)
    assert "expected 1 to 4" in refused(capsys, "evaluate", "--option", "blocks=9", "--episodes", "1", *at)
    assert "drop --policy" in refused(capsys, "evaluate", "--dataset", "x", "--zoo", *at)
    assert "cannot be imported" in refused(capsys, "evaluate", "--policy", "json:nothing", "--episodes", "1", *at)
    assert "expected a Policy" in refused(capsys, "evaluate", "--policy", "builtins:repr", "--episodes", "1", *at)
