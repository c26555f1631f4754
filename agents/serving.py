"""What ``imagine serve`` answers beside actions: a judge of candidates that other policies propose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from imagine.agents.dream_scorer import DreamScorer
from imagine.agents.scorer import PlanningState, read
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.types import Policy, RewardModel, pack_instruction, unpack_instruction
from imagine.world.dream import DreamConfig


class DreamJudge:
    """A :class:`imagine.policy.scoring.Scorer` that imagines each candidate and has its end judged."""

    def __init__(self, model: WorldActionModel, judge: RewardModel, cfg: DreamConfig | None = None, seed: int = 0):
        self.score = DreamScorer(model, judge, cfg=cfg or DreamConfig())
        self.encoder, self.seed = JointPolicy(model), seed

    def __call__(
        self, observation: dict[str, np.ndarray], start: dict[str, np.ndarray]
    ) -> Callable[[np.ndarray], tuple[np.ndarray, dict[str, np.ndarray]]]:
        """See :class:`imagine.policy.scoring.Scorer`; all candidates dream under the same noise."""
        instructions = tuple(unpack_instruction(row) for row in observation["instruction"])
        now, first = self.encoder.context(observation), self.encoder.context(start)
        with torch.inference_mode():
            state = PlanningState(now, first, instructions, (self.seed,), read(self.encoder.model, now))

        def judge(candidates: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            scores = self.score(state, torch.from_numpy(candidates)[None])
            columns = {**scores.terms, "spread": scores.spread}
            return scores.value[0].cpu().numpy(), {k: v[0].cpu().numpy() for k, v in columns.items()}

        return judge


def warm_up(policy: Policy, scorer: DreamJudge | None, model: WorldActionModel) -> None:
    """Act and judge once on black pictures, so that no robot waits for a first time or finds the judge away."""
    body = model.body
    blank = {v.name: np.zeros((1, v.height, v.width, 3), np.uint8) for v in body.views}
    blank["proprio"] = model.proprio_mean[None].cpu().numpy()
    blank["instruction"] = pack_instruction(model.text.cfg.words[0])[None]
    chunk = policy.act(blank, [0])
    if scorer is not None:
        scorer(blank, blank)(body.check_action(chunk))
