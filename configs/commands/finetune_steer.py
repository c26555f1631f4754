"""``imagine finetune steer``: a stock RL library's agent, trained on the dream around a frozen policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from imagine.configs.commands.worlds import OfRobot


@dataclass(frozen=True, kw_only=True)
class Args(OfRobot):
    """Train a stock library's agent to steer a policy in the dream, then prove it on the simulator.

    By default it practises what is in front of the robot: a few scenes, dreamt of again and again with other noise and
    other draws of the policy. No real episode is spent on learning.

    Attributes:
        library: sb3-ppo, sb3-sac-noise (Stable-Baselines3) or rllib-ppo (Ray).
        adapter: the policy to start from: base, an adapter in the model folder, or the folder of an adapter or model;
            it stays as is. By default base.
        how: what the agent sets: noise (that the policy starts from), residual (added to its chunk) or chunk.
        slow: cosines over a chunk that it sets per action dimension.
        sees: what the agent observes: latents, or nothing (one answer for all).
        judge: who says which dreams succeed, as for imagine evaluate. The agent observes latents whoever judges;
            latent, heads on them, decodes no frame and is a little faster.
        shaping: while it learns, pay for judged progress too, as a potential, which changes returns but not which
            policy is best; tests pay for success alone.
        scenes: starts that it practises on and is tested on, with other noise; 0: every episode begins elsewhere, and
            tests are held-out starts.
        horizon: chunks per episode.
        num_envs: imagined episodes side by side.
        steps: environment steps of all environments together.
        test_episodes: imagined ones, before and after.
        test_seed: first start seed of them, and the first scene.
        sim_episodes: on the robot's simulator, before and after; 0 is none, which is the default where there is no
            simulator, and else 64.
        seed: of the agent, and of its dreams.
        runners: processes that imagine; rllib alone.
        nodes: machines; rllib alone.
    """

    library: Annotated[str, tyro.conf.arg(name="with")] = "sb3-ppo"
    adapter: str = ""
    how: str = "noise"
    slow: int = 1
    sees: str = "latents"
    judge: str = ""
    shaping: bool = False
    scenes: int = 4
    horizon: int = 4
    num_envs: int = 16
    steps: int = 4096
    test_episodes: int = 64
    test_seed: int = 900_000
    sim_episodes: int | None = None
    seed: int = 800_000
    runners: int = 1
    nodes: int = 1


def run(args: Args) -> dict[str, Any]:
    """Learn; the agent is written to the run folder, with ``metrics.json`` and TensorBoard's files.

    Raises:
        ImagineError: an option is out of range, or the policy or model cannot be had.
    """
    from imagine.configs.learning import learn

    return learn(args)
