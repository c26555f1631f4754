"""``imagine demo``: the whole main job once, on shipped checkpoints, and one page that shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imagine.configs.commands.common import Common, console
from imagine.configs.defaults import MODEL
from imagine.configs.report import Report
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError

if TYPE_CHECKING:
    from imagine.configs.build import Loaded


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Dream, doubt, evaluate, plan, improve, and prove it on the simulator.

    Attributes:
        model: a shipped model's name, a folder, or a hub id.
        episodes: paired simulated and imagined episodes of each evaluation.
        updates: rounds of dreaming and learning of the policy that is improved here.
        seed: first start seed; nothing shipped was trained on seeds from 900000 on.
    """

    model: str = MODEL
    episodes: int = 48
    updates: int = 4
    seed: int = 970_000


def run(args: Args) -> dict[str, Any]:
    """Run every step and write ``report.html`` to the run folder.

    Raises:
        ImagineError: a number is out of range or the model cannot be had.
    """
    from imagine.configs.build import load
    from imagine.configs.policies import adapters_in

    begin, loaded = time.time(), load(args.model)
    if not loaded.robot.has_env or not {"novice", "improved"} <= set(adapters_in(loaded.folder)):
        raise ImagineError(
            f"the demo shows a robot with a simulator, and its policies novice and improved; {args.model!r} lacks some "
            "of them. See `imagine rollout` and `imagine evaluate --world imagined`."
        )
    folder = RunFolder.of("demo", args)
    demo = Demo(args, loaded, folder)
    for step in (demo.dream, demo.doubt, demo.estimate, demo.choose, demo.improve):
        console.rule(step.__doc__.splitlines()[0].rstrip(".") if step.__doc__ else "")
        step()
    demo.answer["seconds"] = round(time.time() - begin, 1)
    demo.answer["report"] = str(folder / "report.html")
    folder.save_metrics(demo.answer)
    demo.opening()
    demo.report.write(folder / "report.html")
    return demo.answer


class Demo:
    """The five steps; each adds a section to the page and numbers to the answer."""

    def __init__(self, args: Args, loaded: Loaded, folder: RunFolder):
        from imagine.configs.judges import default_judge
        from imagine.configs.policies import load_policy
        from imagine.rewards.trajectory import TrajectoryJudge

        self.args, self.loaded, self.model, self.folder = args, loaded, loaded.model, folder
        self.judge = "trajectory" if TrajectoryJudge.is_in(loaded.folder) else default_judge(loaded.folder)
        self.answer: dict[str, Any] = {}
        self.report = Report("Imagine")
        self.fps = self.model.body.control_hz / self.model.body.frame_stride
        self.policies = {name: load_policy(name, self.model, loaded.folder) for name in ("base", "novice", "improved")}
        self.tasks: list[str] = []
        self.novices_own: list[bool] = []

    def envs(self, world: str, n: int = 16, **how: Any) -> Any:
        """Environments of the demo's robot."""
        from imagine.configs.build import parallel_envs

        return parallel_envs(self.loaded, world, n, **how)

    def evaluate(self, envs: Any, policy: Any, name: str) -> tuple[dict[str, Any], list[bool]]:
        """Success rate of a policy from the demo's starts, and each outcome."""
        from imagine.agents.evaluate import evaluate

        seeds, task_of = self.seeds, self.loaded.robot.task_of
        result, records = evaluate(envs, policy, seeds, task_of=task_of, on_progress=self._tell(name))
        return result, [r.success for r in records]

    @property
    def seeds(self) -> range:
        """Starts of every evaluation."""
        return range(self.args.seed + 100, self.args.seed + 100 + self.args.episodes)

    def dream(self) -> None:
        """1. The policy acts on the simulator; the dream is shown the same start and the same actions."""
        from imagine.agents.rollout import rollout
        from imagine.configs.build import dream
        from imagine.world.fidelity import decibel

        seeds = list(range(self.args.seed, self.args.seed + 6))
        records = rollout(self.envs("sim", 6), self.policies["base"], seeds, frames=True, keep=True)
        dreams = replay(dream(self.loaded), records)
        errors = [
            np.square(d.astype(np.float32) - r.frames.astype(np.float32)).mean()
            for d, r in zip(dreams, records, strict=True)
        ]
        self.answer["replay_psnr"] = round(decibel(np.array(errors)), 2)
        self.report.section(
            "A dream beside the simulator",
            "The policy acts on the simulated robot (left). The same joint model, asked for DYNAMICS instead, is given "
            "only the first frame and the same actions, and dreams every frame after it on its own (right).",
        )
        for record, dreamt in zip(records[:4], dreams, strict=False):
            self.report.videos_side_by_side(
                [("simulator", record.frames), ("imagined", dreamt)], self.fps,
                f"“{record.instruction}” - start seed {record.seed}, {'done' if record.success else 'not done'}",
            )  # fmt: skip

    def doubt(self) -> None:
        """2. How far can this dream be believed?."""
        from imagine.configs import heldout
        from imagine.configs.build import dream_config, dreamer
        from imagine.configs.commands.fidelity import measure

        folder = self.loaded.folder
        data = heldout.record(self.loaded, self.args.seed + 10_000, 40, self.folder.path)
        source = heldout.windows(self.model, [data], self.folder.path)
        who = dreamer(self.model, folder)
        numbers, _ = measure(self.model, source, 200, 4, dream_config(folder), dreamer=who)
        self.answer["fidelity"] = numbers
        self.report.section(
            "Can it be believed?",
            f"{numbers['n']} chunks of 0.8 s from {numbers['episodes']} episodes it never saw. A dream that ignored "
            "its actions would score the same under shuffled ones; one that drew nothing, like a still frame.",
        )
        self.report.cards(
            [
                ("true actions", f"{numbers['psnr_true']:.1f} dB", "the dream against what happened"),
                ("shuffled actions", f"{numbers['psnr_shuffled']:.1f} dB", "another chunk's actions"),
                ("still frame", f"{numbers['psnr_copy']:.1f} dB", "nothing moves"),
                ("inverse R²", f"{numbers['inverse_r2']:.2f}", "actions read from recorded frames"),
            ]
        )
        self.report.figure(horizon_figure(numbers), "Dreaming on its own frames, chunk after chunk of 0.8 s.")
        self.report.command(f"imagine fidelity --model {self.args.model}")

    def estimate(self) -> None:
        """3. Success in imagination against success on the simulator, same starts."""
        from imagine.configs.defaults import ZOO_HORIZON
        from imagine.configs.judges import looks_at_pictures

        how: dict[str, Any] = {"judge": self.judge, "guarded": looks_at_pictures(self.judge), "horizon": ZOO_HORIZON}
        rows = []
        for name in ("base", "novice"):
            for world in ("sim", "imagined"):
                result, _ = self.evaluate(self.envs(world, **how), self.policies[name], f"{name}, {world}")
                self.answer[f"{name}_{world}"], self.tasks = result, sorted(result["per_task"])
                rows.append(
                    [f"{name}, {world}", _rate(result), *(_rate(result["per_task"].get(t)) for t in self.tasks)]
                )
        seeds = self.seeds
        self.report.section(
            "Would it work? Ask the dream first",
            f"Success within {ZOO_HORIZON} chunks over {len(seeds)} starts that a good policy and a novice never saw: "
            "what a judge says in the dream, and what then happens on the simulator from the very same starts. 95 % "
            "Wilson intervals.",
        )
        self.report.table(["policy, world", "all tasks", *(t.replace("_", " ") for t in self.tasks)], rows)
        self.report.command(
            f"imagine evaluate --policy base,novice --world both --judge {self.judge} --horizon {ZOO_HORIZON} "
            f"--episodes {len(seeds)} --seed {seeds[0]}"
        )

    def choose(self) -> None:
        """4. Imagine eight candidates, do the best."""
        from imagine.agents.planner import BestOfN, DreamScorer
        from imagine.agents.statistics import paired_difference
        from imagine.configs.build import dream_config, dreamer
        from imagine.configs.commands.plan import Timed, decision_figure
        from imagine.configs.judges import load_judge

        folder, novice = self.loaded.folder, self.policies["novice"]
        scorer = DreamScorer(dreamer(self.model, folder), load_judge(self.judge, folder), cfg=dream_config(folder))
        planner, envs = Timed(BestOfN(novice, scorer, 8)), self.envs("sim")  # type: ignore[arg-type]
        self.answer["before"], self.novices_own = self.evaluate(envs, novice, "one sample")
        self.answer["best_of_8"], chosen = self.evaluate(envs, planner, "best of 8")
        gain = paired_difference(chosen, self.novices_own)
        self.answer["gain_of_planning"] = {"value": gain.value, "ci_low": gain.low, "ci_high": gain.high, "n": gain.n}
        self.report.section(
            "Think before you move",
            "Before every chunk the novice imagines eight of its own candidates and does the one that the judge likes "
            "best. Each row is one decision: the last imagined frame of every candidate and its score; the tick marks "
            "the one that was done.",
        )
        if planner.first is not None:
            self.report.figure(decision_figure(self.model, planner.first), "Candidates and their scores.")
        self.report.table(
            ["simulator, same starts", "success"],
            [["one sample", _rate(self.answer["before"])], ["best of 8", _rate(self.answer["best_of_8"])]],
            caption=f"Paired difference {gain.value:+.3f}, 95 % interval [{gain.low:+.3f}, {gain.high:+.3f}].",
        )
        self.report.command(
            f"imagine plan --policy novice --candidates 8 --judge {self.judge} --compare --episodes {len(self.seeds)} "
            f"--seed {self.seeds[0]}"
        )

    def improve(self) -> None:
        """5. Learn in the dream, then prove it on the simulator."""
        from imagine.agents.finetune.improve import ImproveConfig
        from imagine.agents.rollout import rollout
        from imagine.agents.statistics import paired_difference
        from imagine.configs.commands.improve import Args as ImproveArgs
        from imagine.configs.commands.improve import learn, resolved
        from imagine.configs.load import load
        from imagine.configs.policies import load_policy

        options = resolved(ImproveArgs(model=self.args.model), self.loaded)
        sizes = (f"updates={self.args.updates}", "groups=12", f"look_every={self.args.updates}", "last_horizon=3")
        learnt = learn(options, load(ImproveConfig, options.preset, sizes), self.loaded, self.folder.path)
        self.answer["improve"] = {k: v for k, v in learnt.items() if k != "adapter"}
        policies = {
            "before": self.policies["novice"],
            "after": load_policy(learnt["adapter"], self.model, self.loaded.folder),
            "after longer (shipped)": self.policies["improved"],
        }
        results, outcomes = {"before": self.answer["before"]}, {"before": self.novices_own}
        for name in list(policies)[1:]:
            results[name], outcomes[name] = self.evaluate(self.envs("sim"), policies[name], name)
        gain = paired_difference(outcomes["after"], outcomes["before"])
        self.answer["after"] = results["after"]
        self.answer["improved"] = results["after longer (shipped)"]
        self.answer["gain"] = {"value": gain.value, "ci_low": gain.low, "ci_high": gain.high, "n": gain.n}
        self.report.section(
            "Better by dreaming",
            "A novice, cloned from demonstrations of which most are failures, practises in the dream: "
            f"{learnt['imagined_episodes']} imagined episodes in {learnt['updates']} rounds, judged by a "
            "vision-language model. A low-rank adapter learns; no real episode was spent, and the dream's own weights "
            "did not move.",
        )
        self.report.table(
            ["simulator, same starts", "all tasks", *(t.replace("_", " ") for t in self.tasks)],
            [
                [name, _rate(results[name]), *(_rate(results[name]["per_task"].get(t)) for t in self.tasks)]
                for name in policies
            ],
            caption=f"Paired difference {gain.value:+.3f}, 95 % interval [{gain.low:+.3f}, {gain.high:+.3f}].",
        )
        changed = [i for i in range(len(self.seeds)) if outcomes["after"][i] and not outcomes["before"][i]][:2]
        small = self.envs("sim", 1)
        for i in changed:
            films = [
                rollout(small, policy, [self.seeds[i]], frames=True)[0].frames
                for policy in (policies["before"], policies["after"])
            ]
            self.report.videos_side_by_side(
                [("before", films[0]), ("after", films[1])],
                self.fps,
                f"start seed {self.seeds[i]}",
            )
        self.report.command("imagine improve")

    def opening(self) -> None:
        """Put title and headline numbers before the sections."""
        a = self.answer

        def gain(title: str, key: str, how: str) -> tuple[str, str, str]:
            value, low, high = (100 * a[key][k] for k in ("value", "ci_low", "ci_high"))
            return title, f"{value:+.0f} points", f"[{low:+.0f}, {high:+.0f}], {how}, simulator"

        imagined, true = (100 * a[f"novice_{world}"]["success_rate"] for world in ("imagined", "sim"))
        cards = [
            ("dream over a still frame", f"{a['fidelity']['gain_over_copy']['value']:+.1f} dB", "one chunk, unseen"),
            ("a novice, imagined / simulator", f"{imagined:.0f} / {true:.0f} %", "success from the same starts"),
            gain("its gain by planning", "gain_of_planning", "best of 8"),
            gain("its gain by learning", "gain", "in the dream alone"),
        ]
        self.report.subtitle = (
            "One joint world-action model: the policy of a robot, and the gym in which that policy is improved. "
            f"Everything below was computed on this machine in {a['seconds'] / 60:.1f} minutes."
        )
        self.report.lead(cards)

    def _tell(self, name: str) -> Any:
        def tell(done: int, total: int) -> None:
            console.print(f"{name}: {done}/{total} episodes", highlight=False)

        return tell


def replay(dream: Any, records: Any) -> list[np.ndarray]:
    """Dream each record's start under its recorded actions; frames as long as the record's."""
    from imagine.agents.envs import DreamEnvs, RecordedEnvs
    from imagine.agents.rollout import rollout

    given = {r.seed: np.stack(r.actions) for r in records}
    envs = DreamEnvs(dream, len(records), horizon=max(map(len, given.values())))
    dreams = rollout(RecordedEnvs(envs, given, whole=True), None, list(given), frames=True)
    return [np.concatenate([r.frames[:1], d.frames[1:]]) for r, d in zip(records, dreams, strict=True)]


def horizon_figure(numbers: dict[str, Any]) -> Any:
    """PSNR of the dream against a still frame over chunks of its own imagination."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    chunks = np.arange(1, len(numbers["horizon_psnr"]) + 1)
    axes.plot(chunks, numbers["horizon_psnr"], "o-", label="dream")
    axes.plot(chunks, numbers["horizon_copy"], "o--", color="gray", label="still frame")
    axes.set(xlabel="chunks of 0.8 s", ylabel="PSNR (dB)", xticks=chunks)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _rate(result: dict[str, Any] | None) -> str:
    if not result:
        return "-"
    low, high = 100 * result["ci_low"], 100 * result["ci_high"]
    return f"{100 * result['success_rate']:.0f} % [{low:.0f}, {high:.0f}]"
