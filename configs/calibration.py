"""What ``imagine evaluate judge`` measures: recorded episodes, imagined rollouts, and negative controls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.collect import collect
from imagine.agents.control_rollouts import control_rollouts
from imagine.agents.labelled_clips import ask_episodes
from imagine.agents.labelled_recordings import recorded_rollouts
from imagine.agents.labelled_rollouts import KINDS
from imagine.agents.monitor import shuffled_chunks
from imagine.configs import heldout
from imagine.configs.build import dream_config
from imagine.configs.labelling import dreaming, rollout_maker
from imagine.data.windows import Windows
from imagine.labels import LabelledRollouts, RolloutPairs
from imagine.model.model import WorldActionModel, resolve
from imagine.policy.robots.registry import robot_of
from imagine.progress import Progress
from imagine.rewards.calibrate import Calibration
from imagine.rewards.latent import LatentJudge
from imagine.rewards.measure import FITS, Rater, Study, controls_report, cross_folds, margins, pattern_of
from imagine.rewards.train.head import probabilities
from imagine.rewards.vlm import JudgeSettings, VLMJudge, judge_folder
from imagine.types import ImagineError

REAL_FALSE = 0.01
"""Share of the negatives among the real clips to fit that may be called a success."""


class Calibrating:
    """One judge, the dreams of one model, and the robot that tells the truth, or its recordings."""

    def __init__(self, args: Any, folder: Path) -> None:
        """``args`` of ``imagine evaluate judge``; recordings are kept in ``folder``."""
        self.args, self.folder = args, folder
        self.path = judge_folder(args.judge)
        self.judge, self.model = VLMJudge.load(self.path), WorldActionModel.from_pretrained(args.model)
        self.robot = robot_of(resolve(args.model), self.model.body)
        self.recorded = bool(args.dataset) or not self.robot.has_env

    def measure(self) -> tuple[dict[str, Any], str, dict[str, Any]]:
        """Metrics, ``judge.json``, and reliability curves."""
        windows = self._windows()
        studies = {"real": self._real(windows)}
        with Progress("imagined rollouts") as on_progress:
            dreams = self._dreams(windows, on_progress)
        with Progress("judging") as on_progress:
            cfg = dream_config(self.args.model)
            rater = Rater(self.judge, cfg.blur_limit, cfg.noise_limit, cfg.hallucination_limit, on_progress)
            studies["imagined"] = self._imagined(dreams, rater)
            calibration = {kind: study.calibration() for kind, study in studies.items()}
            answer: dict[str, Any] = {kind: study.report() for kind, study in studies.items()}
            answer["imagined"]["by_policy"] = studies["imagined"].by(dreams.kind)
            answer |= self._second(dreams, rater, studies["imagined"])
            answer |= self._controls(dreams, rater, calibration["imagined"])
        settings = JudgeSettings.read(self.path).model_copy(update={"calibration": calibration})
        return answer, settings.model_dump_json(indent=1), {kind: study.curve() for kind, study in studies.items()}

    def _windows(self) -> Windows:
        if self.recorded:
            if not self.args.dataset:
                raise ImagineError(
                    f"robot {self.robot.name!r} has no simulator; give recorded episodes with --dataset."
                )
            return heldout.windows(self.model, [Path(d) for d in self.args.dataset], self.folder)
        recorder, data = self.robot.recorder(), [self.folder / "fit", self.folder / "measure"]
        if recorder is None:
            raise ImagineError(f"robot {self.robot.name!r} records no episodes; give some with --dataset.")
        for out, first in zip(data, (self.args.fit_seed, self.args.seed), strict=True):
            collect(
                out, recorder.episode, self.args.episodes, first, 2, options=recorder.options, names=recorder.names,
                robot_type=recorder.robot_type, fps=recorder.fps, allow_reserved=True, shard_size=20,
            )  # fmt: skip
        return heldout.windows(self.model, data, self.folder)

    def _folds(self, cluster: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        """Recordings are cross-fitted; on the simulator one range of seeds fits and another is measured."""
        if self.recorded:
            return cross_folds(cluster)
        most = max(self.args.episodes, self.args.rollouts)
        fits = (seeds >= self.args.fit_seed) & (seeds < self.args.fit_seed + most)
        return np.where(fits, FITS, 0)

    def _patterns(self, instructions: Sequence[str]) -> list[str]:
        """One pattern per task family."""
        every = self.robot.instructions() or tuple(dict.fromkeys(instructions))
        families = dict[str, list[str]]()
        for text in every:
            families.setdefault(self.robot.task_of(text), []).append(text)
        return [pattern_of(texts) for texts in families.values()]

    def _real(self, windows: Windows) -> Study:
        asked = ask_episodes(windows, self.robot, self.args.seed)
        with Progress("judging") as on_progress:
            margin, valid = margins(self.judge, asked.clips, asked.instruction, on_progress)
        folds = self._folds(asked.cluster, windows.seeds(asked.cluster))
        patterns = self._patterns(asked.instruction)
        return Study(margin, valid, asked.label, asked.instruction, asked.cluster, folds, patterns, REAL_FALSE)

    def _dreams(self, windows: Windows, on_progress: Any) -> LabelledRollouts:
        if self.recorded:
            dream = partial(dreaming, self.model, self.args.model, fast=False)
            return recorded_rollouts(dream, windows, self.args.chunks, frames=True, on_progress=on_progress)
        seeds = [first + i for first in (self.args.fit_seed, self.args.seed) for i in range(self.args.rollouts)]
        self.maker = rollout_maker(self.args.model, fast=False, frames=True)
        return self.maker(seeds, KINDS, self.args.chunks, on_progress=on_progress)

    def _imagined(self, dreams: LabelledRollouts, rater: Rater) -> Study:
        believed = rater.believed(dreams.inverse_error)
        texts = dreams.instruction.tolist()
        every = np.where(believed & rater.clear(dreams.frames), rater.log_odds(dreams.frames, texts), -np.inf)
        ended = np.minimum(believed.sum(1), believed.shape[1] - 1)  # the chunk that was not believed is the last one
        label = np.take_along_axis(dreams.done, ended[:, None], 1)[:, 0]
        valid, folds = np.isfinite(every.max(1)), self._folds(dreams.seeds, dreams.seeds)
        return Study(every.max(1), valid, label, texts, dreams.seeds, folds, self._patterns(texts), None)

    def _second(self, dreams: LabelledRollouts, rater: Rater, study: Study) -> dict[str, Any]:
        """How the heads beside the model's weights differ, if there are any."""
        if not LatentJudge.is_in(resolve(self.args.model)):
            return {}
        heads = LatentJudge.load(resolve(self.args.model))
        chance = probabilities(heads, RolloutPairs(dreams, whole=True))[:, 0].reshape(dreams.done.shape)
        verdict = ((chance > heads.cfg.head.threshold) & rater.believed(dreams.inverse_error)).any(1)
        return {"second_judge": study.second(verdict, "latent")}

    def _controls(self, dreams: LabelledRollouts, rater: Rater, calibration: Calibration) -> dict[str, Any]:
        """Rollouts that did not succeed, and how many of them are judged to have done so at any time."""
        measured, most = self._folds(dreams.seeds, dreams.seeds) != FITS, self.args.controls
        base = dreams.pick(np.flatnonzero(measured & (dreams.kind == dreams.kind[0]))[:most])
        found = rater.video_controls(calibration, base.frames, base.instruction.tolist(), self.args.seed)
        tried: list[tuple[str, LabelledRollouts]] = []
        if not self.recorded:
            made = control_rollouts(self.maker, base, shuffled_chunks(base.actions, self.args.seed))
            tried = [(kind, made.pick(made.kind == kind)) for kind in ("still", "shuffled")]
            misled = np.flatnonzero(measured & (dreams.kind == "misled") & ~dreams.done[:, -1])[:most]
            tried.append(("wrong instruction", dreams.pick(misled)))
        for kind, rollouts in tried:
            found[kind] = rater.succeeds(
                calibration, rollouts.frames, rollouts.instruction.tolist(), rollouts.inverse_error
            )
        return controls_report(found)
