"""Does the planner's scorer know which candidate is better? Pairs of candidates whose true outcomes differ.

``python benchmarks/ranking.py --policies base --starts 60`` lets each policy act out N whole plans from each
start on the twin, with other draws each: as many chunks as ``--depth``, whose outcome is the candidate's alone. The
scorer then sees the start and the plans' actions, dreams each of them and judges. A pair counts if one plan got the
task done and the other did not; the scorer is right if it prefers the former, half right if it cannot tell.

``--single`` asks harder: candidates are single chunks, the policy's later draws are not the scorer's, and the outcome
is that of carrying the chunk out and acting on. How well the twin itself would do there in the scorer's place, with
later draws of its own, is printed beside it: no dream can be expected to know more. Starts from 906000 on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from imagine.agents.dream_scorer import DreamScorer
from imagine.agents.envs import ParallelEnvs
from imagine.agents.rollout import decision_seed, episode_id, rollout
from imagine.agents.scorer import PlanningState
from imagine.agents.statistics import mean_interval
from imagine.configs import build
from imagine.configs.judges import load_judge
from imagine.configs.policies import load_policy
from imagine.embodiment import Embodiment
from imagine.policy.policy import JointPolicy
from imagine.seeds import derive
from imagine.types import Policy, unpack_instruction

MODEL = "g1-table-tiny"
Ranked = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Scores of N candidates, whether each got the task done, and what the twin would say of it in the scorer's place."""


def batched(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One observation as a batch of one."""
    return {k: v[None] for k, v in observation.items()}


def held(chunks: list[np.ndarray], depth: int, body: Embodiment) -> np.ndarray:
    """(depth K, A): chunks that were carried out, then none that moves."""
    still = np.where(np.array(body.anchors_in_proprio()) >= 0, 0, chunks[-1][-1:]).repeat(body.chunk_actions, 0)
    return np.concatenate([*chunks, *[still.astype(np.float32)] * (depth - len(chunks))])


def whole_plans(args: argparse.Namespace, policy: Policy, score: DreamScorer, envs: ParallelEnvs) -> Iterator[Ranked]:
    """Rank N whole plans per start."""
    eyes, n = JointPolicy(score.model), args.candidates
    for seed in range(args.seed, args.seed + args.starts):
        records = rollout(envs, policy, [seed] * n, policy_seed=range(n), keep=True)
        start = eyes.context(batched(records[0].observations[0]))
        plans = np.stack([held(r.actions, args.depth, score.model.body) for r in records])
        scene = PlanningState(start, start, (records[0].instruction,), (decision_seed(seed, 0),))
        value = score(scene, torch.from_numpy(plans)[None]).lower(args.pessimism)[0].numpy()
        won = np.array([r.success for r in records])
        yield value, won, won


class FirstChunk:
    """A ``Policy`` that begins some episodes with given chunks, and then does what another one does."""

    def __init__(self, policy: Policy, chunks: dict[int, np.ndarray]) -> None:
        self.policy, self.chunks = policy, chunks

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`."""
        own = self.policy.act(observation, seeds, episodes)
        return np.stack([self.chunks.pop(e, chunk) for e, chunk in zip(episodes or (), own, strict=True)])

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """See :class:`imagine.types.Policy`."""
        self.policy.reset(episodes)


def single_chunks(
    args: argparse.Namespace, policy: JointPolicy, score: DreamScorer, envs: ParallelEnvs
) -> Iterator[Ranked]:
    """Rank N first chunks per start; the policy acts on."""

    def truth(seed: int, chunks: np.ndarray, draw: int) -> np.ndarray:
        """(N,) bool: carry out each chunk, then the policy: is the task done within ``depth`` chunks?"""
        draws = [derive(draw, i) for i in range(len(chunks))]
        given = {episode_id(seed, d): chunk for d, chunk in zip(draws, chunks, strict=True)}
        records = rollout(envs, FirstChunk(policy, given), [seed] * len(chunks), policy_seed=draws)
        return np.array([r.success for r in records])

    for seed in range(args.seed, args.seed + args.starts):
        seen = envs.reset([seed])
        start, instruction = policy.context(seen), unpack_instruction(seen["instruction"][0])
        noise = [decision_seed(seed, 0)]
        chunks = policy.propose(start, noise, range(args.candidates))
        value = score(PlanningState(start, start, (instruction,), tuple(noise)), torch.from_numpy(chunks))
        yield value.lower(args.pessimism)[0].numpy(), truth(seed, chunks[0], 0), truth(seed, chunks[0], 1)


def pairs(score: np.ndarray, won: np.ndarray) -> list[float]:
    """1, 0.5 or 0 for every pair of candidates with different outcomes."""
    return [float(a > b) + 0.5 * float(a == b) for a in score[won] for b in score[~won]]


def accuracy(found: list[list[float]]) -> dict[str, float]:
    """Share of pairs, with an interval over starts."""
    each = mean_interval([x for pairs in found for x in pairs], [i for i, p in enumerate(found) for _ in p])
    return {"value": each.value, "ci_low": each.low, "ci_high": each.high, "pairs": sum(map(len, found))}


def main() -> None:
    """Act out, score, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", default="base")
    parser.add_argument("--judge", default="judge-tiny")
    parser.add_argument("--single", action="store_true")
    parser.add_argument("--starts", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--pessimism", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=906_000)
    args = parser.parse_args()
    loaded = build.load(MODEL)
    model = loaded.model
    envs = build.parallel_envs(loaded, "sim", args.candidates, horizon=args.depth)
    answer, every = {}, []
    for name in args.policies.split(","):
        acts = load_policy(name, model, MODEL)
        judge, how = load_judge(args.judge, MODEL), {"draws": args.draws, "cfg": build.dream_config(MODEL)}
        if args.single:
            assert isinstance(acts, JointPolicy), "only a policy that denoises can propose several chunks"
            score = DreamScorer(build.dreamer(model, MODEL), judge, depth=args.depth, follow=acts, **how)
            ranked = list(single_chunks(args, acts, score, envs))
        else:
            score = DreamScorer(build.dreamer(model, MODEL), judge, **how)
            ranked = list(whole_plans(args, acts, score, envs))
        found = [pairs(value, won) for value, won, _ in ranked]
        every.append(found)
        answer[name] = {
            "ranking_accuracy": accuracy(found),
            "done": float(np.mean([won.mean() for _, won, _ in ranked])),
            "best_of_n": float(np.mean([won[value.argmax()] for value, won, _ in ranked])),
            "any_of_n": float(np.mean([won.any() for _, won, _ in ranked])),
        }
        if args.single:
            answer[name]["twin_instead"] = accuracy([pairs(twin.astype(float), won) for _, won, twin in ranked])
    if len(every) > 1:  # pairs of one policy's candidates, of all policies; the interval is still over starts
        answer["all"] = accuracy([[x for found in start for x in found] for start in zip(*every, strict=True)])
    settings = {k: getattr(args, k) for k in ("judge", "depth", "draws", "starts", "candidates", "seed", "single")}
    print(json.dumps({**settings, **answer}))


if __name__ == "__main__":
    main()
