"""The table itself: how reliably its expert carries out each family, and how much the head camera sees of it.

``python benchmarks/table.py --episodes 96`` prints one line per family: successes within ``CHUNKS`` of it, how many
ticks they took, and how many of the head camera's pixels show the block (the less visible one of two) on the way and
when it was done; then how many seconds of one core an episode takes to record.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from imagine.policy.robots.g1_table.episodes import BLOCKS, episode
from imagine.policy.robots.g1_table.expert import expert_target
from imagine.policy.robots.g1_table.render import visible
from imagine.policy.robots.g1_table.starts import FAMILIES
from imagine.policy.robots.g1_table.world import VIEWS, G1Table

CHUNKS = {"put_both": 14}  # of 24 ticks; 8 for the others
TICKS = 24
FEW = 12  # pixels that tell what a thing is


def pixels(world: G1Table) -> int:
    """How many pixels of the head camera show the block of the task, the less visible one of two."""
    seen = visible(world, "top_head", *VIEWS["top_head"])
    return min(int((seen == world.block_of(colour)).sum()) for colour in world.task.colours)


def one(world: G1Table, seed: int, family: str, look: str) -> tuple[int | None, list[int]]:
    """Ticks until success, if at all, and the pixels at each chunk's beginning and at the end."""
    world.reset(seed, families=(family,), blocks=BLOCKS, look=look)
    seen = []
    for tick in range(CHUNKS.get(family, 8) * TICKS):
        if tick % TICKS == 0:
            seen.append(pixels(world))
        world.tick(expert_target(world, world.task))
        if world.success():
            return tick + 1, [*seen, pixels(world)]
    return None, seen


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--seed", type=int, default=800_000)
    parser.add_argument("--look", default="seen")
    args = parser.parse_args()
    world, seeds = G1Table(), range(args.seed, args.seed + args.episodes)
    for family in FAMILIES:
        runs = [one(world, seed, family, args.look) for seed in seeds]
        done = [(ticks, seen) for ticks, seen in runs if ticks is not None]
        ticks, last = [t for t, _ in done], np.array([s[-1] for _, s in done])
        way = np.concatenate([s[:-1] for _, s in done])
        seen = (
            f"{np.mean(last >= FEW):.1%} show {FEW} pixels or more, median {np.median(last):.0f}, fewest {last.min()}"
        )
        print(
            f"{family:12} success {len(done)}/{len(runs)}, ticks {np.median(ticks):.0f} (95 %: "
            f"{np.quantile(ticks, 0.95):.0f}); at success {seen}; on the way {np.mean(way >= FEW):.1%}, "
            f"median {np.median(way):.0f}"
        )
    for count in set(BLOCKS):
        episode(args.seed, blocks=count)  # compiles
    begun = time.process_time()
    length = [len(episode(seed, look=args.look).state) for seed in seeds]
    spent = time.process_time() - begun
    print(
        f"recording: {spent / len(length):.3f} s per episode of {np.mean(length):.0f} ticks on average, "
        f"{spent / sum(length) * TICKS * 6:.3f} s per six chunks"
    )


if __name__ == "__main__":
    main()
