"""What an environment asks of the world behind it, and when it ends an episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from pydantic import BaseModel, ConfigDict, Field

from imagine.types import ImagineError, ShapeError


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


def is_seed(seed: Any) -> bool:
    """Whether an environment takes this seed: a whole number in [0, 2^63), or None for the next episode."""
    return seed is None or (isinstance(seed, int | np.integer) and 0 <= int(seed) < 2**63)


def checked_options(options: Any) -> dict[str, Any]:
    """A copy of a reset's options, {} for None; which of them are known is for the world to say.

    Raises:
        ShapeError: they are no mapping.
    """
    if options is not None and not isinstance(options, Mapping):
        raise ShapeError(f"reset options are {options!r}, expected a dict, as {{'instruction': text}}, or None.")
    return dict(options or {})


def next_episode(
    last: tuple[int, int] | None, first: int | None, generator: np.random.Generator
) -> tuple[int, int]:  # fmt: skip
    """First seed and number of the episode that a reset begins.

    Args:
        last: those of the episode before; None if there was none.
        first: the seed of the reset; None goes on to the next episode.
        generator: draws the seed of an environment that never had one.
    """
    if first is not None or last is None:
        return (int(generator.integers(2**31)) if first is None else int(first)), 0
    return last[0], last[1] + 1


def as_numbers(actions: Any, want: tuple[int, ...] | None) -> np.ndarray:
    """Actions as float32 of a shape.

    Raises:
        ShapeError: they are no numbers, or of another shape.
    """
    try:
        array = np.asarray(actions, np.float32)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"actions are no array of numbers ({error}), expected float32 {want}.") from None
    if array.shape != want:
        raise ShapeError(f"actions have shape {array.shape}, expected {want}; give one chunk per environment.")
    return array


def require_reset(what: str, was_reset: bool, closed: bool) -> None:
    """Refuse a call to an environment that is closed, or that was never reset.

    Raises:
        ClosedEnvironmentError: it is closed.
        ResetNeeded: it never ``was_reset``.
    """
    if closed:
        raise gym.error.ClosedEnvironmentError("this environment is closed; build a new one.")
    if not was_reset:
        raise gym.error.ResetNeeded(f"{what} was called before reset; call reset first.")


def require_going(over: np.ndarray) -> None:
    """Refuse a step where episodes are ``over``, (N,) bool.

    Raises:
        ResetNeeded: some are.
    """
    if over.any():
        envs = np.flatnonzero(over).tolist()
        raise gym.error.ResetNeeded(f"environments {envs} are over; reset them first, some by options['reset_mask'].")


def with_horizon(spec: EnvSpec | None, horizon: int) -> EnvSpec | None:
    """A spec that says after how many steps (chunks) episodes are truncated, as clients look it up there."""
    return None if spec is None else replace(spec, max_episode_steps=horizon)


def one_each(instruction: Any, n: int) -> list[str | None]:
    """A reset's instruction as one text for each of ``n`` environments; None where the start's own is to be followed.

    Raises:
        ImagineError: it is something else, or empty.
    """
    alone = instruction is None or isinstance(instruction, str)
    each = [instruction] * n if alone else list(instruction) if isinstance(instruction, Sequence | np.ndarray) else []
    if len(each) != n or not all(text is None or (isinstance(text, str) and text.strip()) for text in each):
        raise ImagineError(f"instruction is {instruction!r}, expected a text, or one for each of {n} environments.")
    return each
