"""Scores somebody's candidate chunks within a deadline: a verdict that comes too late is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from math import inf
from typing import Any, Protocol

import numpy as np

Verdict = tuple[np.ndarray, Mapping[str, np.ndarray]]
"""Values (n,), higher is better, -inf or NaN where the judge could not tell; and what they are made of, (n,) each."""


class Scorer(Protocol):
    """Looks where a robot is; what it returns scores what the robot might do."""

    def __call__(
        self, observation: dict[str, np.ndarray], start: dict[str, np.ndarray]
    ) -> Callable[[np.ndarray], Verdict]:
        """Look, once per request.

        Args:
            observation: a batch of one, as ``imagine.world.spaces.observation_space`` describes.
            start: the same of when the episode began; progress is measured from there.

        Returns:
            A function of candidates (n, K, A) float32, robot units, to their verdict.
        """
        ...


class TimedScorer:
    """Scores slice by slice, and stops where the next slice would end too late.

    Every call of the scorer runs on ``executor``, so that others get their turn between two slices.
    A call that has started and takes too long is no longer waited for; cancelled, no further one is made.
    """

    def __init__(self, scorer: Scorer, executor: Executor, *, slice_size: int, clock: Callable[[], float]):
        self.scorer, self.executor, self.slice_size, self.clock = scorer, executor, slice_size, clock
        self._cost = 0.0  # seconds that a slice took when last measured; at first it is worth a try

    async def __call__(
        self,
        observation: dict[str, np.ndarray],
        start: dict[str, np.ndarray],
        candidates: np.ndarray,
        until: float = inf,
    ) -> dict[str, Any]:
        """Score candidates (N, K, A) float32 in robot units until the clock says ``until``.

        Returns:
            ``preferred`` (int; 0, the proposer's own choice, where nothing was judged), ``late`` (nothing was judged in
            time), ``scores``, ``spread`` and ``hallucination`` ((N,) float32; NaN where there is no verdict), ``terms``
            (all parts, likewise) and ``note`` (a sentence where something is missing, else empty).
        """
        n, at = len(candidates), 0
        columns = {"scores": np.full(n, np.nan, np.float32)}
        judge = await self._in_time(lambda: self.scorer(observation, start), until)
        while judge is not None and at < n and self._affordable(until):
            part = candidates[at : at + self.slice_size]
            verdict = await self._in_time(lambda part=part: self._timed(judge, part), until)  # type: ignore[misc]
            if verdict is None:
                break
            for name, column in {"scores": verdict[0], **verdict[1]}.items():
                columns.setdefault(name, np.full(n, np.nan, np.float32))[at : at + len(part)] = column
            at += len(part)
        scores = columns.pop("scores")
        scores[~np.isfinite(scores)] = np.nan
        known = np.isfinite(scores)
        unknown = np.full(n, np.nan, np.float32)
        return {
            "preferred": int(np.nanargmax(scores)) if known.any() else 0,
            "late": at == 0,
            "scores": scores,
            "spread": columns.get("spread", unknown),
            "hallucination": columns.get("hallucination", unknown),
            "terms": columns,
            "note": _note(at, n, int(known.sum())),
        }

    def _affordable(self, until: float) -> bool:
        if self.clock() + self._cost <= until:
            return True
        self._cost /= 2  # one slow slice must not keep all later ones from being tried
        return False

    def _timed(self, judge: Callable[[np.ndarray], Verdict], part: np.ndarray) -> Verdict:
        begin = self.clock()
        verdict = judge(part)
        seconds = self.clock() - begin
        if len(part) == self.slice_size or seconds > self._cost:  # a short slice says little of a whole one
            self._cost = seconds
        return verdict

    async def _in_time(self, call: Callable[[], Any], until: float) -> Any:
        """What a call on the executor returns, or None if it has not by then."""
        left = until - self.clock()
        if left <= 0:
            return None
        answering = asyncio.get_running_loop().run_in_executor(self.executor, call)
        try:
            answer = await asyncio.wait_for(answering, None if left == inf else left)
        except TimeoutError:
            return None
        return answer if self.clock() <= until else None


def _note(judged: int, n: int, known: int) -> str:
    if judged == 0:
        return f"judged none of {n} candidates in time; the first one, the proposer's own choice, is preferred."
    if known == 0:
        return f"the judge could not tell of any of {judged} candidates; the first one is preferred."
    if judged < n:
        return f"judged {judged} of {n} candidates in time; the rest have no score."
    return ""
