"""VLMJudge: a vision-language model scores clips by what it would answer, and says so when it cannot tell.

The model is any ``transformers`` checkpoint (:class:`imagine.rewards.local.LocalVLM`) or any OpenAI-compatible server
(:class:`imagine.rewards.endpoint.EndpointVLM`). What is asked, and of which pictures, is a preset of
``imagine.rewards.prompts``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

import imagine.types
from imagine.intact import intact
from imagine.rewards.calibrate import Calibration
from imagine.rewards.local import Answers, Ask, LocalVLM
from imagine.rewards.pictures import resized, views_of
from imagine.rewards.prompts import NO, PROGRESS, YES, Preset, Prompt, preset
from imagine.types import Clip, ImagineError, Score, ShapeError

Domain = Literal["real", "imagined"]
LEAST_COVERAGE = 0.5
SETTINGS = "judge.json"


class JudgeSettings(BaseModel):
    """What a checkpoint folder may say about itself as a judge; ``judge.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: str = "imagine"
    robot: str | None = None  # whose episodes it was taught on; it is the default judge of that robot's dreams
    slot: int = 0  # tokens reserved per question, so that a clip's bits do not depend on the others' instructions
    calibration: dict[Domain, Calibration] = {}

    @classmethod
    def read(cls, folder: str | Path) -> JudgeSettings:
        """The settings of a folder; the defaults where it has none.

        Raises:
            CheckpointMismatch: the file is no such settings.
        """
        file = Path(folder) / SETTINGS
        if not file.is_file():
            return cls()
        with intact(file, "delete it, or write it with `imagine evaluate judge`"):
            return cls.model_validate_json(file.read_bytes())


def judge_folder(name: str | Path) -> Path:
    """Folder of a shipped judge by name; a folder or hub id stays as it is."""
    shipped = Path(imagine.types.__file__).parent / "checkpoints" / str(name)
    return shipped if (shipped / "config.json").is_file() else Path(name)


class Backend(Protocol):
    """Something that answers questions about pictures."""

    def ask(self, clips: Tensor, asks: Sequence[Sequence[Ask]], *, share: bool = True) -> Answers:
        """See :meth:`imagine.rewards.local.LocalVLM.ask`."""
        ...

    def say(
        self, clips: Tensor, asks: Sequence[Sequence[Ask]], votes: int, tokens: int, temperature: float
    ) -> list[list[list[str]]]:
        """See :meth:`imagine.rewards.local.LocalVLM.say`."""
        ...


class VLMJudge:
    """A ``RewardModel``: the probability of yes to "has it done what it was told?".

    ``Score.success`` is calibrated; ``Score.reward`` is 1, and the episode ends, where it reaches the operating
    threshold of the instruction's family. ``Score.valid`` is False where yes and no together are less likely than
    anything else the model might have said, where the tokenizer does not know a word, and where a server gave no
    usable answer.
    ``Score.terms`` holds the answer to every question of the preset, NaN where that one is not valid.
    """

    def __init__(
        self,
        backend: Backend,
        protocol: str | Preset = "imagine",
        *,
        calibration: Calibration | None = None,
        least_coverage: float = LEAST_COVERAGE,
    ) -> None:
        """Judge with a backend.

        Args:
            backend: answers questions.
            protocol: a preset or its name.
            calibration: per family; none leaves log odds as they are and the threshold at 0.5.
            least_coverage: P(yes) + P(no), or share of readable votes, below which an answer is not valid.

        Raises:
            ImagineError: there is no such preset.
        """
        self.backend = backend
        self.protocol = preset(protocol) if isinstance(protocol, str) else protocol
        self.calibration = calibration or Calibration()
        self.least_coverage = least_coverage
        merged = getattr(getattr(backend, "pictures", None), "merged", 2)
        self._pairs = self.protocol.frames.anchored and merged == 2

    @classmethod
    def load(
        cls,
        path: str | Path,
        protocol: str | Preset | None = None,
        *,
        domain: Domain = "real",
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = "auto",
    ) -> VLMJudge:
        """Load a local checkpoint, with its own settings and calibration where it has them.

        Args:
            path: a shipped judge's name, or folder or hub id of a ``transformers`` image-text-to-text model.
            protocol: a preset or its name; the checkpoint's own when None.
            domain: whether real or imagined clips are going to be judged.
            device: where it runs.
            dtype: see :meth:`imagine.rewards.local.LocalVLM.load`.

        Raises:
            CheckpointMismatch: it cannot be loaded.
        """
        path = judge_folder(path)
        settings = JudgeSettings.read(path)
        backend = LocalVLM.load(path, device=device, dtype=dtype, slot=settings.slot)
        return cls(backend, protocol or settings.preset, calibration=settings.calibration.get(domain))

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """Judge B clips; see :class:`imagine.types.RewardModel`."""
        length = clip.latents.shape[1]
        moments = self.protocol.frames.moments(length)
        score, device = self._score(clip.decode([0, *moments]), instruction), clip.latents.device
        terms = {k: v.to(device) for k, v in score.terms.items()}
        reward, success, valid, done = (
            x.to(device) for x in (score.reward, score.success, score.valid, score.terminated)
        )
        return Score(reward, success, valid, terms, terminated=done)

    def score(self, frames: Tensor | np.ndarray, instruction: Sequence[str]) -> Score:
        """Judge videos.

        Args:
            frames: (B, T, H, W, 3) uint8, first frame first.
            instruction: one per video.

        Raises:
            ShapeError: no frames, wrong dtype, or not one instruction per video.
            ImagineError: an instruction is empty, or a video is shorter than the stride.
        """
        frames = _checked(frames)
        moments = self.protocol.frames.moments(frames.shape[1])
        return self._score(frames[:, [0, *moments]], instruction)

    def margin(self, frames: Tensor | np.ndarray, instruction: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What calibration starts from: the first question's raw log odds, and whether each is valid.

        Args:
            frames: as for :meth:`score`.
            instruction: likewise.

        Returns:
            (B,) float32 log odds; (B,) bool.

        Raises:
            ImagineError: the protocol votes, so that it has no logits.
        """
        first = self.protocol.questions[0]
        if first.votes:
            raise ImagineError(f"the protocol asks for {first.votes} votes and reads no logits; choose another preset.")
        frames = _checked(frames)
        shown = self._pictures(frames[:, [0, *self.protocol.frames.moments(frames.shape[1])]])
        answers = self.backend.ask(shown, self._asks([first], self._instructions(frames, instruction), shown))
        return answers.margin[:, 0], ~self._probability(answers)[:, 0].isnan()

    def progress(
        self, frames: Tensor | np.ndarray, instruction: Sequence[str], *, points: int = 8, share: bool = True
    ) -> Tensor:
        """How far each video has got, at evenly spread moments, from one copy of its pictures.

        Args:
            frames: (B, T, H, W, 3) uint8, first frame first.
            instruction: one per video.
            points: how many moments; the last one is the video's last frame.
            share: see :meth:`imagine.rewards.local.LocalVLM.ask`.

        Returns:
            (B, points) float32 in [0, 1]; NaN where the answer is not valid.

        Raises:
            ShapeError: as for :meth:`score`, or fewer than ``points`` frames after the first.
        """
        frames = _checked(frames)
        if not 1 <= points < frames.shape[1]:
            raise ShapeError(
                f"asked for {points} points of {frames.shape[1]} frames, expected 1 to {frames.shape[1] - 1}."
            )
        at = np.linspace(0, frames.shape[1] - 1, points + 1).round().astype(int)
        shown = self._pictures(frames[:, at])
        text = [PROGRESS.fill(i) for i in self._instructions(frames, instruction)]
        asks = [[Ask(t, k + self._extra, YES, NO) for k in range(1, points + 1)] for t in text]
        return self._probability(self.backend.ask(shown, asks, share=share))

    # ---------------------------------------------------------------- inside

    @property
    def _extra(self) -> int:
        """Moments shown before the first one that is judged."""
        return 0 if self._pairs else 1

    def _instructions(self, frames: Tensor, instruction: Sequence[str]) -> list[str]:
        if isinstance(instruction, str) or len(instruction) != len(frames):
            got = f"the text {instruction!r}" if isinstance(instruction, str) else f"{len(instruction)} instructions"
            raise ShapeError(f"got {got} for {len(frames)} clips, expected a list with one per clip.")
        return list(instruction)

    def _pictures(self, frames: Tensor) -> Tensor:
        """(B, 1 + M, H, W, 3), first frame first, to the backend's (B, M', V, G, h, w, 3)."""
        cfg = self.protocol.frames
        shown = [resized(v, cfg.size) for v in views_of(frames, cfg)]
        each = torch.stack(shown, 2)  # (B, 1 + M, V, h, w, 3)
        if not self._pairs:
            return each[:, :, :, None]
        return torch.stack([each[:, :1].expand_as(each[:, 1:]), each[:, 1:]], 3)

    def _score(self, frames: Tensor, instruction: Sequence[str]) -> Score:
        instructions, shown = self._instructions(frames, instruction), self._pictures(frames)
        asked = [p for p in self.protocol.questions if not p.votes]
        voted = [p for p in self.protocol.questions if p.votes]
        p, valid, verdict = {}, {}, {}
        if asked:
            answers = self.backend.ask(shown, self._asks(asked, instructions, shown))
            chance = self._probability(answers)
            for j, prompt in enumerate(asked):
                p[prompt.name], valid[prompt.name] = chance[:, j], ~chance[:, j].isnan()
            first = self.protocol.questions[0]
            if first in asked:
                honest, threshold = self.calibration.apply(answers.margin[:, asked.index(first)].numpy(), instructions)
                success = torch.from_numpy(honest).float()
                p[first.name] = torch.where(valid[first.name], success, torch.nan)
                verdict[first.name] = p[first.name] >= torch.from_numpy(threshold).float()
        for prompt in voted:
            p[prompt.name], verdict[prompt.name] = self._vote(shown, prompt, instructions)
            valid[prompt.name] = ~p[prompt.name].isnan()
        name = self.protocol.questions[0].name
        ok = valid[name]
        done = verdict[name] & ok
        return Score(done.float(), p[name].nan_to_num(0.0), ok, p, terminated=done)

    def _asks(self, prompts: Sequence[Prompt], instructions: Sequence[str], shown: Tensor) -> list[list[Ask]]:
        moments = shown.shape[1]
        return [[Ask(p.fill(i), moments, p.yes, p.no) for p in prompts] for i in instructions]

    def _probability(self, answers: Answers) -> Tensor:
        """(B, J) probability of yes, NaN where it is not valid."""
        good = (answers.coverage >= self.least_coverage) & answers.understood[:, None]
        return torch.where(good, torch.sigmoid(answers.margin), torch.nan)

    def _vote(self, shown: Tensor, prompt: Prompt, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Smoothed mean of the votes (B,), NaN where too few can be read, and the verdict (B,) bool."""
        answers = self.backend.say(
            shown, self._asks([prompt], instructions, shown), prompt.votes, prompt.tokens, prompt.temperature
        )
        p, verdict = torch.full((len(instructions),), torch.nan), torch.zeros(len(instructions), dtype=torch.bool)
        for i, (texts,) in enumerate(answers):
            found = [re.findall(prompt.answer, text.lower()) for text in texts]
            votes = [prompt.scale[f[-1]] for f in found if f]
            if votes and len(votes) >= self.least_coverage * len(texts):
                p[i] = (sum(votes) + 0.5) / (len(votes) + 1)
                verdict[i] = _verdict(votes, prompt) >= 1
        return p, verdict


def _verdict(votes: Sequence[float], prompt: Prompt) -> float:
    """What the votes decide: a strict majority for 1, or the commonest with ties going up or down."""
    if prompt.tie == "majority":
        return float(sum(v >= 1 for v in votes) > len(votes) / 2)
    counts = Counter(votes)
    most = [v for v, n in counts.items() if n == max(counts.values())]
    return max(most) if prompt.tie == "up" else min(most)


def _checked(frames: Tensor | np.ndarray) -> Tensor:
    frames = torch.from_numpy(frames) if isinstance(frames, np.ndarray) else frames
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        raise ShapeError(
            f"frames are {tuple(frames.shape)} {frames.dtype}, expected (B, T, H, W, 3) uint8 in 0 to 255 "
            "with at least one frame; convert them."
        )
    return frames
