"""The same actions in a dream as on the simulator, from the simulator's first frame; and what a dream must beat.

Controls: ``frozen`` shows the first picture for ever, ``shuffled`` dreams under another rollout's actions,
``without_tokens`` dreams with a decoder that is given nothing by the transformer, and ``without_memory`` forgets before
every chunk what a model with memory keeps of the scene beyond its newest frame. ``codec`` shows the true frames as
well as the model's codec can; no dream is better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from imagine.agents.labelled_rollouts import NoJudge
from imagine.agents.true_rollouts import TrueRollouts
from imagine.model.decoder import without_tokens
from imagine.model.model import WorldActionModel
from imagine.types import RewardModel
from imagine.world.dream import Dream, DreamConfig
from imagine.world.starts import Start

TOGETHER = 16
"""Rollouts dreamt and compared at a time; memory is bounded by it."""
PICTURES = ("dream", "codec", "frozen", "shuffled", "without_tokens", "without_memory")


class FirstFrames:
    """Starts are the first frames of rollouts; a seed is the number of one."""

    def __init__(self, rollouts: TrueRollouts) -> None:
        self.rollouts = rollouts

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """See :class:`imagine.world.starts.Starts`."""
        r = self.rollouts
        return Start(r.frames[seed, 0], r.proprio[seed, 0], str(r.instructions[seed]), f"seed-{r.seeds[seed]}")


class SameActions:
    """Dreams of one model under the actions of rollouts.

    Attributes:
        kinds: the pictures that there are, out of :data:`PICTURES`.
    """

    def __init__(self, model: WorldActionModel, rollouts: TrueRollouts, cfg: DreamConfig) -> None:
        """Say who dreams of what; ``cfg`` says how, and its check of the dream is left out."""
        self.model, self.rollouts = model, rollouts
        self.cfg = cfg.model_copy(update={"inverse_steps": 0, "inverse_error_cost": 0.0})
        decoder = model.cfg.dit.decoder
        left_out = {"without_tokens": not decoder.blocks, "without_memory": not decoder.memory}
        self.kinds = tuple(k for k in PICTURES if not left_out.get(k))
        self.shuffled = np.roll(np.arange(len(rollouts)), max(1, len(rollouts) // 2))

    def pictures(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """(M, T, H, W, 3) uint8 of some rollouts, the first of them true."""
        frames = self.rollouts.frames[rows]
        if kind == "frozen":
            return np.repeat(frames[:, :1], frames.shape[1], 1)
        if kind == "codec":
            return np.stack([self.codec(clip) for clip in frames])
        actions = self.rollouts.actions[self.shuffled[rows] if kind == "shuffled" else rows]
        ablated: AbstractContextManager[None] = nullcontext()
        if kind == "without_tokens":
            ablated = without_tokens(self.model)
        with ablated:
            chunks = []
            for dream, _ in self.dream(rows, actions):
                chunks.append(np.stack([dream.frames(i) for i in range(len(rows))]))
                if kind == "without_memory":
                    dream.memory = None  # it begins anew with the newest frame
        return np.concatenate([frames[:, :1], *chunks], 1)

    def dream(
        self, rows: np.ndarray, actions: np.ndarray, judge: RewardModel | None = None
    ) -> Iterator[tuple[Dream, Any]]:
        """A dream that begins at some rollouts, after each chunk of ``actions`` (M, C, K, A), and what it came to."""
        dream = Dream(self.model, judge or NoJudge(), FirstFrames(self.rollouts), self.cfg)
        dream.allocate(len(rows))
        dream.reset(np.arange(len(rows)), [int(i) for i in rows], {})
        for c in range(actions.shape[1]):
            outcome = dream.step(actions[:, c])
            yield dream, outcome

    @torch.inference_mode()
    def codec(self, clip: np.ndarray) -> np.ndarray:
        """(T, H, W, 3) uint8 frames, encoded and decoded."""
        return self.model.decode_frames(self.latents(clip[None]))[0].cpu().numpy()

    @torch.inference_mode()
    def latents(self, clips: np.ndarray) -> torch.Tensor:
        """(M, T, C, h, w) of frames (M, T, H, W, 3) uint8; of a video codec fewer than there are frames."""
        video, model = torch.from_numpy(np.ascontiguousarray(clips)).to(self.model.device), self.model
        if model.temporal > 1:
            return model.codec.encode(video)
        return torch.stack([model.codec.encode(clip) for clip in video])
