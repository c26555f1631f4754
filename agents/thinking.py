"""Thinks before a robot moves: candidates go on from what is committed, are dreamt and judged, and the best is done."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf

import numpy as np
import torch

from imagine.agents.dream_scorer import DreamScorer
from imagine.agents.scorer import PlanningState, Scores, read
from imagine.policy.drive import Answer
from imagine.policy.policy import JointPolicy
from imagine.seeds import Stream, derive
from imagine.types import Context, unpack_instruction


class DreamThinker:
    """An ``imagine.policy.drive.Think`` of one episode.

    With one candidate it is the policy, and its answers say what their dreams are worth and what is to be seen next.
    With several, the best judged one is done; where not even the first was judged in time, or none could be judged, the
    policy's own first candidate, and the answer's note says so.
    """

    def __init__(
        self,
        policy: JointPolicy,
        scorer: DreamScorer,
        seed: int,
        *,
        candidates: int = 1,
        budget: float = inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin an episode.

        Args:
            policy: proposes.
            scorer: dreams and judges.
            seed: all noise is derived from it.
            candidates: how many are proposed.
            budget: seconds for a decision. Candidates are judged one by one where it is finite, else together; the next
                one is only started if the slowest one yet would still be in time.
            clock: seconds.
        """
        self.policy, self.scorer, self.seed = policy, scorer, seed
        self.candidates, self.budget, self.clock = candidates, budget, clock
        self._start: Context | None = None
        self._cost = 0.0

    @torch.inference_mode()
    def __call__(self, observation: dict[str, np.ndarray], committed: np.ndarray, number: int) -> Answer:
        """See :data:`imagine.policy.drive.Think`."""
        begin, policy = self.clock(), self.policy
        context = policy.context({name: value[None] for name, value in observation.items()})
        self._start = context if self._start is None else self._start
        cache, seed = read(policy.model, context), derive(self.seed, number, Stream.POLICY)
        prefix = committed[None] if len(committed) else None
        proposed = policy.propose(context, [seed], range(self.candidates), cache, prefix)
        told = (unpack_instruction(observation["instruction"]),)
        state = PlanningState(context, self._start, told, (seed,), read(self.scorer.model, context))
        scores = self._judged(state, torch.from_numpy(proposed), begin + self.budget)
        if scores is None:
            return Answer(proposed[0, 0], note="nothing was judged in time")
        best = int(scores.value[0].argmax())
        note = "" if torch.isfinite(scores.value[0, best]) else "nothing could be judged"
        if not note and scores.value.shape[1] < self.candidates:
            note = "not all candidates were judged in time"
        assert scores.video is not None
        frames = self.scorer.model.decode(scores.video[:, best], context.video)
        terms = {name: float(x[0, best]) for name, x in scores.terms.items()}
        return Answer(proposed[0, best], terms["hallucination"], terms["success"], frames[0].cpu().numpy(), note)

    def _judged(self, state: PlanningState, candidates: torch.Tensor, until: float) -> Scores | None:
        """Scores of the first candidates, of all that there was time for."""
        if until == inf:
            return self.scorer(state, candidates)
        parts: list[Scores] = []
        for k in range(candidates.shape[1]):
            begin = self.clock()
            if begin + self._cost > until:
                break
            parts.append(self.scorer(state, candidates[:, k : k + 1]))
            self._cost = max(self._cost, self.clock() - begin)
        return Scores.join(parts) if parts else None
