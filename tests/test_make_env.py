"""The public constructor of dreams, and the ids that lead to it: with a simulator, without one, and with own parts."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import imagine
from imagine.configs.judges import default_judge, load_judge
from imagine.configs.policies import load_policy
from imagine.model.model import WorldActionModel
from imagine.types import Clip, ImagineError, Policy, Score, ShapeError
from imagine.world.starts import SavedStarts, Start, save_starts

STILL = np.zeros((4, 2), np.float32)


def constant(value: float) -> Any:
    return lambda frames, instructions: np.full(len(frames), value)


# ------------------------------------------------------------------ a dream without a simulator
def test_a_folder_dreams_alone(foreign: Path) -> None:
    env = gym.make("imagine/Dream-v0", model=foreign)
    check_env(env.unwrapped, skip_render_check=True)
    seen = [env.reset(seed=seed)[1] for seed in range(4)]
    assert [info["start_id"] for info in seen] == ["saved-0", "saved-1", "saved-2", "saved-0"]
    assert seen[1]["instruction"] == "reach the bowl"
    assert env.reset(seed=0, options={"instruction": "reach the red bowl"})[1]["instruction"] == "reach the red bowl"
    assert {"hallucination", "success_probability"} <= set(env.step(STILL)[4])


def test_files_of_a_judge_that_is_gone_are_ignored(foreign: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(foreign, folder)
    (folder / "path.json").write_text("{}")
    assert default_judge(folder) == default_judge(foreign)
    imagine.make_env(model=folder).reset(seed=0)


def test_scalar_and_vector_environments_dream_alike(foreign: Path) -> None:
    vector = gym.make_vec("imagine/Dream-v0", num_envs=3, model=foreign)
    many, _ = vector.reset(seed=5)
    after = vector.step(np.stack([STILL] * 3))
    for i in range(3):
        env = imagine.make_env(foreign)
        one, _ = env.reset(seed=5 + i)
        assert all(np.array_equal(one[k], many[k][i]) for k in one)
        assert np.array_equal(env.step(STILL)[0]["head"], after[0]["head"][i])


def test_a_function_gives_the_starts(foreign: Path) -> None:
    picture = np.full((16, 16, 3), 7, np.uint8)

    def camera(seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
        return {"head": picture, "proprio": np.zeros(3, np.float32), "instruction": "push the bowl"}

    seen, info = imagine.make_env(foreign, starts=camera).reset(seed=9)
    assert np.array_equal(seen["head"], picture) and info["instruction"] == "push the bowl"
    for wrong in (None, {"head": picture}, Start(picture[:8], np.zeros(3, np.float32), "push the bowl", "x")):
        with pytest.raises(ShapeError, match="starts gave"):
            imagine.make_env(foreign, starts=lambda seed, options, wrong=wrong: wrong).reset(seed=0)  # type: ignore[misc]


def test_a_folder_without_starts_or_simulator_says_what_to_give(foreign: Path) -> None:
    (foreign / "starts.safetensors").unlink()
    with pytest.raises(ImagineError, match=r"no simulator and .* no saved starts; give starts="):
        imagine.make_env(foreign)
    with pytest.raises(ImagineError, match="no environment to act in"):
        imagine.make_env(foreign, starts="sim")


def test_saved_starts_are_whole_or_refused(foreign: Path, tiny_model: WorldActionModel) -> None:
    assert len(SavedStarts.load(foreign, tiny_model.body)) == 3
    other = tiny_model.body.model_copy(update={"canvas_width": 24})
    with pytest.raises(ImagineError, match=r"\(3, 16, 16, 3\).*\(16, 24, 3\)"):
        SavedStarts.load(foreign, other)
    (foreign / "starts.safetensors").write_bytes(b"cut off")
    with pytest.raises(ImagineError, match=r"starts.safetensors is damaged"):
        SavedStarts.load(foreign, tiny_model.body)
    with pytest.raises(ImagineError, match="no start to save"):
        save_starts([], foreign)


def test_somebody_elses_robot_is_no_hindrance_to_dreaming(foreign: Path) -> None:
    (foreign / "robot.json").write_text(json.dumps({"robot": "nobody_has_this.module:Robot"}))
    with pytest.warns(UserWarning, match="Going on without a simulator"):
        imagine.make_env(foreign).reset(seed=0)
    with pytest.raises(ImagineError, match="cannot be imported"):
        imagine.make_env(foreign, robot="nobody_has_this.module:Robot")


# ------------------------------------------------------------------ judges
def test_one_default_judge_that_knows_the_robot(foreign: Path) -> None:
    assert default_judge("g1-table-tiny") == "judge-tiny"
    assert default_judge(foreign) == "latent"
    (foreign / "judge.json").unlink()
    with pytest.raises(ImagineError, match="holds no judge"):
        default_judge(foreign)


def test_a_function_of_frames_is_a_judge(foreign: Path) -> None:
    shapes = []

    def mine(frames: np.ndarray, instructions: list[str]) -> np.ndarray:
        shapes.append((frames.shape[1:], frames.dtype, instructions[:2]))
        return np.array([0.7 if "push" in text else 0.2 for text in instructions])

    env = imagine.make_env(foreign, num_envs=2, judge=mine, guarded=False)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(np.stack([STILL] * 2))
    assert shapes == [((3, 16, 16, 3), np.uint8, ["push the bowl", "reach the bowl"])]
    assert reward.tolist() == [1, 0] and terminated.tolist() == [True, False]
    assert np.allclose(info["success_probability"], [0.7, 0.2])


def test_a_dense_reward_of_ones_own_ends_nothing(foreign: Path) -> None:
    env = imagine.make_env(foreign, judge=lambda frames, _: (np.full(len(frames), -3.5), np.full(len(frames), 0.1)))
    env.reset(seed=0)
    _, reward, terminated, *_ = env.step(STILL)
    assert reward == -3.5 and not terminated


def test_what_a_judge_cannot_tell_is_not_paid(foreign: Path) -> None:
    env = imagine.make_env(foreign, judge=constant(np.nan))
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(STILL)
    assert reward == 0 and not terminated and not info["valid"]


@pytest.mark.parametrize("answer", [np.zeros(3), "yes", np.array([1.5]), (np.zeros(1),) * 3])
def test_a_judge_that_answers_something_else_is_told_so(foreign: Path, answer: Any) -> None:
    def mine(frames: np.ndarray, instructions: list[str]) -> Any:
        return answer

    env = imagine.make_env(foreign, judge=mine)
    env.reset(seed=0)
    with pytest.raises(ShapeError, match="judge mine returned"):
        env.step(STILL)


def test_a_function_of_clips_is_a_reward_model(foreign: Path) -> None:
    def mine(clip: Clip, instructions: list[str]) -> Score:
        n = clip.latents.new_ones(len(instructions))
        return Score(n, n, n.bool())

    assert load_judge(mine, foreign) is mine


def test_judges_and_policies_of_the_working_directory_are_found(
    foreign: Path, tiny_model: WorldActionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_here.py").write_text(
        "import numpy as np\n"
        "def judge(frames, instructions): return np.zeros(len(frames))\n"
        "class Agent:\n"
        "    def predict(self, observation, state=None, episode_start=None, deterministic=False):\n"
        "        assert deterministic\n"
        "        return np.full((len(observation['proprio']), 8), 0.25, np.float32), None\n"
        "agent = Agent()\n"
        "def make(model): return Agent()\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    env = imagine.make_env(foreign, judge="mine_here:judge")
    seen, _ = env.reset(seed=0)
    assert env.step(STILL)[1] == 0
    batched = {k: v[None] for k, v in seen.items()}
    for name in ("mine_here:agent", "mine_here:make"):
        policy = load_policy(name, tiny_model, foreign)
        assert isinstance(policy, Policy)
        assert np.array_equal(policy.act(batched, [0], [0]), np.full((1, 4, 2), 0.25, np.float32))
    for name, complaint in (("mine_here:number", "expected a Policy"), ("mine_here:none", "cannot be imported")):
        with pytest.raises(ImagineError, match=complaint):
            load_policy(name, tiny_model, foreign)
    with pytest.raises(ImagineError, match="no policy 'nope'; expected base, random"):
        load_policy("nope", tiny_model, foreign)


@pytest.mark.parametrize("name", ["nope", "nobody/nothing"])
def test_a_judge_out_of_reach_is_one_quick_sentence(foreign: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    begin = time.time()
    with pytest.raises(ImagineError, match=f"there is no judge '{name}'; expected judge-tiny, latent"):
        load_judge(name, foreign)
    assert time.time() - begin < 20


# ------------------------------------------------------------------ ids
@pytest.mark.slow
def test_every_id_makes_a_scalar_environment_that_passes_the_checks() -> None:
    from stable_baselines3.common.env_checker import check_env as check_sb3

    for name in ("imagine/Dream-v0", "imagine/G1Table-v0", "imagine/G1TableLatent-v0", "sim/G1Table-v0"):
        env = gym.make(name)
        check_env(env.unwrapped, skip_render_check=True)
        check_sb3(env.unwrapped)


@pytest.mark.slow
def test_simulator_saved_starts_and_dataset_are_chosen_by_name() -> None:
    sim, dream = gym.make("sim/G1Table-v0"), imagine.make_env(starts="sim")
    want, seen = sim.reset(seed=950_000)[0], dream.reset(seed=950_000)[0]
    assert all(np.array_equal(want[k], seen[k]) for k in want)
    saved, info = imagine.make_env(starts="saved").reset(seed=0)
    assert info["start_id"] == "saved-0" and all(np.array_equal(want[k], saved[k]) for k in want)
    few = imagine.make_env(starts="saved", scenes=[5])
    assert [few.reset(seed=s)[1]["start_id"] for s in (0, 1)] == ["saved-5", "saved-5"]


def test_the_former_name_warns() -> None:
    with pytest.warns(FutureWarning, match="called sim/ now"):
        assert gym.make("real/G1Table-v0").unwrapped.action_space == gym.make("sim/G1Table-v0").action_space


def test_options_of_the_robot_are_checked() -> None:
    assert len(gym.make("sim/G1Table-v0", blocks=3).reset(seed=0)[0]["proprio"]) == 8
    for wrong in ({"blocks": 9}, {"bricks": 2}, {"families": ("juggle",)}):
        with pytest.raises(ImagineError, match=r"blocks|bricks|juggle"):
            gym.make("sim/G1Table-v0", **wrong).reset(seed=0)
    with pytest.raises(ImagineError, match="has no option 'bricks'; it has: families"):
        imagine.make_env(options={"bricks": 1})


def _in_a_worker(folder: str) -> bytes:
    import gymnasium

    env = gymnasium.make("imagine:imagine/Dream-v0", model=folder)
    return bytes(env.reset(seed=1)[0]["head"].tobytes())


def test_spawned_workers_make_dreams_by_the_id_that_names_the_module(foreign: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        got = pool.apply(_in_a_worker, (str(foreign),))
    assert got == gym.make("imagine/Dream-v0", model=foreign).reset(seed=1)[0]["head"].tobytes()


def test_wrong_numbers_are_refused(foreign: Path) -> None:
    for wrong, complaint in (
        ({"num_envs": 0}, "num_envs is 0"),
        ({"steer": {"hows": 1}}, "steer has no key 'hows'"),
        ({"steer": {"policy": "random"}}, "cannot be steered"),
        ({"scenes": []}, "no scene"),
        ({"starts": "no/such/folder"}, "no/such/folder"),
    ):
        with pytest.raises(ImagineError, match=complaint):
            imagine.make_env(foreign, **wrong)  # type: ignore[arg-type]


def test_the_shipped_folder_dreams_where_there_is_no_simulator(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['mujoco'] = None\n"
        "import imagine\n"
        "env = imagine.make_env()\n"
        "print(env.reset(seed=2)[1]['start_id'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "saved-2", done.stderr
