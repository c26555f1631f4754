"""What an environment asks of the world behind it, and when it ends an episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from pydantic import BaseModel, ConfigDict, Field


@dataclass(slots=True)
class Outcome:
    """What a chunk led to in each of N environments; the arrays are handed on, so a world gives fresh ones."""

    reward: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool, the instruction is judged to have been carried out
    believable: np.ndarray  # (N,) bool, False once the imagined video no longer follows the actions
    info: dict[str, Any]  # arrays of length N, or dicts of them


@runtime_checkable
class World(Protocol):
    """Imagines N environments, one chunk at a time."""

    single_action_space: gym.spaces.Box
    metadata: dict[str, Any]

    @property  # so that a world may say which kind of space it is
    def single_observation_space(self) -> gym.Space[Any]:
        """Of one environment."""

    def allocate(self, num_envs: int) -> None:
        """Make room for this many environments; called once, before anything else."""

    def reset(self, envs: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any], /) -> dict[str, Any]:
        """Begin an episode in (M,) int environments, a function of seed and options alone; returns info of length M.

        If it raises, nothing has changed.
        """

    def step(self, actions: np.ndarray) -> Outcome:
        """Imagine one chunk in all environments from (N, *action shape) finite float32, which is the caller's."""

    def observe(self) -> Any:
        """The newest observation of all environments, batched; no later call changes it."""

    def snapshot(self) -> Any:
        """Everything that the future depends on; no later call changes it."""

    def restore(self, state: Any) -> None:
        """Go back to a snapshot. If it raises, nothing has changed."""

    def frames(self, env: int, /) -> np.ndarray:
        """(F, H, W, 3) uint8 RGB, the newest chunk of one environment, newest frame last."""


class EnvConfig(BaseModel):
    """When an imagined episode is cut short."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizon: Annotated[int, Field(gt=0)] = 8  # chunks
    truncate_unbelievable: bool = True  # as soon as the dream can no longer be believed
    min_chunks: Annotated[int, Field(gt=0)] = 1  # but not before so many; what follows until then earns nothing


@dataclass(frozen=True)
class EnvState:
    """A moment of a dream, made by ``snapshot``."""

    world: Any
    episodes: tuple[tuple[int, int] | None, ...]  # per environment: first seed, number of the episode
    elapsed: np.ndarray  # (N,) int64, chunks
    over: np.ndarray | None  # (N,) bool, environments that wait for a reset; None when there are none
    lost: np.ndarray | None  # (N,) bool, unbelievable episodes that are younger than ``min_chunks``; None likewise
    generator: dict[str, Any]  # state of np_random


def episode_seed(first: int, number: int) -> int:
    """The seed, in [0, 2^63), of episode ``number`` of an environment whose episode 0 has seed ``first``."""
    if number == 0:
        return first
    return int(np.random.SeedSequence(first, spawn_key=(number,)).generate_state(1, np.uint64)[0] >> 1)
