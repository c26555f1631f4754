"""The five steps of ``imagine demo``: each does what a command does, smaller, and adds a section to one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.fidelity import measure
from imagine.agents.finetune.improve import ImproveConfig
from imagine.agents.paired import Paired, compare
from imagine.agents.planner import Plan, PlannerConfig
from imagine.agents.recorded import replay
from imagine.agents.rollout import rollout
from imagine.agents.timed import TimedPolicy
from imagine.configs import build, heldout
from imagine.configs.defaults import ZOO_HORIZON
from imagine.configs.improving import improve, resolved
from imagine.configs.judges import default_judge
from imagine.configs.load import load
from imagine.configs.loaded import Loaded
from imagine.configs.pages.demo import DemoPage
from imagine.configs.planning import planner_of
from imagine.configs.policies import load_policy
from imagine.configs.practice import Practice
from imagine.progress import Progress
from imagine.types import Policy
from imagine.world.fidelity import decibel

WEAK = "base+noise=0.06"
"""A policy that is worse than the base one for a reason that everybody knows."""


@dataclass
class Demo:
    """Runs the steps in order; see :class:`imagine.configs.commands.demo.Args` for the numbers.

    Attributes:
        loaded: a model with a simulator.
        folder: of the run.
        seed: first start seed.
        episodes: of each evaluation.
        updates: rounds of learning.
        page: what is shown.
        answer: what was measured.
    """

    loaded: Loaded
    folder: Path
    seed: int
    episodes: int
    updates: int
    page: DemoPage = field(init=False)
    answer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.page = DemoPage(self.loaded)
        self.judge = default_judge(self.loaded.folder)
        self.seeds = range(self.seed + 100, self.seed + 100 + self.episodes)
        self.starts = f"--episodes {self.episodes} --seed {self.seeds[0]}"

    def dream(self) -> None:
        """1. The policy acts on the simulator; the dream is shown the same start and the same actions."""
        envs = build.parallel_envs(self.loaded, "sim", 6)
        policy = load_policy("base", self.loaded.model, self.loaded.folder)
        records = rollout(envs, policy, list(range(self.seed, self.seed + 6)), frames=True, keep=True)
        dreams = replay(build.dream(self.loaded), records)
        pairs = [(d.astype(np.float32), r.frames.astype(np.float32)) for d, r in zip(dreams, records, strict=True)]
        self.answer["replay_psnr"] = round(decibel(np.array([np.square(a - b).mean() for a, b in pairs])), 2)
        self.page.dream(records[:4], dreams[:4])

    def measure(self) -> None:
        """2. How far can this dream be believed?"""
        home, model = self.loaded.folder, self.loaded.model
        data = heldout.record(self.loaded, self.seed + 10_000, 40, self.folder)
        windows = heldout.windows(model, [data], self.folder)
        cfg = build.dream_config(home)
        self.answer["fidelity"], _ = measure(build.dreamer(model, home), model, windows, cfg, n=200, chunks=4)
        self.page.fidelity(self.answer["fidelity"], "imagine evaluate world-model")

    def evaluate(self) -> None:
        """3. Success in imagination against success on the simulator, same starts."""
        how: dict[str, Any] = {"judge": self.judge, "horizon": ZOO_HORIZON}
        found = {world: self._compare(("base", WEAK), world, **how) for world in ("sim", "imagined")}
        for world, each in found.items():
            self.answer |= {f"{name}_{world}": result for name, result in each.results.items()}
        command = f"imagine evaluate --policy base,{WEAK} --world both --horizon {ZOO_HORIZON}"
        self.page.evaluation(found, len(self.seeds), f"{command} {self.starts}")

    def plan(self) -> None:
        """4. Imagine eight candidates, do the best."""
        planner = planner_of(self.loaded, "base", self.judge, PlannerConfig(candidates=8))
        plans: list[tuple[Plan, dict[str, np.ndarray]]] = []
        timed = TimedPolicy(planner, lambda plan, seen, _episodes: None if plans else plans.append((plan, seen)))
        self.alone = self._compare({"one sample": planner.policy, "best of 8": timed}, "sim")
        gain = self.alone.gain("best of 8", "one sample")
        self.answer["before"], self.answer["best_of_8"] = self.alone.results.values()
        self.answer["gain_of_planning"] = gain
        command = f"imagine plan --policy base --candidates 8 --compare {self.starts}"
        self.page.planning(self.alone, gain, plans[0], command)

    def improve(self) -> None:
        """5. Learn in the dream, then prove it on the simulator."""
        practice = resolved(Practice(), self.loaded)
        sizes = (f"updates={self.updates}", "groups=12", "epochs=3", f"look_every={self.updates}")
        learnt = improve(practice, load(ImproveConfig, "nft", sizes), self.loaded, self.folder)
        names = {"before": practice.policy, "after": learnt["adapter"]}
        policies = self._policies(names)
        later = self._compare({name: policies[name] for name in list(policies)[1:]}, "sim")
        found = self.alone.renamed({"one sample": "before"}) | later
        self.answer["improve"] = {k: v for k, v in learnt.items() if k != "adapter"}
        self.answer["after"] = found.results["after"]
        self.answer["gain"] = found.gain("after", "before")
        shown = {name: policies[name] for name in ("before", "after")}
        envs = build.parallel_envs(self.loaded, "sim", 1)
        self.page.improvement(learnt, found, self.seeds, shown, envs)

    def _policies(self, names: Mapping[str, str]) -> dict[str, Policy]:
        return {k: load_policy(name, self.loaded.model, self.loaded.folder) for k, name in names.items()}

    def _compare(self, policies: Any, world: str, **how: Any) -> Paired:
        """Policies, or names of them, from the demo's starts."""
        if not isinstance(policies, Mapping):
            policies = self._policies({name: name for name in policies})
        envs = build.parallel_envs(self.loaded, world, 16, **how)
        with Progress(f"{', '.join(policies)} ({world})") as on_progress:
            return compare(envs, policies, self.seeds, task_of=self.loaded.robot.task_of, on_progress=on_progress)
