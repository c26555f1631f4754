"""Tries what the guard asks of dreams: how often does it stop a good policy, and does it see dreams that are wrong?

``python benchmarks/guard.py dreams --episodes 60`` drives the table (simulated, no latency) from ``--seed`` on, and at
every decision dreams the plan three times: as it is; ``shuffled``, under another episode's plan; and ``frozen``, as the
picture that is seen now. ``hallucination`` is how far the actions that INVERSE reads from each dream are from the plan;
``success`` what the judge says of each; ``surprise`` how far each is from what is then really seen. A false alarm is a
real dream beyond the threshold, a detection a wrong one. Intervals are of whole episodes (bootstrap).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from imagine.agents.statistics import success_rate
from imagine.configs.build import dream_config, dreamer
from imagine.configs.commands.drive import Args
from imagine.configs.judges import load_judge
from imagine.configs.policies import load_policy
from imagine.policy.clock import SimulatedClock
from imagine.policy.drive import Answer, DriveConfig, Driver
from imagine.policy.guard import Guard, surprise
from imagine.questions import INVERSE
from imagine.sampler import sample
from imagine.seeds import Stream, derive
from imagine.types import Context, unpack_instruction
from imagine.world.step import EpisodeStart, Prediction, judge_clip, predict_chunk

DREAMS = ("real", "shuffled", "frozen")
THRESHOLDS = {"hallucination": 0.5, "surprise": 60.0, "success": 0.2}
"""As in docs/drive.md."""
Row = dict[str, dict[str, float]]


class Watching:
    """A ``Think`` that notes what three dreams of each of its plans are worth."""

    def __init__(self, parts: Any, seed: int, others: list[np.ndarray]) -> None:
        self.policy, self.model, self.judge, self.cfg = parts
        self.seed, self.others, self.rng = seed, others, np.random.default_rng(seed)
        self.rows: list[Row] = []
        self.plans: list[np.ndarray] = []
        self._start: Context | None = None
        self._expected: dict[str, np.ndarray] = {}

    @torch.inference_mode()
    def __call__(self, observation: dict[str, np.ndarray], committed: np.ndarray, number: int) -> Answer:
        """Act as the policy does."""
        body, batch = self.model.body, {name: value[None] for name, value in observation.items()}
        seen = body.tile({v.name: observation[v.name] for v in body.views})
        for name, frames in self._expected.items():
            at = DriveConfig().every // body.frame_stride - 1
            self.rows[-1]["surprise"][name] = surprise(frames[at], seen)
        context = self.policy.context(batch)
        self._start = context if self._start is None else self._start
        seed = derive(self.seed, number, Stream.POLICY)
        plan = self.policy.act_on(context, [seed], committed=committed[None] if len(committed) else None)
        self.plans.append(plan[0])
        self.rows.append({name: {} for name in THRESHOLDS})
        if self.others:
            self._dream(context, torch.from_numpy(plan), seed, unpack_instruction(observation["instruction"]))
        return Answer(plan[0])

    def _dream(self, context: Context, plan: torch.Tensor, seed: int, instruction: str) -> None:
        model, start = self.model, self._start
        assert start is not None
        cache, action = model.prefill(context), model.normalise_action(plan)
        other = torch.from_numpy(self.others[self.rng.integers(len(self.others))][None])
        real = predict_chunk(model, context, action, self.cfg, seeds=[seed], cache=cache)
        wrong = predict_chunk(model, context, model.normalise_action(other), self.cfg, seeds=[seed], cache=cache)
        still = Prediction(context.video[:, -1:].expand_as(real.video), real.proprio)
        for name, dream in zip(DREAMS, (real, wrong, still), strict=True):
            read = sample(
                model, INVERSE, context, video=dream.video, proprio=dream.proprio, steps=self.cfg.inverse_steps or 1,
                seeds=[seed], cache=cache,
            ).action  # fmt: skip
            error = (read - action)[..., : model.body.action_dim].square().mean().sqrt()
            begin = EpisodeStart(start.video[:, -1], start.proprio[:, -1])
            score = self.judge(judge_clip(model, begin, context, dream, plan), (instruction,))
            self.rows[-1]["hallucination"][name] = float(error)
            self.rows[-1]["success"][name] = float(score.success[0])
            self._expected[name] = model.decode(dream.video, context.video)[0].cpu().numpy()


def drive(args: argparse.Namespace) -> list[list[Row]]:
    """Rows of every decision of every episode; the first episode only lends its plans."""
    options = Args(model=args.model, policy=args.policy, clock="simulated")
    loaded = options.load()
    body, model = loaded.model.body, dreamer(loaded.model, loaded.folder)
    judge = load_judge("", loaded.folder)
    parts = (load_policy(args.policy, loaded.model, loaded.folder), model, judge, dream_config(loaded.folder))
    robot = loaded.robot.make_ticks(body, **loaded.options)
    cfg, others, found = DriveConfig(seconds=options.seconds), list[np.ndarray](), []
    for seed in range(args.seed, args.seed + args.episodes + 1):
        think = Watching(parts, seed, others)
        guard = Guard(body, loaded.robot.limits(body))
        Driver(robot, body, guard, SimulatedClock(body.control_hz), cfg).episode(think, seed)
        others = [*others, *think.plans][-200:]
        found.append(think.rows)
    return found[1:]


def auroc(wrong: np.ndarray, real: np.ndarray) -> float:
    """Chance that a wrong dream gives more alarm than a real one."""
    ranks = rankdata(np.concatenate([wrong, real]))[: len(wrong)].sum()
    return float((ranks - len(wrong) * (len(wrong) + 1) / 2) / (len(wrong) * len(real)))


def sees(episodes: Sequence[list[Row]], guard: str, dream: str, draws: int = 500) -> dict[str, Any]:
    """What one guard says of one kind of wrong dream."""
    sign = -1 if guard == "success" else 1
    pairs = [np.array([[r[guard][dream], r[guard]["real"]] for r in rows if r[guard]]) * sign for rows in episodes]
    pairs = [one for one in pairs if len(one)]
    rng, alarm = np.random.default_rng(0), sign * THRESHOLDS[guard]

    def measures(picked: Sequence[np.ndarray]) -> tuple[float, float, float]:
        both = np.concatenate(picked)
        return auroc(both[:, 0], both[:, 1]), float((both[:, 0] > alarm).mean()), float((both[:, 1] > alarm).mean())

    drawn = [measures([pairs[i] for i in rng.integers(len(pairs), size=len(pairs))]) for _ in range(draws)]
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    names = ("auroc", "detected", "false_alarms")
    numbers = zip(names, measures(pairs), low, high, strict=True)
    found: dict[str, Any] = {n: {"value": round(v, 3), "ci": [round(a, 3), round(b, 3)]} for n, v, a, b in numbers}
    stopped = success_rate([bool((one[:, 1] > alarm).any()) for one in pairs])
    return found | {"episodes_with_false_alarm": stopped.plain(), "decisions": sum(map(len, pairs))}


def main(words: Sequence[str]) -> None:
    """Drive and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--seed", type=int, default=900_000)
    parser.add_argument("--model", default=Args().model)
    parser.add_argument("--policy", default="base")
    args = parser.parse_args(words)
    episodes = drive(args)
    found = {f"{guard}, {dream}": sees(episodes, guard, dream) for guard in THRESHOLDS for dream in DREAMS[1:]}
    print(json.dumps({"thresholds": THRESHOLDS, "episodes": len(episodes), "sees": found}, indent=1))
