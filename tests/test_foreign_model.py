"""Somebody else's world model, measured and stepped: on one that listens, and on one that does not."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import imagine
from imagine.agents.foreign_fidelity import measure_foreign
from imagine.types import ImagineError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # no error is infinite dB
FRAMES = 4


class Brightness:
    """Every frame is as bright as the chunk's first action says, if it listens."""

    def __init__(self, listens: bool = True, shape: tuple[int, ...] = (64, 96)) -> None:
        self.listens, self.shape = listens, shape

    def encode(self, frames: np.ndarray, proprio: np.ndarray, instructions: Sequence[str]) -> Any:
        return np.repeat(frames[:, -1:, : self.shape[0]], FRAMES, 1)

    def predict(self, state: Any, actions: np.ndarray, seeds: Sequence[int]) -> Any:
        level = (128 + 100 * actions[:, 0, 0]).astype(np.uint8) if self.listens else np.full(len(actions), 7, np.uint8)
        return np.broadcast_to(level[:, None, None, None, None], state.shape).copy()

    def decode(self, state: Any) -> np.ndarray:
        return state


class Recorded:
    """Windows of episodes in which the world does what :class:`Brightness` says."""

    context_frames, instructions = 1, ["shine"]
    embodiment = SimpleNamespace(name="lamp", chunk_frames=FRAMES, canvas_height=64, canvas_width=96)

    def rows(self, _: str) -> np.ndarray:
        return np.arange(40)

    def batch(self, rows: np.ndarray) -> Any:
        action = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (40, 24, 8)).astype(np.float32))[rows]
        first = torch.zeros(len(rows), 1, 64, 96, 3, dtype=torch.uint8)
        model = Brightness()
        then = torch.from_numpy(model.predict(model.encode(first.numpy(), first.numpy(), []), action.numpy(), []))
        return SimpleNamespace(
            video=torch.cat([first, then], 1), proprio=torch.zeros(len(rows), 1 + FRAMES, 8), action=action,
            video_valid=torch.ones(len(rows), FRAMES, dtype=torch.bool), episode=torch.from_numpy(rows // 4),
            instruction_id=torch.zeros(len(rows), dtype=torch.long), instructions=self.instructions,
        )  # fmt: skip


def test_a_model_that_listens_is_told_from_one_that_does_not() -> None:
    listens = measure_foreign(Brightness(), Recorded(), n=40)  # type: ignore[arg-type]
    deaf = measure_foreign(Brightness(listens=False), Recorded(), n=40)  # type: ignore[arg-type]
    assert listens["counterfactual"]["value"] == 1 and listens["psnr_true"] > 60 > listens["psnr_shuffled"]
    assert deaf["counterfactual"]["value"] == 0.5 and deaf["psnr_true"] == deaf["psnr_shuffled"]
    assert (listens["n"], listens["episodes"]) == (40, 10)


def never(frames: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
    return np.zeros(len(frames))


def test_it_is_a_gym() -> None:
    env = gym.make("imagine/Dream-v0", foreign=Brightness(), judge=never, starts="saved", horizon=2)
    first, info = env.reset(seed=3)
    action = np.full(env.action_space.shape or (), 0.25, np.float32)
    seen, *_ = env.step(action)
    assert (seen["top_head"] == 153).all() and np.array_equal(seen["instruction"], first["instruction"])
    kept: Any = env.unwrapped
    state = kept.snapshot()
    assert env.step(action * 0)[3]
    kept.restore(state)
    assert (env.unwrapped.step(action)[0]["top_head"] == 153).all() and info["start_id"] == "saved-3"


def test_what_does_not_fit_is_refused() -> None:
    for wrong, complaint in (({"foreign": "nothing:here"}, "cannot be imported"), ({"foreign": 7}, "expected encode"),
                             ({"foreign": Brightness(), "steer": {}}, "neither steered")):  # fmt: skip
        with pytest.raises(ImagineError, match=complaint):
            imagine.make_env(judge=never, **wrong)  # type: ignore[arg-type]
    env = imagine.make_env(foreign=Brightness(shape=(32,)), judge=never, starts="saved")
    env.reset(seed=0)
    with pytest.raises(ImagineError, match=r"Brightness\.decode gave"):
        env.step(np.zeros(env.action_space.shape or (), np.float32))
