"""Trains judge-tiny: a small vision-language model that answers questions about any two moments of an episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MethodType

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.labels import Clips, ClipSource, Hindsight
from imagine.rewards.calibrate import auroc
from imagine.rewards.local import Ask, LocalVLM
from imagine.rewards.pictures import QwenPictures
from imagine.rewards.prompts import CONTACT, HOLDING, NO, PROGRESS, SAFETY, SUCCESS, YES, Prompt
from imagine.rewards.tiny import TinyConfig, build_tiny, teach_words
from imagine.rewards.vlm import judge_folder
from imagine.train.fit import FitConfig, fit

QUESTIONS: tuple[tuple[Prompt, float], ...] = (
    (SUCCESS, 0.6), (PROGRESS, 0.16), (HOLDING, 0.08), (CONTACT, 0.08), (SAFETY, 0.08)
)  # fmt: skip


class VLMConfig(BaseModel):
    """What judge-tiny is and what it is shown while it learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tiny: TinyConfig = TinyConfig()
    moments: int = 2  # pictures per clip
    asked: int = 2  # questions per moment
    init: str = ""  # a judge to go on from, instead of a random one
    dreams: int = 6000  # recorded moments to dream on from; 0 leaves them out
    chunks: int = 5  # how far
    rollouts: int = 0  # rollouts of good, clumsy and misled policies in the dream, labelled by the simulator
    first_seed: int = 700_000  # of their starts
    dreamt: float = 0.5  # share of clips that are imagined
    backwards: float = 0.1
    frozen: float = 0.05
    state: float = 0.5  # weight of the auxiliary loss


class StateReader(nn.Module):
    """Tells the true state, and how it changed, from the visual tokens; helps to learn, and is then thrown away."""

    mean: Tensor
    std: Tensor

    def __init__(self, vlm: LocalVLM, example: Clips) -> None:
        """The ``example`` tells how large pictures are, and brings states and their changes to one scale."""
        super().__init__()
        assert isinstance(vlm.pictures, QwenPictures)
        states, (height, width) = example.truth[:, 0], example.first.shape[1:3]
        grid = vlm.pictures.grid(torch.zeros(1, 1, 1, 2, height, width, 3))
        self.tokens = grid[0] * grid[1] // vlm.pictures.merge**2
        self.read = nn.Linear(self.tokens * vlm.model.config.text_config.hidden_size, 2 * states.shape[1])
        self.register_buffer("mean", torch.from_numpy(states.mean(0)).float())
        self.register_buffer("std", torch.from_numpy(states.std(0)).float().clamp(min=1e-3))
        vlm.model.model.visual.merger.register_forward_hook(self._keep)
        self.tokens_of_pictures = torch.empty(0)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.tokens_of_pictures = output

    def loss(self, clips: Clips) -> Tensor:
        """Smooth L1, in standard deviations, of what is read from the pictures last shown, (N, M) of them."""
        read = self.read(self.tokens_of_pictures.unflatten(0, (-1, self.tokens)).flatten(1)).float()
        now = torch.from_numpy(clips.truth).to(read)
        before = torch.from_numpy(np.ascontiguousarray(clips.before)).to(read)[:, None]
        wanted = torch.cat([(now - self.mean) / self.std, (now - before) / self.std], -1)
        return F.smooth_l1_loss(read.reshape(wanted.shape), wanted.clamp(-5, 5))


def train_vlm(
    hindsight: Hindsight,
    sources: Sequence[ClipSource],
    held: Mapping[str, ClipSource],
    cfg: VLMConfig,
    run: FitConfig,
    folder: Path,
) -> LocalVLM:
    """Train a judge-tiny; held-out numbers go to ``metrics.json``.

    Args:
        hindsight: knows the answers.
        sources: of clips; all but the first are imagined and share ``cfg.dreamt`` of a batch.
        held: held-out ones by a prefix of their numbers' names.
        cfg: what it is and what it is shown.
        run: how long and how fast.
        folder: resumes what it holds.
    """
    torch.manual_seed(run.seed)
    asked = [prompt.fill(text) for prompt, _ in QUESTIONS for text in hindsight.instructions()]
    known = [*asked, "yes no"]
    vlm = teach_words(LocalVLM.load(judge_folder(cfg.init)), known) if cfg.init else build_tiny(cfg.tiny, known)
    embed_by_product(vlm)
    example = sources[0].draw(np.arange(min(256, len(sources[0]))), np.random.default_rng(run.seed), 1)
    reader, others = StateReader(vlm, example), len(sources) - 1
    imagined = round(run.batch * cfg.dreamt) // others if others else 0
    shares = [run.batch - imagined * others] + [imagined] * others

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([run.seed, step])
        drawn = [s.draw(rng.integers(len(s), size=n), rng, cfg.moments) for s, n in zip(sources, shares, strict=True)]
        clips = Clips.cat(drawn)
        asks, target = draw_questions(hindsight, clips, rng, cfg.asked)
        vlm.model.train()
        answers, states = answer_loss(vlm, clips.pictures(), asks, target), reader.loss(clips)
        return answers + cfg.state * states, {"answers": answers.item(), "state": states.item()}

    def evaluate(ema: nn.Module) -> dict[str, float]:
        return _held_out(_judge_of(ema, vlm), hindsight, held)

    learner = nn.ModuleDict({"judge": vlm.model, "state": reader})
    return _judge_of(fit(learner, loss, run, folder, evaluate=evaluate, name="judge-tiny"), vlm)


def _held_out(judge: LocalVLM, hindsight: Hindsight, held: Mapping[str, ClipSource]) -> dict[str, float]:
    """:func:`quality` on each of the held-out sources."""
    numbers = dict[str, float]()
    for name, source in held.items():
        rng = np.random.default_rng(1)
        clips = source.draw(rng.integers(len(source), size=600), rng, 1)
        numbers |= {f"{name}_{k}": v for k, v in quality(judge, hindsight, clips, rng).items()}
    return numbers


def embed_by_product(vlm: LocalVLM) -> None:
    """Embed patches by a matrix product: the same numbers as the convolution, whose CPU gradient is slow."""
    embed = vlm.model.model.visual.patch_embed

    def forward(self: nn.Module, patches: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)  # type: ignore[union-attr, operator]
        return F.linear(patches.to(weight.dtype).reshape(-1, weight.shape[1]), weight, self.proj.bias)  # type: ignore

    embed.forward = MethodType(forward, embed)  # bound, so that a copy of the model uses its own weights


def _judge_of(learner: nn.Module, vlm: LocalVLM) -> LocalVLM:
    assert isinstance(learner, nn.ModuleDict)
    return LocalVLM(learner["judge"], vlm.tokenizer, vlm.pictures)


def draw_questions(
    hindsight: Hindsight, clips: Clips, rng: np.random.Generator, asked: int
) -> tuple[list[list[Ask]], np.ndarray]:
    """Draw ``asked`` questions at each moment of each clip, and their true answers (N, M * asked) in [0, 1].

    Half are drawn to be answered yes, near-misses three times as often as other failures.
    """
    names, moments = hindsight.instructions(), clips.truth.shape[1]
    truths = _answers(hindsight, np.broadcast_to(clips.before[:, None], clips.truth.shape), clips.truth)
    prompts = [(prompt, share) for prompt, share in QUESTIONS if prompt.name in truths]
    shares = np.array([share for _, share in prompts]) / sum(share for _, share in prompts)
    done, far = truths["success"].astype(bool), truths.get("progress", truths["success"])
    near_miss = np.where((far > 0.4) & ~done, 3.0, 1.0) * np.where(truths["possible"] > 0, 1.0, 0.1)
    asks, target = [], np.zeros((len(clips.first), moments * asked), np.float32)
    for i in range(len(target)):
        row = []
        for j in range(moments * asked):
            m, prompt = j // asked, prompts[int(rng.choice(len(prompts), p=shares))][0]
            answer, weight = truths[prompt.name][i, m], near_miss[i, m]
            if prompt is not PROGRESS:
                side = weight * (answer.astype(bool) == (rng.uniform() < 0.5))
                weight = side if side.sum() > 0 else weight
            t = int(rng.choice(len(names), p=weight / weight.sum()))
            row.append(Ask(prompt.fill(names[t]), m + 1, YES, NO))
            target[i, j] = answer[t]
        asks.append(row)
    return asks, target


def _answers(hindsight: Hindsight, before: np.ndarray, now: np.ndarray) -> dict[str, np.ndarray]:
    """Answers (..., instructions) by name of question."""
    each = [hindsight.answers(before, now, text) for text in hindsight.instructions()]
    return {name: np.stack([answer[name] for answer in each], -1) for name in each[0]}


def answer_loss(vlm: LocalVLM, pictures: Tensor, asks: list[list[Ask]], target: np.ndarray) -> Tensor:
    """Cross-entropy of the next token against yes with probability ``target`` and no with the rest."""
    chance = F.log_softmax(vlm.answer_logits(pictures, asks).float(), -1)
    yes, no = (vlm.tokenizer.convert_tokens_to_ids(w) for w in ("yes", "no"))
    wanted = torch.from_numpy(target).to(chance)
    return -(wanted * chance[..., yes] + (1 - wanted) * chance[..., no]).mean()


def quality(judge: LocalVLM, hindsight: Hindsight, clips: Clips, rng: np.random.Generator) -> dict[str, float]:
    """Of one-moment clips: AUROC of success (balanced questions) and progress error."""
    truths, n = _answers(hindsight, clips.before, clips.truth[:, 0]), len(clips.first)
    done, possible = truths["success"].astype(bool), truths["possible"] > 0
    picked = np.array([rng.choice(np.flatnonzero(d) if d.any() and rng.uniform() < 0.5 else np.flatnonzero(p))
                       for d, p in zip(done, possible, strict=True)])  # fmt: skip
    label, names = done[np.arange(n), picked], hindsight.instructions()
    pictures, margins = clips.pictures(), []
    for part in np.array_split(np.arange(n), max(1, n // 64)):
        asks = [[Ask(p.fill(names[picked[i]]), 1, YES, NO) for p in (SUCCESS, PROGRESS)] for i in part]
        margins.append(judge.ask(pictures[part], asks).margin.numpy())
    success, progress = np.concatenate(margins).T
    numbers = {"auroc": auroc(success, label), "accuracy": float(((success > 0) == label).mean())}
    if "progress" in truths:
        error = 1 / (1 + np.exp(-progress)) - truths["progress"][np.arange(n), picked]
        numbers["progress_error"] = float(np.abs(error).mean())
    return {**numbers, "base_rate": float(label.mean())}
