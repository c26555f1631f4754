"""Runs a policy in lanes, imagined or real, one episode per seed, and keeps what happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from imagine.types import ImagineError, Policy, unpack_instruction

Tell = Callable[[int, int], None]
"""Called with (episodes done, episodes)."""


@dataclass
class EpisodeRecord:
    """One episode.

    Attributes:
        seed: start seed; the same seed is the same start in every world.
        instruction: what the policy was told.
        success: judged by the world's own judge: the truth on the robot, the reward model in a dream.
        unbelievable: a dream that broke off because it could no longer be believed.
        hallucination: per chunk, normalised action units; empty on the robot.
        rewards: per chunk; on the robot 1 where the task was done.
        terms: per chunk, what the judge's reward is made of; empty on the robot.
        observations: per chunk, the observation the policy acted on, without batch axis.
        actions: per chunk, (K, A) float32, robot units.
        frames: (T, H, W, 3) uint8, first frame included; empty unless filming was asked for.
    """

    seed: int
    instruction: str
    success: bool = False
    unbelievable: bool = False
    hallucination: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terms: list[dict[str, float]] = field(default_factory=list)
    observations: list[dict[str, np.ndarray]] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    frames: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0, 3), np.uint8))


class Lanes(Protocol):
    """A few parallel episodes of one world."""

    num_lanes: int

    def reset(self, seeds: Sequence[int], instruction: str | None) -> dict[str, np.ndarray]:
        """Start one episode per seed (at most ``num_lanes``); returns batched observations."""
        ...

    def step(self, lanes: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """One chunk in some lanes; observations and per-lane {success, done, reward, frames}.

        A dream adds {unbelievable, hallucination, terms}.
        """
        ...


class RealLanes:
    """Scalar Gymnasium environments of a robot, stepped in turn."""

    def __init__(self, make: Callable[[], Any], num_lanes: int):
        self.num_lanes = num_lanes
        self.envs = [make() for _ in range(num_lanes)]

    def reset(self, seeds: Sequence[int], instruction: str | None) -> dict[str, np.ndarray]:
        """See :class:`Lanes`."""
        options = {} if instruction is None else {"instruction": instruction}
        return _stack([env.reset(seed=int(s), options=options)[0] for env, s in zip(self.envs, seeds, strict=False)])

    def step(self, lanes: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """See :class:`Lanes`."""
        seen, told = [], []
        for lane, action in zip(lanes, actions, strict=True):
            obs, reward, terminated, truncated, info = self.envs[lane].step(action)
            seen.append(obs)
            done = terminated or truncated
            told.append({"success": terminated, "done": done, "reward": reward, "frames": info["frames"]})
        return _stack(seen), told


class DreamLanes:
    """Lanes of a dream, without the Gymnasium face; lanes that are done dream on unwatched."""

    def __init__(
        self, dream: Any, num_lanes: int, *, horizon: int = 8, film: bool = False, break_off: bool = True
    ) -> None:
        """Take possession of a :class:`imagine.world.dream.Dream`; ``break_off`` ends what cannot be believed."""
        self.dream, self.num_lanes, self.horizon, self.film = dream, num_lanes, horizon, film
        self.break_off = break_off
        dream.allocate(num_lanes)

    def reset(self, seeds: Sequence[int], instruction: str | None) -> dict[str, np.ndarray]:
        """See :class:`Lanes`."""
        full = [int(s) for s in seeds] + [int(seeds[0])] * (self.num_lanes - len(seeds))
        self.dream.reset(np.arange(self.num_lanes), full, {} if instruction is None else {"instruction": instruction})
        self.chunks = 0
        return {k: v[: len(seeds)] for k, v in self.dream.observe().items()}

    def step(self, lanes: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """See :class:`Lanes`."""
        full = np.zeros((self.num_lanes, *self.dream.single_action_space.shape), np.float32)
        full[list(lanes)] = actions
        outcome = self.dream.step(full)
        self.chunks += 1
        told = [
            {
                "success": bool(outcome.terminated[i]),
                "unbelievable": not outcome.believable[i],
                "done": bool(
                    outcome.terminated[i]
                    or (self.break_off and not outcome.believable[i])
                    or self.chunks >= self.horizon
                ),
                "reward": float(outcome.reward[i]),
                "hallucination": float(outcome.info["hallucination"][i]),
                "terms": {k: float(v[i]) for k, v in outcome.info["reward_terms"].items()},
                "frames": self.dream.frames(i) if self.film else None,
            }
            for i in lanes
        ]
        return {k: v[list(lanes)] for k, v in self.dream.observe().items()}, told


def rollout(
    lanes: Lanes,
    policy: Policy,
    seeds: Sequence[int],
    *,
    policy_seed: int | Sequence[int] = 0,
    instruction: str | None = None,
    film: bool = False,
    canvas: Callable[[dict[str, np.ndarray]], np.ndarray] | None = None,
    keep: bool = False,
    tell: Tell | None = None,
) -> list[EpisodeRecord]:
    """Run one episode per seed, ``lanes.num_lanes`` at a time.

    Args:
        lanes: the world.
        policy: acts on batches of observations; its noise depends on (policy_seed, episode seed, chunk) alone.
        seeds: start seeds.
        policy_seed: another one gives other draws of the same policy; or one per episode, so that several episodes from
            one seed differ in what the policy draws and in nothing else.
        instruction: told to the policy instead of the start's own.
        film: keep every frame; needs ``canvas`` to turn an observation into its first frame.
        canvas: batched observations to (B, H, W, 3) uint8.
        keep: keep observations and actions, for learning.
        tell: progress.

    Raises:
        ImagineError: there are no seeds.
    """
    if not len(seeds):
        raise ImagineError("asked for 0 episodes, expected at least 1.")
    draws = [policy_seed] * len(seeds) if isinstance(policy_seed, int) else [int(s) for s in policy_seed]
    records: list[EpisodeRecord] = []
    for begin in range(0, len(seeds), lanes.num_lanes):
        own = slice(begin, begin + lanes.num_lanes)
        group = [int(s) for s in seeds[own]]
        records += _group(lanes, policy, group, draws[own], instruction, canvas if film else None, keep)
        if tell is not None:
            tell(len(records), len(seeds))
    return records


def _group(
    lanes: Lanes,
    policy: Policy,
    seeds: list[int],
    draws: list[int],
    instruction: str | None,
    canvas: Callable[[dict[str, np.ndarray]], np.ndarray] | None,
    keep: bool,
) -> list[EpisodeRecord]:
    obs = lanes.reset(seeds, instruction)
    records = [EpisodeRecord(s, unpack_instruction(i)) for s, i in zip(seeds, obs["instruction"], strict=True)]
    film = [[f[None]] for f in canvas(obs)] if canvas is not None else [[] for _ in seeds]
    policy.reset(None)
    active = list(range(len(seeds)))
    chunk = 0
    while active:
        noise = [(draws[i] * 1_000_003 + seeds[i]) * 1_009 + chunk for i in active]
        actions = policy.act(obs, noise)
        if keep:
            for row, i in enumerate(active):
                records[i].observations.append({k: v[row] for k, v in obs.items()})
                records[i].actions.append(actions[row])
        obs, told = lanes.step(active, actions)
        going = []
        for row, i in enumerate(active):
            records[i].success |= told[row]["success"]
            records[i].unbelievable |= told[row].get("unbelievable", False)
            records[i].rewards.append(told[row]["reward"])
            if "hallucination" in told[row]:
                records[i].hallucination.append(told[row]["hallucination"])
                records[i].terms.append(told[row]["terms"])
            if canvas is not None:
                film[i].append(told[row]["frames"])
            if not told[row]["done"]:
                going.append(row)
        obs = {k: v[going] for k, v in obs.items()}
        active, chunk = [active[r] for r in going], chunk + 1
    for record, reel in zip(records, film, strict=True):
        if reel:
            record.frames = np.concatenate(reel)
    return records


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {k: np.stack([r[k] for r in rows]) for k in rows[0]}
