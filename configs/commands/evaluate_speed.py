"""``imagine evaluate speed``: chunks per second of the dream, and milliseconds per policy chunk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from imagine.configs.commands.common import console
from imagine.configs.commands.worlds import OfRobot
from imagine.configs.runfolder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Args(OfRobot):
    """Time the model, the environment and the policy on this machine.

    Attributes:
        repeats: timed repetitions; medians are reported.
    """

    repeats: int = 7


def run(args: Args) -> dict[str, Any]:
    """Time everything side by side in one process."""
    import torch

    from imagine.configs import build
    from imagine.timing import Clock, median_seconds
    from imagine.world.env import EnvConfig, WorldModelVectorEnv

    loaded = args.load()
    model = loaded.model
    answer: dict[str, Any] = {"env_steps_per_s": {}, "network_share": {}}
    for n in (1, 8, 32):
        console.print(f"{n} environments")
        env = WorldModelVectorEnv(build.dream(loaded), n, cfg=EnvConfig(horizon=10**6))
        env.reset(seed=0)
        judge = getattr(getattr(getattr(env.world, "judge", None), "judge", None), "backend", None)
        actions = np.zeros((n, *(env.single_action_space.shape or ())), np.float32)
        with Clock(model, judge) as clock:
            seconds = median_seconds(partial(env.step, actions), args.repeats, clock)
        answer["env_steps_per_s"][str(n)] = round(n / seconds, 2)
        answer["network_share"][str(n)] = round(clock.share, 3)
    from imagine.policy.policy import JointPolicy

    observation = {k: v[:1] for k, v in env.world.observe().items()}
    answer["chunk_ms"] = {}
    for steps in (1, 4):
        act = partial(JointPolicy(model, steps=steps).act, observation, [0])
        answer["chunk_ms"][str(steps)] = round(1000 * median_seconds(act, args.repeats), 2)
    answer["threads"] = torch.get_num_threads()
    RunFolder.of("evaluate-speed", args).save_metrics(answer)
    return answer
