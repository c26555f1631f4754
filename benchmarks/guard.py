"""Tries the guard on the table: does it stop everything unsafe, and does it let the expert through?

``python benchmarks/guard.py --violations 1000 --episodes 200`` takes the scripted expert's episodes from seed 900000
on, passes every tick through the guard, and at random ticks asks for a command that breaks one rule by 0.2 % to ten
times its allowance. A violation is stopped if what is sent instead breaks no limit.
``python benchmarks/guard.py dreams`` measures what the guard asks of dreams (``benchmarks/dream_guards.py``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np

from imagine.agents.statistics import success_rate
from imagine.embodiment import Embodiment
from imagine.limits import Limits
from imagine.policy.guard import Guard, GuardConfig
from imagine.policy.robots.g1_table.env import TableTicks
from imagine.policy.robots.g1_table.expert import expert_target
from imagine.policy.robots.registry import DEFAULT, load_robot

HANDS = ((0, 3), (4, 7))
ROUNDING = 2e-3  # of float32 commands on their limit, as a share of the allowance
Break = Callable[[np.ndarray, float, np.random.Generator, Limits], np.ndarray]


def speeding(command: np.ndarray, excess: float, rng: np.random.Generator, limits: Limits) -> np.ndarray:
    """One axis of one hand moves too fast."""
    at = int(rng.choice([i for i, v in enumerate(limits.velocity) if v is not None]))
    command[at] += rng.choice([-1, 1]) * (1 + excess) * float(limits.velocity[at] or 0) / limits.control_hz
    return command


def outside(command: np.ndarray, excess: float, rng: np.random.Generator, limits: Limits) -> np.ndarray:
    """One hand leaves the workspace through one of its sides."""
    axis, high = int(rng.integers(3)), bool(rng.integers(2))
    low, top = float(limits.workspace_low[axis] or 0), float(limits.workspace_high[axis] or 0)
    command[HANDS[int(rng.integers(2))][0] + axis] = top + excess * (top - low) if high else low - excess * (top - low)
    return command


def together(command: np.ndarray, excess: float, rng: np.random.Generator, limits: Limits) -> np.ndarray:
    """The hands come too near each other; ``excess`` is a share of the distance here."""
    direction = rng.normal(size=3)
    near = max(0.0, 1 - min(1.0, excess)) * limits.apart * direction / np.linalg.norm(direction)
    mover, other = rng.permutation(2)
    command[slice(*HANDS[mover])] = command[slice(*HANDS[other])] + near
    return command


def broken(command: np.ndarray, excess: float, rng: np.random.Generator, limits: Limits) -> np.ndarray:
    """A number that is none."""
    command[int(rng.integers(len(command)))] = rng.choice([np.nan, np.inf, -np.inf])
    return command


def jolting(command: np.ndarray, excess: float, rng: np.random.Generator, limits: Limits) -> np.ndarray:
    """A step within the allowed speed whose jerk is not allowed."""
    at = int(rng.choice([i for i, j in enumerate(limits.jerk) if j is not None]))
    command[at] += rng.choice([-1, 1]) * (1 + excess) * float(limits.jerk[at] or 0) / limits.control_hz**3
    return command


RULES: dict[str, Break] = {
    "finite": broken, "velocity": speeding, "jerk": jolting, "workspace": outside, "two_arms": together
}  # fmt: skip


def expert_moves(body: Embodiment, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(A,) where the expert's episode begins and (T, A) what it commands, absolute."""
    ticks = TableTicks(body)
    pose = body.absolute_action(body.hold(ticks.reset(seed)["proprio"])[0], ticks.anchor())
    moves = []
    for _ in range(192):
        target = expert_target(ticks.world, ticks.world.task)
        moves.append(target.astype(np.float32))
        ticks.world.tick(target)
        if ticks.world.success():
            break
    return pose, np.stack(moves)


def false_stops(body: Embodiment, limits: Limits, episodes: list[tuple[np.ndarray, np.ndarray]]) -> Counter[str]:
    """What the guard would not let the expert do, by rule."""
    found = Counter[str]()
    for pose, moves in episodes:
        guard = Guard(body, limits)
        guard.reset(pose)
        for move in moves:
            guard.check(move)
        found.update(event.rule for event in guard.events)
    return found


def violate(
    body: Embodiment, limits: Limits, moves: np.ndarray, spoil: Break, rng: np.random.Generator
) -> tuple[bool, list[str]]:
    """Whether one violation, at a random tick of an episode, is stopped; and how it was answered."""
    at = int(rng.integers(4, len(moves)))
    guard = Guard(body, limits, GuardConfig(patience=10**6))
    guard.reset(moves[at - 4])
    before = [guard.check(move) for move in moves[at - 3 : at]]
    known = len(guard.events)
    sent = guard.check(spoil(before[-1].copy(), float(10 ** rng.uniform(-2.7, 1)), rng, limits))
    answers: list[str] = [event.response for event in guard.events[known:]]
    path = np.stack([*before, sent])
    worst = {name: float(x) for name, x in limits.breaches(path[-2:]).items()}
    worst["jerk"] = 0.0 if "hold" in answers else float(limits.breaches(path)["jerk"])  # staying is always allowed
    return bool(answers) and bool(np.isfinite(sent).all()) and max(worst.values()) < ROUNDING, answers


def main() -> None:
    """Run both and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--violations", type=int, default=1000, help="of each rule")
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=900_000)
    args = parser.parse_args()
    robot = load_robot(DEFAULT)
    body = robot.embodiment()
    assert body is not None
    limits = robot.limits(body)
    assert limits is not None
    episodes = [expert_moves(body, args.seed + i) for i in range(args.episodes)]
    rng, found = np.random.default_rng(args.seed), {}
    for name, spoil in RULES.items():
        picks = rng.integers(len(episodes), size=args.violations)
        tried = [violate(body, limits, episodes[i][1], spoil, rng) for i in picks]
        rate = success_rate([stopped for stopped, _ in tried], exact=True)
        found[name] = {**rate.plain(), "answers": dict(Counter(a for _, answers in tried for a in answers))}
    ticks = sum(len(moves) for _, moves in episodes)
    stops = dict(false_stops(body, limits, episodes))
    print(json.dumps({"stopped": found, "false_stops": stops, "ticks": ticks, "episodes": len(episodes)}, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["dreams"]:
        import dream_guards

        dream_guards.main(sys.argv[2:])
    else:
        main()
