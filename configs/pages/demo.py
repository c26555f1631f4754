"""The page of ``imagine demo``, section by section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagine.agents.envs import ParallelEnvs
from imagine.agents.paired import Paired
from imagine.agents.planner import Plan
from imagine.agents.rollout import EpisodeRecord
from imagine.configs.defaults import ZOO_HORIZON
from imagine.configs.loaded import Loaded
from imagine.configs.pages import headed, points, rate, rates
from imagine.configs.pages.fidelity import horizon_figure
from imagine.configs.pages.improve import show_changes
from imagine.configs.pages.plan import decision_figure
from imagine.configs.report import Report
from imagine.types import Policy


class DemoPage:
    """One section per step, and an opening once all numbers are known."""

    def __init__(self, loaded: Loaded) -> None:
        """``loaded`` is whose page it is."""
        self.loaded, self.body, self.report = loaded, loaded.model.body, Report("Imagine")
        self.fps = self.body.control_hz / self.body.frame_stride
        self.seconds = self.body.chunk_actions / self.body.control_hz

    def dream(self, records: Sequence[EpisodeRecord], dreams: Sequence[np.ndarray]) -> None:
        """Episodes on the simulator, and the same actions dreamt."""
        self.report.section(
            "A dream beside the simulator",
            "The policy acts on the simulated robot (left). The same joint model, asked for DYNAMICS instead, is given "
            "only the first frame and the same actions, and dreams every frame after it on its own (right).",
        )
        for record, imagined in zip(records, dreams, strict=True):
            caption = f"“{record.instruction}” - start seed {record.seed}, {'done' if record.success else 'not done'}"
            self.report.videos_side_by_side([("simulator", record.frames), ("imagined", imagined)], self.fps, caption)

    def fidelity(self, numbers: dict[str, Any], command: str) -> None:
        """Figures of :func:`imagine.agents.fidelity.measure`."""
        self.report.section(
            "Can it be believed?",
            f"{numbers['n']} chunks of {self.seconds:g} s from {numbers['episodes']} episodes it never saw. A dream "
            "that ignored its actions would score the same under shuffled ones; one that drew nothing, like a still "
            "frame.",
        )
        self.report.cards(
            [
                ("true actions", f"{numbers['psnr_true']:.1f} dB", "the dream against what happened"),
                ("shuffled actions", f"{numbers['psnr_shuffled']:.1f} dB", "another chunk's actions"),
                ("still frame", f"{numbers['psnr_copy']:.1f} dB", "nothing moves"),
                ("inverse R²", f"{numbers['inverse_r2']:.2f}", "actions read from recorded frames"),
            ]
        )
        caption = f"Dreaming on its own frames, chunk after chunk of {self.seconds:g} s."
        self.report.figure(horizon_figure(numbers, self.seconds), caption).command(command)

    def evaluation(self, found: Mapping[str, Paired], starts: int, command: str) -> None:
        """Policies in both worlds."""
        self.report.section(
            "Would it work? Ask the dream first",
            f"Success within {ZOO_HORIZON} chunks over {starts} starts that nothing was trained on, of the policy and "
            "of one whose hand is off: what a judge says in the dream, and what then happens on the simulator from the "
            "very same starts. 95 % Wilson intervals.",
        )
        first = next(iter(found.values()))
        rows = {f"{name}, {world}": each.results[name] for name in first.results for world, each in found.items()}
        self._success("policy, world", rows, first).command(command)

    def planning(
        self, found: Paired, gain: dict[str, Any], decided: tuple[Plan, dict[str, np.ndarray]], command: str
    ) -> None:
        """One sample against the best of several, and a decision."""
        self.report.section(
            "Think before you move",
            "Before every chunk the policy imagines eight of its own candidates and does the one that the judge likes "
            "best: what it sees now, the last imagined frame of every candidate and its score; the tick marks the one "
            "that was done.",
        )
        figure = decision_figure(self.loaded.model, *decided, 0, "the first decision")
        self.report.figure(figure, "Candidates and their scores.")
        rows = [[name, rate(result)] for name, result in found.results.items()]
        self.report.table(["simulator, same starts", "success"], rows, _paired(gain)).command(command)

    def improvement(
        self, learnt: dict[str, Any], found: Paired, seeds: Sequence[int], shown: Mapping[str, Policy],
        envs: ParallelEnvs,
    ) -> None:  # fmt: skip
        """Before, after, and episodes whose outcome changed."""
        self.report.section(
            "Better by dreaming",
            "The policy practises in the dream: "
            f"{learnt['imagined_episodes']} imagined episodes in {learnt['updates']} rounds, judged by a "
            "vision-language model. A low-rank adapter learns; no real episode was spent, and the dream's own weights "
            "did not move.",
        )
        self._success("simulator, same starts", found.results, found, _paired(found.gain("after", "before")))
        show_changes(self.report, self.loaded, {"simulator": envs}, shown, found, seeds, most=2)
        self.report.command("imagine finetune rl")

    def opening(self, answer: dict[str, Any]) -> Report:
        """Title and headline numbers, before the sections."""
        imagined, simulated = (rate(answer[f"base_{world}"]) for world in ("imagined", "sim"))
        self.report.subtitle = (
            "One joint world-action model: the policy of a robot, and the gym in which that policy is improved. "
            f"Everything below was computed on this machine in {answer['seconds'] / 60:.1f} minutes."
        )
        still = answer["fidelity"]["gain_over_copy"]["value"]
        return self.report.lead(
            [
                ("dream over a still frame", f"{still:+.1f} dB", "one chunk, unseen"),
                ("the policy, imagined", imagined, f"simulator, same starts: {simulated}"),
                ("its gain by planning, points", points(answer["gain_of_planning"]), "best of 8, simulator"),
                ("its gain by learning, points", points(answer["gain"]), "in the dream alone, simulator"),
            ]
        )

    def _success(self, what: str, rows: Mapping[str, dict[str, Any]], found: Paired, caption: str = "") -> Report:
        tasks = sorted(set(found.tasks.tolist()))
        cells = [[name, *rates(result, tasks)] for name, result in rows.items()]
        return self.report.table([what, "all tasks", *headed(tasks)], cells, caption)


def _paired(gain: dict[str, Any]) -> str:
    return f"Paired difference {points(gain)} points, 95 % interval."
