"""Whoever asks a policy while it is busy is answered together with the others, in one call."""

from __future__ import annotations

import time
from collections import defaultdict
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from imagine.types import Policy, ShapeError

MOST = 8
"""Observations in one call of the policy."""
DUE = 0.25
"""Who was answered last less than this share of the time ago for which another has gone without waits for that one."""


@dataclass(frozen=True)
class _Question:
    """What one client asks; the observation is a batch of one."""

    observation: dict[str, np.ndarray]
    seed: int
    episode: int
    committed: np.ndarray | None
    since: float
    answer: Future[np.ndarray] = field(default_factory=Future)


class Batcher:
    """Acts for many clients.

    A policy answers a batch of N with the bytes of N batches of one, so nobody can tell who else was asking. Whoever
    has gone longest without an answer is first, and is not held up by a larger batch for those who ask all the time.
    """

    def __init__(self, policy: Policy, worker: Executor) -> None:
        """Batches form while ``worker``, which has one thread, is at work."""
        self.policy, self.worker = policy, worker
        self._waiting: list[_Question] = []
        self._called = False  # whether the worker is to answer, or is taking what it will
        self._lock = Lock()

    def act(
        self,
        observation: dict[str, np.ndarray],
        seed: int,
        episode: int,
        committed: np.ndarray | None = None,
        since: float = 0.0,
    ) -> Future[np.ndarray]:
        """Ask for one chunk (K, A) float32, robot units; a future that is cancelled in time costs nothing.

        Args:
            observation: a batch of one.
            seed: of the noise.
            episode: what the policy knows the episode by; one question of each is answered at a time.
            committed: (1, D, A), for policies that take it.
            since: when this client was last answered, or else came; seconds of ``time.monotonic``.
        """
        question = _Question(observation, seed, episode, committed, since)
        with self._lock:
            self._waiting.append(question)
            self._call_worker()
        return question.answer

    def _call_worker(self) -> None:
        if self._waiting and not self._called:
            self._called = True
            self.worker.submit(self._answer)

    def _due(self) -> list[_Question]:
        """Take those who are answered next."""
        now = time.monotonic()
        self._waiting.sort(key=lambda question: question.since)
        longest = now - self._waiting[0].since
        count = sum(now - question.since >= DUE * longest for question in self._waiting[:MOST])
        due, self._waiting = self._waiting[:count], self._waiting[count:]
        return due

    def _answer(self) -> None:
        with self._lock:
            asked, self._called = self._due(), False
            self._call_worker()
        alike: dict[Any, list[_Question]] = defaultdict(list)
        for question in asked:
            if question.answer.set_running_or_notify_cancel():
                shapes = tuple((name, x.shape) for name, x in sorted(question.observation.items()))
                alike[shapes, 0 if question.committed is None else question.committed.shape[1]].append(question)
        for questions in alike.values():
            self._together(questions)

    def _together(self, questions: list[_Question]) -> None:
        """Answer questions of one shape; where that fails one by one, so that each has the blame for itself."""
        act: Any = self.policy.act
        committed = [q.committed for q in questions if q.committed is not None]
        more = {"committed": np.concatenate(committed)} if committed else {}
        names = questions[0].observation
        batch = {name: np.concatenate([q.observation[name] for q in questions]) for name in names}
        try:
            chunks = act(batch, [q.seed for q in questions], [q.episode for q in questions], **more)
            if len(chunks) != len(questions):
                raise ShapeError(f"the policy answered {len(chunks)} chunks to {len(questions)} observations.")
        except Exception as error:
            if len(questions) == 1:
                questions[0].answer.set_exception(error)
                return
            for question in questions:
                self._together([question])
            return
        for question, chunk in zip(questions, chunks, strict=True):
            question.answer.set_result(chunk)
