"""Policies with a flaw: what an evaluator's estimates are held against must be spread from hopeless to perfect.

A flaw changes what any policy does in a way that real deployments know: noisy or late actuators, a miscalibrated frame,
a gripper wired the wrong way, a controller that now and then does nothing. Dream and robot get the very same chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from imagine.embodiment import Embodiment
from imagine.seeds import Stream, derive
from imagine.types import ImagineError, Policy


@dataclass(frozen=True)
class Flaw:
    """What is wrong with a policy; zero is nothing.

    Attributes:
        noise: standard deviation of where a chunk ends beside its goal, as a share of each action's range; drawn once
            per chunk and approached evenly, as an arm would.
        bias: likewise, but the same for a whole episode.
        delay: ticks by which every chunk begins late; what does not fit any more is not done.
        idle: chance that a chunk does nothing.
        grip: chance that, for one chunk, the grippers do the opposite.
    """

    noise: float = 0.0
    bias: float = 0.0
    delay: int = 0
    idle: float = 0.0
    grip: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Flaw:
        """Read ``noise=0.05+delay=6``.

        Raises:
            ImagineError: another name, no number, or a number out of range.
        """
        known, got = {f.name for f in fields(cls)}, dict[str, float]()
        for part in text.split("+"):
            name, _, value = part.partition("=")
            try:
                got[name] = int(value) if name == "delay" else float(value)
            except ValueError:
                got[name] = float("nan")
            most = 1.0 if name in ("idle", "grip") else np.inf
            if name not in known or not 0 <= got[name] <= most:
                raise ImagineError(f"flaw {part!r} is not known, expected NAME=NUMBER with {', '.join(sorted(known))}.")
        return cls(**got)  # type: ignore[arg-type]


class Flawed:
    """A ``Policy`` with a flaw. Its draws follow from its seeds and episodes alone, whatever else is in the batch."""

    def __init__(self, policy: Policy, flaw: Flaw, body: Embodiment):
        """``body`` says what a chunk's numbers mean: which are differences, which targets, which grippers."""
        self.policy, self.flaw, self.body = policy, flaw, body

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`.

        Raises:
            ImagineError: no seeds; a flaw's draws would not be repeatable.
        """
        if seeds is None:
            raise ImagineError("a flawed policy draws its flaws from seeds; got none.")
        chunk, flaw, body = self.policy.act(observation, seeds, episodes), self.flaw, self.body
        low, high, k = body.action_low, body.action_high, body.chunk_actions
        ramp = np.linspace(0, 1, k + 1)[1:, None]
        out, still = chunk.copy(), self._still(observation, chunk)
        for i, seed in enumerate(seeds):
            draw = np.random.default_rng(derive(seed, 0, Stream.FLAW))
            always = np.random.default_rng(derive(i if episodes is None else episodes[i], 1, Stream.FLAW))
            idle, grip = draw.uniform() < flaw.idle, draw.uniform() < flaw.grip
            off = flaw.noise * draw.normal(size=len(low)) + flaw.bias * always.normal(size=len(low))
            if flaw.delay:
                late = min(flaw.delay, k)
                out[i] = np.concatenate([still[i, :late], chunk[i]])[:k]
            if idle:
                out[i] = still[i]
            if grip:
                out[i] = np.where(body.is_gripper, low + high - out[i], out[i])
            out[i] += off * (high - low) * self._grows(ramp)
        return np.clip(out, low, high).astype(np.float32)

    def _still(self, observation: dict[str, np.ndarray], chunk: np.ndarray) -> np.ndarray:
        """(N, K, A): chunks that do nothing. What is not held by its present state keeps the chunk's first target:
        grippers, which would let go of what they press on, and what no proprioception tells of.
        """
        body = self.body
        told = np.array([at >= 0 for at, _ in body.commanded_in_proprio()])
        return np.where(body.is_difference | (told & ~body.is_gripper), body.hold(observation["proprio"]), chunk[:, :1])

    def _grows(self, ramp: np.ndarray) -> np.ndarray:
        """(K, A): how much of an error there is at each tick, so that all of it is there at the chunk's end."""
        modes = np.concatenate([np.full(a.size, a.mode, object) for a in self.body.action])
        return np.where(modes == "relative", ramp, np.where(modes == "delta", 1 / len(ramp), 1))

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """See :class:`imagine.types.Policy`."""
        self.policy.reset(episodes)
