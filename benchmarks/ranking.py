"""Does the planner's scorer know which candidate is better? Pairs of candidates whose true outcomes differ.

``python benchmarks/ranking.py --policy novice --starts 60`` proposes N chunks at the first and the second decision of
every start, scores them in the dream, and carries out each of them on the twin: the chunk, then ``depth - 1`` more of
the policy, with the same draws for all. A pair counts if the task is done by then after one chunk and not after the
other; the scorer is right if it prefers the former, half right if it cannot tell. Starts from 906000 on.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from agents.scorer import DreamScorer, Scene
from agents.statistics import mean_interval
from configs import build
from imagine.model import WorldActionModel
from imagine.types import unpack_instruction
from policy.policy import JointPolicy

MODEL = "g1-table-tiny"


def batched(observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One observation as a batch of one."""
    return {k: v[None] for k, v in observation.items()}


def truth(lanes, seed: int, before: list[np.ndarray], chunk: np.ndarray, policy: JointPolicy, depth: int) -> bool:
    """Carry out ``before``, then ``chunk``, then the policy, on the twin: is the task done within ``depth`` chunks?"""
    seen, won = lanes.reset([seed], None), False
    for action in before:
        seen, _ = lanes.step([0], action[None])
    for k in range(depth):
        action = chunk[None] if k == 0 else policy.act(seen, [seed * 1_009 + 500 + k])
        seen, (told,) = lanes.step([0], action)
        won |= told["success"]
        if won:
            break
    return won


def pairs(score: np.ndarray, won: np.ndarray) -> list[float]:
    """1, 0.5 or 0 for every pair of candidates with different outcomes."""
    return [float(a > b) + 0.5 * float(a == b) for a in score[won] for b in score[~won]]


def main() -> None:
    """Propose, score, carry out, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="novice")
    parser.add_argument("--judge", default="latent")
    parser.add_argument("--starts", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--seed", type=int, default=906_000)
    args = parser.parse_args()
    model = WorldActionModel.from_pretrained(MODEL)
    policy = build.policy(args.policy, model, MODEL)
    assert isinstance(policy, JointPolicy)
    scorer = DreamScorer(
        build.dreamer(model, MODEL), build.judge(args.judge, MODEL), depth=args.depth, follow=policy, draws=args.draws
    )
    lanes = build.lanes("real", model, MODEL, 1)
    right: list[float] = []
    groups: list[int] = []
    best, first, mean = [], [], []
    for seed in range(args.seed, args.seed + args.starts):
        seen, before = lanes.reset([seed], None), []
        start = policy.context(seen)
        for decision in range(2):
            told, draw = unpack_instruction(seen["instruction"][0]), seed * 1_009 + decision
            context = policy.context(seen)
            scene = Scene(context, start, (told,), (draw,))
            chunks = policy.propose(context, args.candidates, [draw])
            value = scorer(scene, torch.from_numpy(chunks)).lower(0.5)[0].numpy()
            won = np.array([truth(lanes, seed, before, c, policy, args.depth) for c in chunks[0]])
            found = pairs(value, won)
            right += found
            groups += [seed] * len(found)
            best.append(float(won[value.argmax()])), first.append(float(won[0])), mean.append(float(won.mean()))
            lanes.reset([seed], None)
            for action in before:
                lanes.step([0], action[None])
            before.append(chunks[0, 0])
            seen, (outcome,) = lanes.step([0], chunks[0, :1])
            if outcome["done"]:
                break
    accuracy = mean_interval(right, groups)
    answer = {
        "policy": args.policy,
        "judge": args.judge,
        "depth": args.depth,
        "ranking_accuracy": {"value": accuracy.value, "ci_low": accuracy.low, "ci_high": accuracy.high},
        "pairs": len(right),
        "decisions": len(best),
        "best_of_n": float(np.mean(best)),
        "policys_own": float(np.mean(first)),
        "any_candidate": float(np.mean(mean)),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
