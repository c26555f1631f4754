"""JointPolicy: observation in, chunk of actions in robot units out. The same object drives the robot and the dream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imagine.model.batching import in_tiles
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel, as_observation
from imagine.questions import JOINT, POLICY
from imagine.sampler import sample
from imagine.types import Context, ShapeError, unpack_instruction


class JointPolicy:
    """Asks the joint model POLICY; it sees the newest frame alone, so the robot needs no history buffer.

    A checkpoint that answers JOINT alone, as DreamZero's released ones, is asked that: it dreams while it acts.

    Attributes:
        model: the joint model, possibly with a merged adapter.
        question: what it is asked.
        steps: denoising steps; each costs the action tokens only.
        temperature: scale of the initial noise; below 1 the policy is more decided, above 1 more varied.
    """

    def __init__(self, model: WorldActionModel, *, steps: int = 4, temperature: float = 1.0):
        self.model, self.steps, self.temperature = model, steps, temperature
        self.question = JOINT if JOINT in model.answers and POLICY not in model.answers else POLICY
        self._calls = 0

    def context(self, observation: dict[str, np.ndarray], instruction: Sequence[str] | None = None) -> Context:
        """Encode batched environment observations; ``instruction`` replaces what they carry.

        Raises:
            ShapeError: a view is missing or of another size than the embodiment says.
            UnknownWord: the model never heard a word of an instruction.
        """
        body = self.model.body
        missing = [k for k in (*(v.name for v in body.views), "proprio", "instruction") if k not in observation]
        if missing:
            raise ShapeError(f"observation has no {missing[0]!r}, got {sorted(observation)}; is it another embodiment?")
        canvas = body.tile({v.name: observation[v.name] for v in body.views})[:, None]
        told = [unpack_instruction(row) for row in observation["instruction"]] if instruction is None else instruction
        seen = as_observation(canvas, observation["proprio"][:, None])

        names: list[str] = []

        def encode(rows: Tensor) -> tuple[Tensor, ...]:
            context = self.model.encode(seen.index(rows), [told[i] for i in rows.tolist()]).named()
            names[:] = context
            return tuple(context.values())

        with torch.inference_mode():
            parts = in_tiles(encode, len(canvas))
        return Context(**dict(zip(names, parts, strict=True)))

    @torch.inference_mode()
    def act(self, observation: dict[str, np.ndarray], seeds: Sequence[int] | None = None) -> np.ndarray:
        """One chunk (B, K, A) float32 in robot units per lane; see :class:`imagine.types.Policy`."""
        return self.act_on(self.context(observation), seeds)

    @torch.inference_mode()
    def act_on(
        self, context: Context, seeds: Sequence[int] | None = None, cache: ContextCache | None = None
    ) -> np.ndarray:
        """As :meth:`act`, for a context that is at hand already."""
        if seeds is None:
            self._calls += 1
            seeds = [self._calls * 100_003 + i for i in range(len(context))]
        seeds = list(seeds)

        def answer(rows: Tensor) -> tuple[Tensor, ...]:
            read = None if cache is None else cache.index(rows)
            noise = [seeds[i] for i in rows.tolist()]
            how = {"steps": self.steps, "temperature": self.temperature}
            chunk = sample(self.model, self.question, context.index(rows), seeds=noise, cache=read, **how)  # type: ignore[arg-type]
            assert chunk.action is not None
            return (self.model.restore_action(chunk.action),)

        return in_tiles(answer, len(context))[0].cpu().numpy()

    @torch.inference_mode()
    def propose(self, context: Context, n: int, seeds: Sequence[int], cache: ContextCache | None = None) -> np.ndarray:
        """N candidate chunks per lane, (B, N, K, A); candidate 0 is what :meth:`act` would do with the same seed."""
        cache = (self.model.prefill(context) if cache is None else cache).repeat(n)
        many = [int(s) + 7_919 * k for s in seeds for k in range(n)]
        return self.act_on(context.repeat(n), many, cache).reshape(
            len(context), n, *self.model.chunk_shapes["action"][:1], self.model.body.action_dim
        )

    def reset(self, lanes: np.ndarray | None = None) -> None:
        """Nothing to forget: the policy keeps no history."""


class RandomPolicy:
    """Smooth random chunks within the embodiment's bounds: the floor of every comparison."""

    def __init__(self, low: np.ndarray, high: np.ndarray, actions: int):
        self.low, self.high, self.actions = low, high, actions

    def act(self, observation: dict[str, np.ndarray], seeds: Sequence[int] | None = None) -> np.ndarray:
        """(B, K, A) float32: a straight line from nothing to a random goal at half the bounds."""
        lanes = len(observation["proprio"])
        seeds = seeds if seeds is not None else range(lanes)
        goals = np.stack([np.random.default_rng(abs(int(s))).uniform(self.low, self.high) for s in seeds])
        ramp = np.linspace(0, 0.5, self.actions + 1)[1:, None]
        signed = self.low < 0
        chunk = np.where(signed, goals[:, None] * ramp, goals[:, None])
        return np.broadcast_to(chunk, (lanes, self.actions, len(self.low))).astype(np.float32)

    def reset(self, lanes: np.ndarray | None = None) -> None:
        """Nothing to forget."""
