"""JointPolicy: observation in, chunk of actions in robot units out. The same object drives the robot and the dream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imagine.model.batching import TILE, in_tiles
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel, as_observation
from imagine.questions import JOINT, POLICY
from imagine.sampler import Inpaint, euler, sample
from imagine.seeds import FreshSeeds, Stream, derive
from imagine.types import Chunk, Context, ShapeError, unpack_instruction


def candidate_seed(seed: int, k: int) -> int:
    """The seed of candidate ``k`` of a decision; candidate 0 is what the policy does without any other."""
    return seed if k == 0 else derive(seed, k, Stream.CANDIDATE)


class JointPolicy:
    """Asks the joint model POLICY; it sees the newest frame alone, so the robot needs no history buffer.

    A checkpoint that answers JOINT alone, as DreamZero's released ones, is asked that: it dreams while it acts.

    Attributes:
        model: the joint model, possibly with a merged adapter.
        question: what it is asked.
        steps: denoising steps; each costs the action tokens only.
        temperature: scale of the initial noise; below 1 the policy is more decided, above 1 more varied.
        tile: rows per network call, see :mod:`imagine.model.batching`; 1 is fastest for one robot.
        takes_committed: :meth:`act` takes the beginning of its answer.
    """

    takes_committed = True

    def __init__(self, model: WorldActionModel, *, steps: int = 4, temperature: float = 1.0, tile: int = TILE):
        self.model, self.steps, self.temperature, self.tile = model, steps, temperature, tile
        self.question = JOINT if JOINT in model.answers and POLICY not in model.answers else POLICY
        self._fresh = FreshSeeds()

    def context(self, observation: dict[str, np.ndarray], instruction: Sequence[str] | None = None) -> Context:
        """Encode batched environment observations; ``instruction`` replaces what they carry.

        Raises:
            ShapeError: a view is missing or of another size than the embodiment says.
            UnknownWord: the model never saw a word of an instruction.
        """
        body = self.model.body
        missing = [k for k in (*(v.name for v in body.views), "proprio", "instruction") if k not in observation]
        if missing:
            raise ShapeError(f"observation has no {missing[0]!r}, got {sorted(observation)}; is it another embodiment?")
        canvas = body.tile({v.name: observation[v.name] for v in body.views})[:, None]
        texts = [unpack_instruction(row) for row in observation["instruction"]] if instruction is None else instruction
        seen = as_observation(canvas, observation["proprio"][:, None])

        names: list[str] = []

        def encode(rows: Tensor) -> tuple[Tensor, ...]:
            context = self.model.encode(seen.index(rows), [texts[i] for i in rows.tolist()]).named()
            names[:] = context
            return tuple(context.values())

        with torch.inference_mode():
            parts = in_tiles(encode, len(canvas), self.tile)
        return Context(**dict(zip(names, parts, strict=True)))

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
        committed: np.ndarray | None = None,
    ) -> np.ndarray:
        """One chunk (B, K, A) float32 in robot units per row; see :class:`imagine.types.Policy`.

        Args:
            observation: as there.
            seeds: as there.
            episodes: as there.
            committed: (B, D, A) robot units, D at most K: what will be done first; the rest goes on from it.
        """
        return self.act_on(self.context(observation), seeds, committed=committed)

    @torch.inference_mode()
    def act_on(
        self,
        context: Context,
        seeds: Sequence[int] | None = None,
        cache: ContextCache | None = None,
        noise: Tensor | None = None,
        committed: np.ndarray | None = None,
    ) -> np.ndarray:
        """As :meth:`act`, for a context that is at hand already.

        Args:
            context: B rows.
            seeds: one per row; all noise that is not given is derived from them. None: fresh noise.
            cache: ``model.prefill(context)``, if at hand.
            noise: (B, K, A) what the action starts from, already scaled by the temperature.
            committed: see :meth:`act`.
        """
        known = None if committed is None else self._known(committed)
        each = self._fresh(len(context)) if seeds is None else list(seeds)

        def answer(rows: Tensor) -> tuple[Tensor, ...]:
            chunk = sample(
                self.model, self.question, context.index(rows), steps=self.steps, temperature=self.temperature,
                seeds=[each[i] for i in rows.tolist()], cache=None if cache is None else cache.index(rows),
                noise=None if noise is None else Chunk(action=noise[rows]),
                move=euler if known is None else {"action": Inpaint(known[rows]), "video": euler, "proprio": euler},
            )  # fmt: skip
            assert chunk.action is not None
            return (self.model.restore_action(chunk.action),)

        return in_tiles(answer, len(context), self.tile)[0].cpu().numpy()

    def _known(self, committed: np.ndarray) -> Tensor:
        """(B, D, A) robot units, normalised.

        Raises:
            ShapeError: it is no beginning of a chunk.
        """
        most, width = self.model.body.chunk_actions, self.model.body.action_dim
        if committed.ndim != 3 or committed.shape[1] > most or committed.shape[2] != width:
            raise ShapeError(f"committed has shape {committed.shape}, expected (rows, at most {most}, {width}).")
        return self.model.normalise_action(torch.as_tensor(committed, dtype=torch.float32, device=self.model.device))

    @torch.inference_mode()
    def propose(
        self,
        context: Context,
        seeds: Sequence[int],
        candidates: Sequence[int],
        cache: ContextCache | None = None,
        committed: np.ndarray | None = None,
    ) -> np.ndarray:
        """Some candidate chunks per row.

        Args:
            context: B rows.
            seeds: one per row, of the decision.
            candidates: numbers of n candidates; number 0 is what :meth:`act` does with the same seed.
            cache: ``model.prefill(context)``, if at hand.
            committed: see :meth:`act`; the same for all candidates of a row.

        Returns:
            (B, n, K, A) float32 in robot units.
        """
        n = len(candidates)
        known = None if cache is None else cache.repeat(n)
        each = [candidate_seed(int(s), k) for s in seeds for k in candidates]
        prefix = None if committed is None else np.repeat(committed, n, 0)
        chunks = self.act_on(context.repeat(n), each, known, committed=prefix)
        return chunks.reshape(len(context), n, *chunks.shape[1:])

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Nothing to forget: the policy keeps no history."""


class RandomPolicy:
    """Smooth random chunks within the embodiment's bounds: the floor of every comparison."""

    def __init__(self, low: np.ndarray, high: np.ndarray, actions: int):
        self.low, self.high, self.actions = low, high, actions
        self._fresh = FreshSeeds()

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(B, K, A) float32: a straight line from nothing to a random goal at half the bounds."""
        n = len(observation["proprio"])
        each = [derive(s, Stream.ACTION) for s in (self._fresh(n) if seeds is None else seeds)]
        goals = np.stack([np.random.default_rng(s).uniform(self.low, self.high) for s in each])
        ramp = np.linspace(0, 0.5, self.actions + 1)[1:, None]
        chunk = np.where(self.low < 0, goals[:, None] * ramp, goals[:, None])
        return np.broadcast_to(chunk, (n, self.actions, len(self.low))).astype(np.float32)

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Nothing to forget."""
