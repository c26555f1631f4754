"""Imagined rollouts that cannot have succeeded, for measuring a judge: hands that stand still, shuffled chunks."""

from __future__ import annotations

import numpy as np
import torch

from imagine.agents.labelled_rollouts import RolloutMaker
from imagine.labels import LabelledRollouts


def control_rollouts(maker: RolloutMaker, rollouts: LabelledRollouts, shuffled: np.ndarray) -> LabelledRollouts:
    """Dreams of hands that stand still, and of ``shuffled`` chunks of the rollouts (N, T, K, A), without those that
    succeeded on the simulator.
    """
    seeds, (_, chunks) = rollouts.seeds.tolist(), rollouts.done.shape
    start = maker.model.restore_proprio(torch.from_numpy(rollouts.proprio[:, 0])).numpy()
    still = np.repeat(maker.model.body.hold(start)[:, None], chunks, 1)
    made = LabelledRollouts.cat([maker.under(seeds, still, "still"), maker.under(seeds, shuffled, "shuffled")])
    return made.pick(np.flatnonzero(~made.done.any(1)))
