"""``imagine demo``: the whole main job once, on shipped checkpoints, and one page that shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagine.configs.commands.common import Common, console
from imagine.configs.report import Report
from imagine.configs.runfolder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Dream, doubt, evaluate, plan, improve, and prove it in the real (simulated) world.

    Attributes:
        model: a shipped model's name, a folder, or a hub id.
        episodes: paired real and imagined episodes of each evaluation.
        updates: rounds of dreaming and learning of the policy that is improved here.
        seed: first start seed; nothing shipped was trained on seeds from 900000 on.
    """

    model: str = "g1-table-tiny"
    episodes: int = 48
    updates: int = 4
    seed: int = 970_000


def run(args: Args) -> dict[str, Any]:
    """Run every step and write ``report.html`` to the run folder.

    Raises:
        ImagineError: a number is out of range or the model cannot be had.
    """
    from imagine.model.model import WorldActionModel

    begin = time.time()
    model = WorldActionModel.from_pretrained(args.model)
    folder = RunFolder.of("demo", args)
    demo = Demo(args, model, folder)
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

    def __init__(self, args: Args, model: Any, folder: RunFolder):
        from imagine.configs import build

        self.args, self.model, self.folder, self.build = args, model, folder, build
        self.families = build.families_of(model)
        self.answer: dict[str, Any] = {}
        self.report = Report("Imagine")
        self.fps = model.body.control_hz / model.body.frame_stride
        self.policy: Any = build.policy("base", model, args.model)
        self.novice: Any = build.policy("novice", model, args.model)
        self.novices_own: list[bool] = []

    def dream(self) -> None:
        """1. The policy acts in the real world; the dream is shown the same start and the same actions."""
        from imagine.agents.rollout import rollout
        from imagine.world.fidelity import decibel

        seeds = list(range(self.args.seed, self.args.seed + 6))
        records = rollout(
            self.build.lanes("real", self.model, self.args.model, 6), self.policy, seeds,
            frames=True, keep=True,
        )  # fmt: skip
        dreams = replay(self.build.dream(self.model, self.args.model), records)
        errors = [
            np.square(d.astype(np.float32) - r.frames.astype(np.float32)).mean()
            for d, r in zip(dreams, records, strict=True)
        ]
        self.answer["replay_psnr"] = round(decibel(np.array(errors)), 2)
        self.report.section(
            "A dream beside reality",
            "The policy acts on the robot (left). The same joint model, asked for DYNAMICS instead, is given only the "
            "first frame and the same actions, and dreams every frame after it on its own (right).",
        )
        for record, dream in zip(records[:4], dreams, strict=False):
            self.report.videos_side_by_side(
                [("real", record.frames), ("imagined", dream)], self.fps,
                f"“{record.instruction}” - start seed {record.seed}, {'done' if record.success else 'not done'}",
            )  # fmt: skip

    def doubt(self) -> None:
        """2. How far can this dream be believed?."""
        from imagine.configs import heldout
        from imagine.configs.commands.fidelity import measure

        data = heldout.record(self.model, self.args.seed + 10_000, 40, self.folder.path)
        source = heldout.windows(self.model, [data], self.folder.path)
        dreamer = self.build.dreamer(self.model, self.args.model)
        numbers, _ = measure(self.model, source, 200, 4, self.build.dream_config(self.args.model), dreamer=dreamer)
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
                ("inverse R²", f"{numbers['inverse_r2']:.2f}", "actions read from real frames"),
            ]
        )
        self.report.figure(horizon_figure(numbers), "Dreaming on its own frames, chunk after chunk of 0.8 s.")
        self.report.command(f"imagine fidelity --model {self.args.model}")

    def estimate(self) -> None:
        """3. Success in imagination against success in reality, same starts."""
        from imagine.agents.evaluate import evaluate
        from imagine.configs.commands.evaluate import ZOO_HORIZON, looks

        guarded = looks(self.build.judge_name("own", self.args.model))
        seeds = range(self.args.seed + 100, self.args.seed + 100 + self.args.episodes)
        rows = []
        for name, policy in (("base", self.policy), ("novice", self.novice)):
            for world in ("real", "imagined"):
                lanes = self.build.lanes(
                    world, self.model, self.args.model, 16, judged_by="own", guarded=guarded, horizon=ZOO_HORIZON
                )
                tell = self._tell(f"{name}, {world}")
                result, _ = evaluate(lanes, policy, seeds, task_of=self.build.task_of, on_progress=tell)
                self.answer[f"{name}_{world}"] = result
                each = [_rate(result["per_task"].get(f)) for f in self.families]
                rows.append([f"{name}, {world}", _rate(result), *each])
        self.report.section(
            "Would it work? Ask the dream first",
            f"Success within {ZOO_HORIZON} chunks over {len(seeds)} starts that a good policy and a novice never saw: "
            "what a judge says in the dream, and what then really happens from the very same starts. 95 % Wilson "
            "intervals.",
        )
        self.report.table(["policy, world", "all tasks", *(f.replace("_", " ") for f in self.families)], rows)
        self.report.command(
            f"imagine evaluate --policy base,novice --world both --horizon {ZOO_HORIZON} --episodes {len(seeds)} "
            f"--seed {seeds[0]}"
        )

    def choose(self) -> None:
        """4. Imagine eight candidates, do the best."""
        from imagine.agents.evaluate import evaluate
        from imagine.agents.planner import BestOfN, DreamScorer
        from imagine.agents.statistics import paired_difference
        from imagine.configs.commands.plan import Timed, decision_figure

        scorer = DreamScorer(
            self.build.dreamer(self.model, self.args.model), self.build.judge("own", self.args.model),
            cfg=self.build.dream_config(self.args.model),
        )  # fmt: skip
        planner = Timed(BestOfN(self.novice, scorer, 8))
        seeds = range(self.args.seed + 100, self.args.seed + 100 + self.args.episodes)
        lanes, outcomes = self.build.lanes("real", self.model, self.args.model, 16), []
        for key, name, policy in (("before", "one sample", self.novice), ("best_of_8_real", "best of 8", planner)):
            self.answer[key], records = evaluate(
                lanes, policy, seeds, task_of=self.build.task_of, on_progress=self._tell(name)
            )
            outcomes.append([r.success for r in records])
        self.novices_own, chosen = outcomes
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
            ["real world, same starts", "success"],
            [["one sample", _rate(self.answer["before"])], ["best of 8", _rate(self.answer["best_of_8_real"])]],
            caption=f"Paired difference {gain.value:+.3f}, 95 % interval [{gain.low:+.3f}, {gain.high:+.3f}].",
        )
        self.report.command(
            f"imagine plan --policy novice --candidates 8 --compare --episodes {len(seeds)} --seed {seeds[0]}"
        )

    def improve(self) -> None:
        """5. Learn in the dream, then prove it in reality."""
        from imagine.agents.evaluate import evaluate
        from imagine.agents.finetune.improve import ImproveConfig
        from imagine.agents.rollout import rollout
        from imagine.agents.statistics import paired_difference
        from imagine.configs.commands.improve import Args as ImproveArgs
        from imagine.configs.commands.improve import learn
        from imagine.configs.load import load

        options = ImproveArgs(model=self.args.model)
        sizes = (f"updates={self.args.updates}", "groups=12", f"look_every={self.args.updates}", "last_horizon=3")
        cfg = load(ImproveConfig, options.preset, sizes)
        learnt = learn(options, cfg, self.model, self.folder.path)
        self.answer["improve"] = {k: v for k, v in learnt.items() if k != "adapter"}
        seeds = range(self.args.seed + 100, self.args.seed + 100 + self.args.episodes)
        lanes = self.build.lanes("real", self.model, self.args.model, 16)
        better = {
            name: self.build.policy(which, self.model, self.args.model)
            for name, which in {"after": learnt["adapter"], "after longer (shipped)": "improved"}.items()
        }
        policies = {"before": self.novice, **better}
        results, outcomes = {"before": self.answer["before"]}, {"before": self.novices_own}
        for name, policy in better.items():
            results[name], records = evaluate(
                lanes, policy, seeds, task_of=self.build.task_of, on_progress=self._tell(f"real, {name}")
            )
            outcomes[name] = [r.success for r in records]
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
            ["real world, same starts", "all tasks", *(f.replace("_", " ") for f in self.families)],
            [
                [name, _rate(results[name]), *(_rate(results[name]["per_task"].get(f)) for f in self.families)]
                for name in policies
            ],
            caption=f"Paired difference {gain.value:+.3f}, 95 % interval [{gain.low:+.3f}, {gain.high:+.3f}].",
        )
        changed = [i for i, s in enumerate(seeds) if outcomes["after"][i] and not outcomes["before"][i]][:2]
        small = self.build.lanes("real", self.model, self.args.model, 1)
        for i in changed:
            films = [
                rollout(small, policy, [seeds[i]], frames=True)[0].frames
                for policy in (policies["before"], policies["after"])
            ]
            self.report.videos_side_by_side(
                [("before", films[0]), ("after", films[1])],
                self.fps,
                f"start seed {seeds[i]}",
            )
        self.report.command("imagine improve")

    def opening(self) -> None:
        """Put title and headline numbers before the sections."""
        a = self.answer

        def gain(title: str, key: str, how: str) -> tuple[str, str, str]:
            value, low, high = (100 * a[key][k] for k in ("value", "ci_low", "ci_high"))
            return title, f"{value:+.0f} points", f"[{low:+.0f}, {high:+.0f}], {how}, real world"

        imagined, real = (100 * a[f"novice_{world}"]["success_rate"] for world in ("imagined", "real"))
        cards = [
            ("dream over a still frame", f"{a['fidelity']['gain_over_copy']['value']:+.1f} dB", "one chunk, unseen"),
            ("a novice, imagined / real", f"{imagined:.0f} / {real:.0f} %", "success from the same starts"),
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
