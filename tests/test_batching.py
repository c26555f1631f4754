"""Questions to one policy that arrive together are answered together, and nobody can tell."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest

from imagine.policy.batching import MOST, Batcher
from imagine.types import ImagineError


class Counting:
    """Answers x + seed, remembers the sizes of its batches, and refuses 13."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.go = Event()

    def act(self, observation, seeds, episodes, committed=None):
        self.go.wait(5)
        self.sizes.append(len(seeds))
        if 13 in seeds:
            raise ImagineError("13 is refused.")
        chunks = observation["x"][:, None] + np.array(seeds)[:, None, None]
        return chunks if committed is None else np.concatenate([committed, chunks], 1)

    def reset(self, episodes=None):
        pass


@pytest.fixture
def worker():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def ask(batcher: Batcher, n: int, **more):
    return batcher.act({"x": np.full((1, 2), 100 * n, np.float32)}, n, n, **more)


def test_what_arrives_while_the_policy_is_busy_is_one_batch(worker):
    policy = Counting()
    batcher = Batcher(policy, worker)
    worker.submit(policy.go.wait)  # busy
    answers = [ask(batcher, n) for n in range(7)]
    policy.go.set()
    assert [float(a.result(5)[0, 0]) for a in answers] == [101 * n for n in range(7)]
    assert policy.sizes == [7]


def test_a_refusal_hits_only_the_one_that_is_refused(worker):
    policy = Counting()
    batcher = Batcher(policy, worker)
    worker.submit(policy.go.wait)
    answers = {n: ask(batcher, n) for n in (12, 13, 14)}
    policy.go.set()
    assert float(answers[12].result(5)[0, 0]) == 1212 and float(answers[14].result(5)[0, 0]) == 1414
    with pytest.raises(ImagineError, match="13"):
        answers[13].result(5)


def test_the_departed_are_left_out_and_many_come_in_parts(worker):
    policy = Counting()
    batcher = Batcher(policy, worker)
    worker.submit(policy.go.wait)
    answers = [ask(batcher, 20 + n) for n in range(2 * MOST + 5)]
    for answer in answers[::2]:
        assert answer.cancel()
    policy.go.set()
    assert all(a.result(5) is not None for a in answers[1::2])
    assert sum(policy.sizes) == MOST + 2 and max(policy.sizes) <= MOST


def test_those_that_go_on_from_something_are_batched_by_how_much(worker):
    policy = Counting()
    batcher = Batcher(policy, worker)
    worker.submit(policy.go.wait)
    committed = np.ones((1, 3, 2), np.float32)
    answers = [
        ask(batcher, 1),
        ask(batcher, 2, committed=committed),
        ask(batcher, 3, committed=committed),
        ask(batcher, 4),
    ]
    policy.go.set()
    assert [len(a.result(5)) for a in answers] == [1, 4, 4, 1]
    assert sorted(policy.sizes) == [2, 2]
