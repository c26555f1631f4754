"""The shipped model through the public face: the gym by name, and every command on a few episodes."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import imagine
from imagine.agents.instruction_swap import SwappedEnvs
from imagine.agents.rollout import rollout
from imagine.configs import build, cli
from imagine.configs.evaluation import swap_of
from imagine.configs.paid import paid_by
from imagine.embodiment import Embodiment
from imagine.model.model import SHIPPED
from imagine.policy.robots.g1_table.env import FOLDER
from imagine.policy.robots.g1_table.expert import expert_target
from imagine.policy.robots.g1_table.privileged import expert_chunk
from imagine.policy.robots.g1_table.tasks import Task
from imagine.policy.robots.g1_table.world import G1Table
from imagine.rewards.latent import LatentJudge
from imagine.rewards.vlm import JudgeSettings, VLMJudge

pytestmark = pytest.mark.slow


def run(*words: str) -> dict[str, Any]:
    """One command with ``--json``: exit code 0 and exactly one object on stdout."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main([*words, "--json"])
    assert code == 0
    (line,) = out.getvalue().strip().splitlines()
    return json.loads(line)


def test_weights_are_small_and_say_what_they_answer() -> None:
    files = list((SHIPPED / "g1-table-tiny").rglob("*.safetensors"))
    assert files and all(f.stat().st_size < 16_000_000 for f in files)
    model = imagine.WorldActionModel.from_pretrained("g1-table-tiny")
    assert {q.name for q in model.answers} == {"POLICY", "DYNAMICS", "INVERSE", "JOINT", "VIDEO"}
    assert (SHIPPED / "g1-table-tiny" / "metrics.json").is_file(), "metrics lie beside the weights"


def test_dream_and_robot_share_spaces_and_starts() -> None:
    dream, real = gym.make("imagine/G1Table-v0"), gym.make("sim/G1Table-v0")
    assert dream.observation_space == real.observation_space and dream.action_space == real.action_space
    told = {"instruction": "pick up the red block"}
    seen, _ = dream.reset(seed=900_123, options=told)
    truth, _ = real.reset(seed=900_123, options=told)
    assert np.array_equal(seen["instruction"], truth["instruction"])
    np.testing.assert_allclose(seen["proprio"], truth["proprio"], atol=1e-4)
    views = [v.name for v in imagine.WorldActionModel.from_pretrained("g1-table-tiny").body.views]
    assert all(np.array_equal(seen[v], truth[v]) for v in views), "an episode begins with what the robot sees"
    error = np.square(
        dream.unwrapped.vector.world.start_canvas[0, :, :64].numpy() - truth["top_head"].astype(float)
    ).mean()
    assert 10 * np.log10(255**2 / error) > 28, "the codec keeps the first frame"


def test_the_shipped_dream_passes_gymnasiums_checker() -> None:
    # Gymnasium samples 24 unrelated actions, which no dream can follow; it also forbids truncation after one step.
    env = gym.make("imagine/G1Table-v0", render_mode="rgb_array")
    check_env(env.unwrapped)


def test_lanes_of_make_vec_do_not_depend_on_their_number() -> None:
    envs = [gym.make_vec("imagine/G1Table-v0", num_envs=n) for n in (1, 3)]
    last = []
    for env in envs:
        env.reset(seed=900_000)
        low, high = env.single_action_space.low, env.single_action_space.high
        chunk = np.broadcast_to(0.5 * (low + high) + 0.1 * high, env.action_space.shape).astype(np.float32)
        for _ in range(2):
            obs = env.step(chunk)[0]
        last.append(obs)
    for key in last[0]:
        assert last[0][key][0].tobytes() == last[1][key][0].tobytes(), key


@pytest.mark.parametrize("world", ["sim", "imagined"])
def test_evaluate(tmp_path: Path, world: str) -> None:
    got = run("evaluate", "--world", world, "--episodes", "3", "--out", str(tmp_path / "run"))
    assert {"policy", "world", "success_rate", "ci_low", "ci_high", "n", "per_task", "seed"} <= got.keys()
    assert got["n"] == 3 and got["ci_low"] <= got["success_rate"] <= got["ci_high"]
    if world == "imagined":
        assert {"judge", "fidelity"} <= got.keys(), "no imagined rate without the judge's error and the dream's truth"


def test_plan(tmp_path: Path) -> None:
    clutter = ("--option", "blocks=3", "--horizon", "2")
    got = run("plan", "--candidates", "2", "--compare", "--episodes", "2", *clutter, "--out", str(tmp_path / "run"))
    assert {"candidates", "success_rate", "ci_low", "ci_high", "n", "ms_per_decision"} <= got.keys()
    assert {"value", "ci_low", "ci_high", "n"} == got["gain"].keys() and got["alone"]["n"] == 2
    pictures = list((tmp_path / "run" / "decisions").glob("*.png"))
    assert pictures and all(p.stat().st_size > 1000 for p in pictures)


def test_fidelity(tmp_path: Path) -> None:
    got = run(
        "evaluate",
        "world-model",
        "--episodes",
        "20",
        "--windows",
        "40",
        "--chunks",
        "2",
        "--out",
        str(tmp_path / "run"),
    )
    named = {"psnr_true", "psnr_shuffled", "psnr_copy", "psnr_codec", "inverse_r2", "inverse_r2_imagined", "n"}
    assert named <= got.keys() and len(got["horizon_psnr"]) == 2
    assert got["psnr_copy"] < got["psnr_true"] < got["psnr_codec"]


def test_heads_are_taught_on_whole_dreams(tmp_path: Path) -> None:
    small = "rollouts.policies=[base],rollouts.episodes=10,rollouts.chunks=2,rollouts_fit.steps=2,rollouts_fit.batch=4"
    words = ("train", "--stages", "rollouts", "--init", "g1-table-tiny", "--set", small, "--out", str(tmp_path / "run"))
    got = run(*words)
    assert {"auroc", "threshold", "false_positive", "false_negative", "policies"} <= got["rollouts"].keys()
    taught = LatentJudge.load(got["model"])
    assert taught.cfg.head.threshold == got["rollouts"]["threshold"]
    assert run(*words) == got, "what is finished is kept"


def test_improve_then_use_the_adapter(tmp_path: Path) -> None:
    small = ["--set", "updates=1,groups=2", "--num-envs", "16", "--watch-starts", "4"]
    got = run("finetune", "rl", *small, "--test-episodes", "2", "--out", str(tmp_path / "run"))
    assert {"before", "after", "imagined_chunks", "imagined_gain", "seconds", "warning"} <= got.keys()
    assert got["second_judge"]["name"] == "latent" and {"before", "after", "gain"} <= got["second_judge"].keys()
    assert {"return", "second_judge", "kl", "floor", "final_judge_gap"} <= got["curve"][0].keys()
    assert "Improved in the dream" in (tmp_path / "run" / "report.html").read_text()
    adapter = str(tmp_path / "run" / "adapter")
    again = run("evaluate", "--policy", adapter, "--episodes", "2", "--out", str(tmp_path / "again"))
    assert again["success_rate"] == got["after"]["success_rate"]
    assert paid_by("judge-tiny", [adapter], "g1-table-tiny") == (adapter,)


def test_rollout_films(tmp_path: Path) -> None:
    got = run("rollout", "--episodes", "2", "--instruction", "pick up the red block", "--out", str(tmp_path / "run"))
    assert all((tmp_path / "run" / e["video"]).stat().st_size > 500 for e in got["episodes"])


@pytest.mark.parametrize(
    "words, told",
    [
        (["evaluate", "--model", "nowhere"], "no model at 'nowhere'"),
        (["evaluate", "--episodes", "0"], "expected at least 1"),
        (["evaluate", "--num-envs", "0"], "expected at least 1"),
        (["evaluate", "--policy", "expert", "--world", "imagined"], "reads the true state"),
        (["evaluate", "--policy", "expert", "--swap-instruction", "task"], "the scripted expert follows the true task"),
        (["evaluate", "--world", "mars"], "expected sim, imagined or both"),
        (["rollout", "--instruction", "nimm den roten block"], "was not trained on"),
        (["plan", "--candidates", "0"], "expected at least 1"),
        (["plan", "--policy", "random"], "cannot propose"),
        (["finetune", "rl", "--test-seed", "800000"], "overlap"),
        (["finetune", "rl", "--watched-by", "judge-tiny"], "cannot watch itself"),
        (["finetune", "rl", "--policy", "nobody"], "no adapter 'nobody'"),
        (["finetune", "rl", "--preset", "ppo"], "no preset 'ppo'"),
        (["finetune", "rl", "--set", "grpo.kernel.kind=ode", "--preset", "grpo"], "no random move"),
        (["finetune", "bc", "--dataset", "/nowhere"], "nowhere"),
        (["record", "--option", "failures=2"], "has no option 'failures'; it has: families"),
        (["train", "--dataset", "/nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_episode_of_a_misled_policy_ends_once_it_has_obeyed() -> None:
    loaded = build.load("g1-table-tiny")
    swap = swap_of(loaded, "colour")
    envs = build.parallel_envs(loaded, "sim", 1, until=swap)
    assert isinstance(envs, SwappedEnvs)

    def obey(env: Any) -> np.ndarray:
        """What the scripted expert would do if it were told what the policy is."""
        given, env.robot.world.task = env.robot.world.task, Task.parse(envs.told[0])
        chunk = expert_chunk(env)
        env.robot.world.task = given
        return chunk

    envs.expert = obey
    for seed in (900_321, 900_322):
        (record,) = rollout(envs, None, [seed], instruct=swap)
        given, told = Task.parse(record.instruction), Task.parse(envs.told[0])
        assert told.family == given.family and told.colour != given.colour
        assert len(record.rewards) < build.HORIZON and not record.success
        assert envs.envs[0].robot.world.success(told)


# ------------------------------------------------------------------ the judge


def test_judge_tiny_is_a_small_transformers_model_with_its_figures_beside_it() -> None:
    from transformers import AutoConfig

    folder = SHIPPED / "judge-tiny"
    assert AutoConfig.from_pretrained(folder).model_type == "qwen3_vl"
    judge = VLMJudge.load("judge-tiny", domain="imagined")
    assert sum(p.numel() for p in judge.backend.model.parameters()) <= 12_000_000
    assert set(JudgeSettings.read(folder).calibration) == {"real", "imagined"}
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["real"]["n"] >= 400 and figures["negative_controls"]["n"] >= 200
    assert {"auroc", "ece", "brier", "fpr", "fnr"} <= set(figures["imagined"])


def test_judge_tiny_tells_what_was_done_from_what_was_not() -> None:
    """Expert episodes on the twin: at their end the task is done, before it is not, and another one is not either."""
    world, judge = G1Table(), VLMJudge.load("judge-tiny", domain="real")
    body = Embodiment.load(FOLDER / "g1_eef.yaml")
    films, told, label = [], [], []
    for seed in range(900_400, 900_420):
        task = world.reset(seed, families=("put_in_bowl", "pick_up", "push_left", "push_right"))
        film = [body.tile(world.views())]
        done_at = 192
        for t in range(192):
            world.tick(expert_target(world, world.task))
            if t % 12 == 11:  # after 0.4 s nothing can be done yet; after 0.8 s a block may have been picked up
                film.append(body.tile(world.views()))
            if world.success():
                done_at = min(done_at, t)
            if t >= done_at + 12:  # a chunk goes on, and is judged by its end
                break
        film.append(body.tile(world.views()))
        other = next(c for c in world.colours if c != task.colour)
        for now, asked, done in (
            (film[-1], task, True),
            (film[1], task, False),
            (film[-1], Task(task.family, other), False),
        ):
            films.append(np.stack([film[0], now]))
            told.append(asked.instruction)
            label.append(done)
    score = judge.score(np.stack(films), told)
    said, truth = score.terminated.numpy(), np.array(label)
    assert score.valid.all()
    assert (said & ~truth).sum() <= 3, "false alarms are the dear ones"
    assert (said & truth).sum() >= 15
    holding = VLMJudge(judge.backend, "imagine-rubric").score(np.stack(films), told).terms
    assert set(holding) == {"success", "progress", "holding", "contact", "safety"}
    assert holding["progress"][truth].mean() > holding["progress"][~truth].mean() + 0.2


def test_the_gym_reports_every_part_of_the_verdict() -> None:
    env = gym.make_vec("imagine/G1Table-v0", num_envs=2, shaping=0.99)
    env.reset(seed=900_000)
    _, reward, terminated, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    terms = info["reward_terms"]
    parts = {
        "success",
        "progress",
        "inverse_error",
        "frozen",
        "blurred",
        "noisy",
        "velocity",
        "jerk",
        "workspace",
        "two_arms",
        "vetoed",
    }
    assert parts <= set(terms) and "shaping" in terms
    assert not terminated.any() and np.allclose(reward, terms["shaping"])
    plain = gym.make_vec("imagine/G1Table-v0", num_envs=2, judge="latent", guarded=False)
    plain.reset(seed=900_000)
    assert "inverse_error" not in plain.step(np.zeros(env.action_space.shape, np.float32))[4]["reward_terms"]


def test_an_imagined_rate_is_not_told_without_the_judges_error(tmp_path: Path) -> None:
    words = ("evaluate", "--world", "imagined", "--episodes", "2", "--num-envs", "2", "--seed", "900000")
    heads = run(*words, "--judge", "latent", "--out", str(tmp_path / "latent"))["judge"]
    assert heads["name"] == "latent" and 0 <= heads["false_positive"] <= 1
    result = run(*words, "--out", str(tmp_path / "vlm"))
    assert result["judge"]["name"] == "judge-tiny" and 0 <= result["judge"]["fpr"] <= 1


def test_calibrate_reports_both_worlds_and_the_controls(tmp_path: Path) -> None:
    sizes = ["--episodes", "4", "--rollouts", "16", "--controls", "4", "--fit-seed", "861000", "--seed", "971000"]
    result = run("evaluate", "judge", *sizes, "--out", str(tmp_path / "run"))
    for kind, n in (("real", 16), ("imagined", 16)):
        assert {"auroc", "ece", "brier", "fpr", "fnr", "fpr_ci"} <= set(result[kind]) and result[kind]["n"] == n
    assert set(result["imagined"]["by_policy"]) == {"base", "clumsy", "misled", "random"}
    assert 0 <= result["false_positive_rate"] <= 1 and result["negative_controls"]["n"] >= 12
    assert (tmp_path / "run" / "reliability.png").stat().st_size > 5000
    found = JudgeSettings.read(tmp_path / "run").calibration
    assert "pick up the * block" in found["real"].families, "what was fitted can be used as a judge's settings"


def test_calibrate_refuses_to_measure_what_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "judge", "--fit-seed", "970100"]) == 2
    assert "overlap" in capsys.readouterr().err


def test_recordings_alone_teach_and_calibrate_judges(tmp_path: Path) -> None:
    """A robot without a simulator: its episodes are dreamt again under their own actions, and cross-fitted."""
    data = tmp_path / "data"
    run(
        "record",
        "--out",
        str(data),
        "--episodes",
        "8",
        "--seed",
        "300",
        "--workers",
        "2",
        "--option",
        "families=push_left",
    )
    sizes = ["--dataset", str(data), "--chunks", "2", "--controls", "4"]
    result = run("evaluate", "judge", *sizes, "--out", str(tmp_path / "run"))
    assert result["real"]["n"] >= 8 and result["real"]["clusters"] == 8, "every episode is measured, none by itself"
    assert set(result["imagined"]["by_policy"]) == {"recorded"} and result["imagined"]["n"] >= 4
    assert {"reversed", "frozen", "noise"} < set(result["negative_controls"])
    found = JudgeSettings.read(tmp_path / "run").calibration["real"].other
    assert found.n == result["real"]["n"] and found.threshold_ci is not None

    model = tmp_path / "model"
    shutil.copytree(SHIPPED / "g1-table-tiny", model)
    (model / "robot.json").unlink()  # nobody knows a simulator of it
    small = "rollouts.chunks=2,rollouts_fit.steps=2,rollouts_fit.batch=4"
    words = ("train", "--stages", "rollouts", "--init", str(model), "--dataset", str(data), "--set", small)
    got = run(*words, "--out", str(tmp_path / "train"))
    assert set(got["rollouts"]["policies"]) == {"recorded"} and got["rollouts"]["threshold_refused"]
    before, after = (LatentJudge.load(folder).cfg.head.threshold for folder in (model, got["model"]))
    assert before == after, "too few episodes to set it"

    small = "codec_fit.steps=2,model_fit.steps=2,judge_fit.steps=2,judge_fit.batch=4"
    words = ("train", "--preset", "nano", "--dataset", str(data), "--set", f"{small},judge_dreams=8")
    judge = run(*words, "--out", str(tmp_path / "whole"))["judge"]
    assert {"auroc", "imagined_auroc", "false_positive_ci", "threshold_n"} <= judge.keys() and judge["threshold"] == 0.5
    fit = LatentJudge.load(tmp_path / "whole" / "model").cfg.threshold_fit
    assert fit is not None and "expected at least 10 of each" in fit.refused
