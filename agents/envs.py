"""Parallel episodes of one world: simulators or robots, dreams, and either of them under given actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from imagine.embodiment import Embodiment
from imagine.types import ImagineError, pack_instruction, unpack_instruction
from imagine.world.env import World


@dataclass(frozen=True)
class StepResult:
    """What one chunk of one episode came to.

    Attributes:
        success: the instruction has been carried out.
        done: the episode is over.
        reward: of this chunk.
        unbelievable: it was dreamt, and can no longer be believed.
        hallucination: normalised action units; None outside dreams.
        terms: what the judge's reward is made of; empty outside dreams.
        probability: of success, as the judge says; None outside dreams.
    """

    success: bool
    done: bool
    reward: float
    unbelievable: bool = False
    hallucination: float | None = None
    terms: dict[str, float] = field(default_factory=dict)
    probability: float | None = None


class ParallelEnvs(Protocol):
    """A few parallel episodes of one world; rows are numbers of environments, below ``num_envs``."""

    num_envs: int

    def reset(self, seeds: Sequence[int], instruction: str | None = None) -> dict[str, np.ndarray]:
        """Start one episode per seed (at most ``num_envs``); returns batched observations.

        Args:
            seeds: start seeds.
            instruction: in place of each start's own.
        """
        ...

    def step(self, rows: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[StepResult]]:
        """One chunk, (M, K, A) float32 in robot units, in some environments; observations and results of these."""
        ...

    def next_actions(self, rows: Sequence[int]) -> np.ndarray:
        """What these environments would do by themselves, (M, K, A) float32 in robot units.

        Raises:
            ImagineError: nobody but a policy acts here.
        """
        ...

    def canvas(self, rows: Sequence[int]) -> np.ndarray:
        """(M, H, W, 3) uint8, the newest frame of some environments."""
        ...

    def frames(self, row: int) -> np.ndarray:
        """(F, H, W, 3) uint8, the newest chunk of one environment."""
        ...


Expert = Callable[[Any], np.ndarray | None]
"""What a scripted expert, who may read an environment's true state, would do next: (K, A) float32, robot units."""


class SimEnvs:
    """Scalar Gymnasium environments of a robot, stepped in turn; see ``RobotPlugin.make_env``."""

    def __init__(
        self, make: Callable[[], Any], num_envs: int, body: Embodiment, *, expert: Expert | None = None
    ) -> None:
        """Make the environments.

        Args:
            make: makes one.
            num_envs: how many.
            body: how their views are tiled to a canvas.
            expert: acts where no policy does; see :data:`Expert`.
        """
        self.num_envs, self.body, self.expert = num_envs, body, expert
        self.envs = [make() for _ in range(num_envs)]
        self._seen: list[dict[str, np.ndarray]] = [{}] * num_envs
        self._frames: list[np.ndarray] = [np.zeros((0, 0, 0, 3), np.uint8)] * num_envs

    def reset(self, seeds: Sequence[int], instruction: str | None = None) -> dict[str, np.ndarray]:
        """See :class:`ParallelEnvs`."""
        options = {} if instruction is None else {"instruction": instruction}
        for row, seed in enumerate(seeds):
            self._seen[row] = self.envs[row].reset(seed=int(seed), options=options)[0]
        return self._observation(range(len(seeds)))

    def step(self, rows: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[StepResult]]:
        """See :class:`ParallelEnvs`."""
        results = []
        for row, action in zip(rows, actions, strict=True):
            self._seen[row], reward, terminated, truncated, info = self.envs[row].step(action)
            self._frames[row] = info["frames"]
            success = bool(info.get("is_success", terminated))
            results.append(StepResult(success, bool(terminated or truncated), float(reward)))
        return self._observation(rows), results

    def next_actions(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`ParallelEnvs`."""
        chunks = [None if self.expert is None else self.expert(self.envs[row]) for row in rows]
        if any(chunk is None for chunk in chunks):
            raise ImagineError("this robot has no scripted expert; give a policy, or the plug-in an expert.")
        return np.stack(chunks)  # type: ignore[arg-type]

    def canvas(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`ParallelEnvs`."""
        seen = self._observation(rows)
        return self.body.tile({view.name: seen[view.name] for view in self.body.views})

    def frames(self, row: int) -> np.ndarray:
        """See :class:`ParallelEnvs`."""
        return self._frames[row]

    def _observation(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        return {k: np.stack([self._seen[row][k] for row in rows]) for k in self._seen[rows[0]]}


class DreamEnvs:
    """Environments of a dream, without Gymnasium's interface; what is dreamt in those that are done is not looked at.

    Observations of a world that are one vector each (:class:`imagine.agents.steer.Steered`) are called ``state``.

    Attributes:
        horizon: chunks per episode at most.
    """

    def __init__(
        self,
        dream: World,
        num_envs: int,
        *,
        horizon: int = 8,
        break_off: bool = True,
        judged_by: Callable[[str, int], str | None] | None = None,
    ) -> None:
        """Take possession of a dream.

        Args:
            dream: imagines.
            num_envs: how many.
            horizon: chunks per episode at most.
            break_off: whether an episode that cannot be believed any more ends.
            judged_by: (an episode's instruction, start seed) to the one it is judged by instead, None for its own.
                The dream must be an :class:`imagine.world.dream.Dream`.
        """
        self.dream: Any = dream
        self.num_envs, self.horizon, self.break_off, self.judged_by = num_envs, horizon, break_off, judged_by
        dream.allocate(num_envs)

    def reset(self, seeds: Sequence[int], instruction: str | None = None) -> dict[str, np.ndarray]:
        """See :class:`ParallelEnvs`."""
        full = [int(s) for s in seeds] + [int(seeds[0])] * (self.num_envs - len(seeds))
        options = {} if instruction is None else {"instruction": instruction}
        info = self.dream.reset(np.arange(self.num_envs), full, options)
        self.chunks, self._packed = 0, np.stack([pack_instruction(text) for text in info["instruction"]])
        if self.judged_by is not None:
            own = [unpack_instruction(row) for row in self._packed]
            self.dream.judge_by([self.judged_by(*both) or both[0] for both in zip(own, full, strict=True)])
        return self._observation(range(len(seeds)))

    def step(self, rows: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[StepResult]]:
        """See :class:`ParallelEnvs`."""
        full = np.zeros((self.num_envs, *self.dream.single_action_space.shape), np.float32)
        full[list(rows)] = actions
        outcome = self.dream.step(full)
        self.chunks += 1
        results = []
        for row in rows:
            success, believable = bool(outcome.terminated[row]), bool(outcome.believable[row])
            done = success or (self.break_off and not believable) or self.chunks >= self.horizon
            terms = {k: float(v[row]) for k, v in outcome.info.get("reward_terms", {}).items()}
            hallucination = float(outcome.info["hallucination"][row]) if "hallucination" in outcome.info else None
            reward, chance = float(outcome.reward[row]), outcome.info.get("success_probability")
            probability = None if chance is None else float(chance[row])
            results.append(StepResult(success, done, reward, not believable, hallucination, terms, probability))
        return self._observation(rows), results

    def next_actions(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`ParallelEnvs`."""
        raise ImagineError("a dream has no scripted expert, who reads the true state; give a policy.")

    def canvas(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`ParallelEnvs`."""
        return self.dream.canvas.cpu().numpy()[list(rows)]

    def frames(self, row: int) -> np.ndarray:
        """See :class:`ParallelEnvs`."""
        return self.dream.frames(row)

    def _observation(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        seen = self.dream.observe()
        named = seen if isinstance(seen, dict) else {"state": seen, "instruction": self._packed}
        return {k: v[list(rows)] for k, v in named.items()}


class RecordedEnvs:
    """Environments, simulated or dreamt, in which every episode carries out given actions and is as long as they are.

    An episode ends before its last action where the environments end it, unless the ``whole`` of it is asked for.
    """

    def __init__(self, envs: ParallelEnvs, actions: Mapping[int, np.ndarray], *, whole: bool = False) -> None:
        """Act by a recording.

        Args:
            envs: where; their horizon is at least as long as the actions.
            actions: start seed to (T, K, A) float32 in robot units, T at least 1.
            whole: carry out all actions, also after a success or what cannot be believed.
        """
        self.envs, self.actions, self.whole, self.num_envs = envs, actions, whole, envs.num_envs

    def reset(self, seeds: Sequence[int], instruction: str | None = None) -> dict[str, np.ndarray]:
        """See :class:`ParallelEnvs`."""
        self._own, self._chunks = [self.actions[int(seed)] for seed in seeds], 0
        return self.envs.reset(seeds, instruction)

    def step(self, rows: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[StepResult]]:
        """See :class:`ParallelEnvs`."""
        seen, results = self.envs.step(rows, actions)
        self._chunks += 1
        over = [self._chunks >= len(self._own[row]) for row in rows]
        return seen, [
            replace(r, done=last or (r.done and not self.whole)) for r, last in zip(results, over, strict=True)
        ]

    def next_actions(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`ParallelEnvs`."""
        return np.stack([self._own[row][self._chunks] for row in rows])

    def canvas(self, rows: Sequence[int]) -> np.ndarray:
        """See :class:`ParallelEnvs`."""
        return self.envs.canvas(rows)

    def frames(self, row: int) -> np.ndarray:
        """See :class:`ParallelEnvs`."""
        return self.envs.frames(row)
