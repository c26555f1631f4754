"""Somebody else's world model: three methods are enough to be measured as ours is, and to be a gym.

A model begins at pictures, is given chunks of actions in robot units, and shows what it imagines; what it remembers
from one chunk to the next is its own. ``imagine evaluate world-model --foreign module:name`` asks whether it
follows its actions, ``imagine.make_env(foreign=...)`` makes an environment of it. docs/fidelity.md has an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from imagine.embodiment import Embodiment
from imagine.seeds import Stream, derive
from imagine.types import Clip, RewardModel, ShapeError, pack_instruction
from imagine.world.interface import Outcome, one_each
from imagine.world.spaces import action_space, observation_space
from imagine.world.starts import Starts


@runtime_checkable
class ForeignModel(Protocol):
    """A world model behind three functions; a state is opaque, and none of them changes one."""

    def encode(self, frames: np.ndarray, proprio: np.ndarray, instructions: Sequence[str]) -> Any:
        """The state after frames (B, T, H, W, 3) uint8, newest last, and proprioception (B, T, P), robot units."""

    def predict(self, state: Any, actions: np.ndarray, seeds: Sequence[int]) -> Any:
        """The state after one chunk of actions (B, K, A) float32, robot units; ``seeds`` (B) are for its noise."""

    def decode(self, state: Any) -> np.ndarray:
        """The frames (B, F, H, W, 3) uint8 of a predicted chunk, newest last."""


def shown(model: ForeignModel, body: Embodiment, state: Any, rows: int) -> np.ndarray:
    """What a model decodes.

    Raises:
        ShapeError: it is no chunk of such frames.
    """
    frames = np.asarray(model.decode(state))
    want = (rows, body.chunk_frames, body.canvas_height, body.canvas_width, 3)
    if frames.shape != want or frames.dtype != np.uint8:
        raise ShapeError(
            f"{type(model).__name__}.decode gave {frames.dtype} {frames.shape}, expected uint8 {want} for embodiment "
            f"{body.name!r}; resize, and take the frames at which the robot's camera looks."
        )
    return frames


class ForeignWorld:
    """A ``World`` of a :class:`ForeignModel`. It has no proprioception of its own: the first is observed for ever.

    Each environment has a state of its own and is predicted alone, so that it does not depend on its neighbours.
    """

    def __init__(self, model: ForeignModel, body: Embodiment, starts: Starts, judge: RewardModel) -> None:
        """Dream with somebody else's model; ``judge`` must be one that looks at frames alone."""
        self.model, self.body, self.starts, self.judge = model, body, starts, judge
        self.single_observation_space, self.single_action_space = observation_space(body), action_space(body)
        self.metadata = {"control_hz": body.control_hz, "render_fps": body.control_hz / body.frame_stride}

    def allocate(self, num_envs: int) -> None:
        """Make room for ``num_envs`` environments."""
        self._rows: list[dict[str, Any]] = [{}] * num_envs

    def reset(self, envs: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any], /) -> dict[str, Any]:
        """Begin an episode in some environments; ``options`` as :meth:`imagine.world.dream.Dream.reset` takes them."""
        each = zip(seeds, one_each(options.get("instruction"), len(envs)), strict=True)
        rows = []
        for seed, text in each:
            start = self.starts(int(seed), {**options, "instruction": text})
            state = self.model.encode(start.canvas[None, None], start.proprio[None, None], [start.instruction])
            row = {"state": state, "start": start, "seed": int(seed), "step": 0}
            rows.append({**row, "frames": start.canvas[None], "packed": pack_instruction(start.instruction)})
        for env, row in zip(envs.tolist(), rows, strict=True):
            self._rows[env] = row
        return {
            "instruction": np.array([row["start"].instruction for row in rows], object),
            "start_id": np.array([row["start"].start_id for row in rows], object),
        }

    def step(self, actions: np.ndarray) -> Outcome:
        """Imagine one chunk in every environment; ``success_probability`` and ``valid`` are the judge's.

        Raises:
            ShapeError: the actions are misshapen or in wrong units, or what is decoded is.
        """
        checked = self.body.check_action(actions)
        rows = [self._after(row, action) for row, action in zip(self._rows, checked, strict=True)]
        clips = np.stack([np.concatenate([r["start"].canvas[None], r["frames"]]) for r in rows])
        frames, empty = torch.from_numpy(clips), torch.zeros(len(rows), 0)
        every = list(range(frames.shape[1]))
        clip = Clip(empty, empty, lambda at=None: frames[:, every if at is None else at], torch.from_numpy(checked))
        score = self.judge(clip, [row["start"].instruction for row in rows])
        self._rows = rows
        success, valid = score.success.cpu().numpy(), score.valid.cpu().numpy()
        reward = np.where(valid, score.reward.float().cpu().numpy(), np.float32(0))
        info = {"success_probability": success, "valid": valid}
        return Outcome(reward, score.terminated.cpu().numpy(), np.ones(len(rows), bool), info)

    def _after(self, row: dict[str, Any], action: np.ndarray) -> dict[str, Any]:
        seed = derive(row["seed"], row["step"], Stream.WORLD)
        state = self.model.predict(row["state"], action[None], [seed])
        return {**row, "state": state, "frames": shown(self.model, self.body, state, 1)[0], "step": row["step"] + 1}

    def observe(self) -> dict[str, np.ndarray]:
        """The newest observation of every environment."""
        views = self.body.untile(np.stack([row["frames"][-1] for row in self._rows]))
        proprio = np.stack([row["start"].proprio for row in self._rows]).astype(np.float32)
        return {**views, "proprio": proprio, "instruction": np.stack([row["packed"] for row in self._rows])}

    def snapshot(self) -> Any:
        """Everything that the future depends on."""
        return list(self._rows)

    def restore(self, state: Any) -> None:
        """Go back to a snapshot.

        Raises:
            ShapeError: it is of something else.
        """
        if not isinstance(state, list) or len(state) != len(self._rows) or not all(isinstance(r, dict) for r in state):
            raise ShapeError(f"the snapshot is no list of {len(self._rows)} environments; restore it where taken.")
        self._rows = list(state)

    def frames(self, env: int, /) -> np.ndarray:
        """(F, H, W, 3) uint8, the newest chunk of one environment."""
        return self._rows[env]["frames"]
