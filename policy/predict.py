"""Policies of other libraries: whatever has ``predict(observation, deterministic=...)``, as agents of SB3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from imagine.embodiment import Embodiment


@runtime_checkable
class Predicts(Protocol):
    """What Stable-Baselines3 calls a model, as far as it acts."""

    def predict(self, observation: dict[str, np.ndarray], *, deterministic: bool = False) -> object:
        """Batched observations to (B, K, A) or (B, K A) actions in robot units, alone or as the first of a tuple."""
        ...


class PredictPolicy:
    """A ``Policy`` around an object with ``predict``; it acts deterministically and remembers nothing."""

    def __init__(self, agent: Predicts, body: Embodiment) -> None:
        """``agent`` acts; ``body`` says how long its chunks are."""
        self.agent, self.body = agent, body

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`.

        Raises:
            ShapeError: it answers with anything but a chunk per row, or out of bounds.
        """
        answer = self.agent.predict(observation, deterministic=True)
        actions = np.asarray(answer[0] if isinstance(answer, tuple) else answer, np.float32)
        chunk = (self.body.chunk_actions, self.body.action_dim)
        if actions.size == len(observation["proprio"]) * chunk[0] * chunk[1]:
            actions = actions.reshape(-1, *chunk)
        return self.body.check_action(actions)

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Nothing to forget."""
