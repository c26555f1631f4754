"""Times the judge against what others do with the same model: reasoning aloud and voting, and one prompt per moment.

``python benchmarks/judge.py [--judge FOLDER] [--json]``. Everything runs side by side in one process; what counts is
the ratios. A chain of thought is as long as WorldGym's preset allows (200 tokens, five votes), whatever the model would
rather say.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch

from imagine.rewards.prompts import Frames, Preset, preset
from imagine.rewards.vlm import VLMJudge

POINTS = 8


def median(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the median call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times[1:]))


def measure(name: str, clips: int, repeats: int) -> dict:
    """Milliseconds of each way, their ratios, and how far shared and separate answers are apart."""
    judge = VLMJudge.load(name, "imagine")
    judge.least_coverage = 0.0
    generator = torch.Generator().manual_seed(0)
    films = torch.randint(0, 256, (clips, POINTS + 1, 64, 96, 3), dtype=torch.uint8, generator=generator)
    told = ["pick up the red block"] * clips
    success = VLMJudge(judge.backend, Preset(Frames(anchored=True), preset("imagine").questions[:1]))
    aloud = VLMJudge(judge.backend, Preset(Frames(anchored=True), preset("worldgym").questions))
    judge.backend.model.generation_config.min_new_tokens = aloud.protocol.questions[0].tokens
    one = median(lambda: success.score(films, told), repeats)
    votes = median(lambda: aloud.score(films, told), max(1, repeats // 3))
    shared = median(lambda: judge.progress(films, told, points=POINTS), repeats)
    apart = median(lambda: judge.progress(films, told, points=POINTS, share=False), repeats)
    answers = [judge.progress(films, told, points=POINTS, share=s) for s in (True, False)]
    return {
        "clips": clips,
        "threads": torch.get_num_threads(),
        "one_forward_ms": round(1000 * one, 2),
        "five_votes_ms": round(1000 * votes, 1),
        "times_faster_than_votes": round(votes / one, 1),
        "shared_8_points_ms": round(1000 * shared, 2),
        "eight_prompts_ms": round(1000 * apart, 2),
        "times_faster_than_prompts": round(apart / shared, 2),
        "largest_difference": float((answers[0] - answers[1]).abs().max()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--judge", default="judge-tiny")
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    answer = measure(args.judge, args.clips, args.repeats)
    print(json.dumps(answer) if args.json else "\n".join(f"{k:28}{v}" for k, v in answer.items()))


if __name__ == "__main__":
    main()
