"""Who learns in a dream, who rewards and who watches: options that ``finetune rl`` and ``demo`` share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Practice:
    """How a policy practises in the dream.

    Attributes:
        policy: what to improve: base, an adapter in the model folder, or the folder of one; by default base.
        judge: who rewards, as for imagine evaluate.
        watched_by: a second judge without a say, of another architecture; training stops when the two drift apart. By
            default another one beside the model's weights, if there is one; none for none.
        watch_starts: held-out starts of every look for exploitation.
        unguarded: reward whatever the judge calls a success, whatever the inverse error; halt and watch nothing.
        inverse_error_cost: reward lost per normalised action unit of inverse error, every chunk.
        starts: LeRobot dataset whose frames, at any moment of an episode, also serve as starts.
        midway: share of starts taken from there.
        num_envs: imagined episodes side by side.
    """

    policy: str = ""
    judge: str = ""
    watched_by: str = ""
    watch_starts: int = 32
    unguarded: bool = False
    inverse_error_cost: float = 0.1
    starts: str = ""
    midway: float = 0.25
    num_envs: int = 64
