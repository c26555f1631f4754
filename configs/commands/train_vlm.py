"""Trains judge-tiny: a small vision-language model that answers questions about any two moments of the table.

Half of its clips are real, some of them run backwards or stand still; the others are imagined, labelled with what
really happened under the same actions.
"""

from __future__ import annotations

from pathlib import Path
from types import MethodType

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.configs.commands.judge_clips import QUESTIONS, TASKS, Clips, Dreamt, Recorded, Rolled, questions
from imagine.configs.commands.worlds import bar
from imagine.configs.material import rollouts
from imagine.data.windows import Windows, WindowSampler
from imagine.model.model import WorldActionModel
from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.policy.robots.g1_table.tasks import FAMILIES, PUSH_DISTANCE
from imagine.policy.robots.g1_table.truth import accomplished, held, is_there, place, progress, touched
from imagine.rewards.calibrate import auroc
from imagine.rewards.local import Ask, LocalVLM
from imagine.rewards.pictures import QwenPictures
from imagine.rewards.prompts import NO, PROGRESS, SUCCESS, YES
from imagine.rewards.tiny import TinyConfig, build_tiny
from imagine.rewards.vlm import judge_folder
from imagine.train.fit import FitConfig, fit
from imagine.types import DatasetError, ImagineError

CENTRE, SPREAD = np.array([0.42, 0.0, 0.65]), np.array([0.1, 0.2, 0.05])  # of blocks on the table, m


class VLMConfig(BaseModel):
    """What judge-tiny is and what it is shown while it learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tiny: TinyConfig = TinyConfig()
    moments: int = 2  # pictures per clip
    asked: int = 2  # questions per moment
    init: str = ""  # a judge to go on from, instead of a random one
    dreams: int = 6000  # recorded moments to dream on from; 0 leaves them out
    chunks: int = 5  # how far
    rollouts: int = 0  # rollouts of good, clumsy and misled policies in the dream, labelled by the twin
    rollout_seed: int = 700_000
    dreamt: float = 0.5  # share of clips that are imagined
    backwards: float = 0.1
    frozen: float = 0.05
    sight: float = 0.5  # weight of the auxiliary loss


class Sight(nn.Module):
    """Tells from the visual tokens where every block is and how it moved; helps to learn, and is then thrown away."""

    def __init__(self, vlm: LocalVLM, grid: tuple[int, int]) -> None:
        super().__init__()
        assert isinstance(vlm.pictures, QwenPictures)
        self.tokens = grid[0] * grid[1] // vlm.pictures.merge**2
        self.read = nn.Linear(self.tokens * vlm.model.config.text_config.hidden_size, len(COLOURS) * 8)
        vlm.model.model.visual.merger.register_forward_hook(self._keep)
        self.seen = torch.empty(0)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen = output

    def loss(self, clips: Clips) -> Tensor:
        """Of the pictures last shown, (N, M) of them, against what was true."""
        said = self.read(self.seen.unflatten(0, (-1, self.tokens)).flatten(1)).float()
        said = said.reshape(*clips.truth.shape[:2], len(COLOURS), 8)
        before = np.broadcast_to(clips.before[:, None], clips.truth.shape)
        there = np.stack([is_there(before, c) for c in COLOURS], -1)
        now = np.stack([(place(clips.truth, c) - CENTRE) / SPREAD for c in COLOURS], -2)
        moved = np.stack([(place(clips.truth, c) - place(before, c))[..., :2] / PUSH_DISTANCE for c in COLOURS], -2)
        touch = np.stack([[touched(clips.truth, c), held(clips.truth, c)] for c in COLOURS], 0).transpose(2, 3, 0, 1)
        wanted = torch.from_numpy(np.concatenate([now, moved], -1)).to(said)
        flags = torch.from_numpy(np.concatenate([touch, there[..., None]], -1)).to(said)
        known = torch.from_numpy(there).to(said)[..., None]
        places = (F.smooth_l1_loss(said[..., :5], wanted, reduction="none") * known).sum() / known.sum().clamp(min=1)
        return places + F.binary_cross_entropy_with_logits(said[..., 5:], flags)


def _as_linear(vlm: LocalVLM) -> None:
    """Embed patches by a matrix product: the same numbers as the convolution, whose CPU gradient is slow."""
    embed = vlm.model.model.visual.patch_embed

    def forward(self: nn.Module, patches: Tensor) -> Tensor:
        weight = self.proj.weight.flatten(1)  # type: ignore[union-attr, operator]
        return F.linear(patches.to(weight.dtype).reshape(-1, weight.shape[1]), weight, self.proj.bias)  # type: ignore

    embed.forward = MethodType(forward, embed)  # bound, so that a copy of the model uses its own weights


def train_vlm(
    model: WorldActionModel, dreamer: str | Path, windows: Windows, cfg: VLMConfig, run: FitConfig, folder: Path
) -> LocalVLM:
    """Train a judge-tiny on canvas windows and on what ``model``, of folder ``dreamer``, imagines.

    Held-out numbers go to ``metrics.json``.

    Raises:
        DatasetError: the dataset does not record the true state.
    """
    if not windows.newest(windows.rows()[:1])[1].shape[-1]:
        raise DatasetError(
            "the dataset records no observation.environment_state, which the judge's labels are read from; "
            "collect it again with `imagine collect`."
        )
    torch.manual_seed(run.seed)
    asked = [p.fill(t.instruction) for p, _ in QUESTIONS for t in TASKS]
    vlm = LocalVLM.load(judge_folder(cfg.init)) if cfg.init else build_tiny(cfg.tiny, [*asked, "yes no"])
    train, held_out = windows.rows("train"), windows.rows("held_out")
    held_out = held_out if len(held_out) else train  # a dataset of one episode holds nothing out
    both = _imagined(model, dreamer, windows, cfg, run.seed)
    _as_linear(vlm)
    height, width = windows.video.shape[1:3]
    sight = Sight(vlm, vlm.pictures.grid(torch.zeros(1, 1, 1, 2, height, width, 3)))
    learner = nn.ModuleDict({"judge": vlm.model, "sight": sight})
    imagined_share = round(run.batch * cfg.dreamt) // len(both)
    real = [Recorded(windows, rows, cfg.backwards, cfg.frozen) for rows in (train, held_out)]
    sources: list[Recorded | Dreamt | Rolled] = [real[0], *(seen for seen, _ in both)]
    shares = [run.batch - imagined_share * len(both)] + [imagined_share] * len(both)
    orders = [WindowSampler(np.arange(len(s)), n, seed=run.seed) for s, n in zip(sources, shares, strict=True)]

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([run.seed, step])
        drawn = zip(sources, orders, strict=True)
        parts = [source.draw(order.at(step), rng, cfg.moments) for source, order in drawn]
        clips = Clips(*(np.concatenate(pair) for pair in zip(*(vars(p).values() for p in parts), strict=True)))
        asks, target = questions(clips, rng, cfg.asked)
        vlm.model.train()
        answers = answer_loss(vlm, clips.pictures(), asks, target)
        places = sight.loss(clips)
        return answers + cfg.sight * places, {"answers": answers.item(), "sight": places.item()}

    held = {"real": real[1]} | {"rollout" if isinstance(kept, Rolled) else "imagined": kept for _, kept in both}

    def evaluate(ema: nn.Module) -> dict[str, float]:
        judge = _judge_of(ema, vlm)
        numbers: dict[str, float] = {}
        for name, source in held.items():
            rng = np.random.default_rng(1)
            clips = source.draw(rng.integers(len(source), size=600), rng, 1)  # type: ignore[attr-defined]
            numbers |= {f"{name}_{k}": v for k, v in quality(judge, clips, rng).items()}
        return numbers

    return _judge_of(fit(learner, loss, run, folder, evaluate=evaluate, name="judge-tiny"), vlm)


def _imagined(
    model: WorldActionModel, dreamer: str | Path, windows: Windows, cfg: VLMConfig, seed: int
) -> list[tuple[Dreamt | Rolled, Dreamt | Rolled]]:
    """Imagined clips to learn from and held-out ones of the same kind, for each kind that the recipe asks for."""
    rng, out = np.random.default_rng(seed), list[tuple[Dreamt | Rolled, Dreamt | Rolled]]()
    if cfg.dreams:
        kept = []
        train, held_out = windows.rows("train"), windows.rows("held_out")
        for rows, n in ((train, cfg.dreams), (held_out if len(held_out) else train, max(64, cfg.dreams // 10))):
            begin = rng.permutation(rows)[:n]
            whole = rng.uniform(size=len(begin)) < 0.3
            begin = np.where(whole, windows.episode_rows(begin)[0], begin)
            kept.append(Dreamt(model, windows, begin, cfg.chunks))
        out.append((kept[0], kept[1]))
    if cfg.rollouts:
        first = cfg.rollout_seed
        kinds = ("base", "clumsy", "clumsy", "misled")
        rolled = []
        for at, n in ((first, cfg.rollouts), (first + cfg.rollouts, max(16, cfg.rollouts // 8))):
            seeds = list(range(at, at + n))
            with bar("rolling out for the judge") as tell:
                rolled.append(Rolled(rollouts(model, dreamer, seeds, tell, kinds=kinds), cfg.backwards))
        out.append((rolled[0], rolled[1]))
    if not out:
        raise ImagineError("vlm.dreams and vlm.rollouts are both 0, expected one of them; a judge must know dreams.")
    return out


def _judge_of(learner: nn.Module, vlm: LocalVLM) -> LocalVLM:
    assert isinstance(learner, nn.ModuleDict)
    return LocalVLM(learner["judge"], vlm.tokenizer, vlm.pictures)


def answer_loss(vlm: LocalVLM, pictures: Tensor, asks: list[list[Ask]], target: np.ndarray) -> Tensor:
    """Cross-entropy of the next token against yes with probability ``target`` and no with the rest."""
    logits = vlm.answer_logits(pictures, asks)
    said = F.log_softmax(logits.float(), -1)
    yes, no = (vlm.tokenizer.convert_tokens_to_ids(w) for w in ("yes", "no"))
    wanted = torch.from_numpy(target).to(said)
    return -(wanted * said[..., yes] + (1 - wanted) * said[..., no]).mean()


def quality(judge: LocalVLM, clips: Clips, rng: np.random.Generator) -> dict[str, float]:
    """Of one-moment clips: AUROC of success (balanced questions), overall and by family, and progress error."""
    n = len(clips.first)
    done = np.stack([accomplished(clips.before, clips.truth[:, 0], t) for t in TASKS], -1)
    there = np.stack([is_there(clips.before, t.colour) for t in TASKS], -1)
    picked = np.array([rng.choice(np.flatnonzero(d) if d.any() and rng.uniform() < 0.5 else np.flatnonzero(p))
                       for d, p in zip(done, there, strict=True)])  # fmt: skip
    label = done[np.arange(n), picked]
    far = np.array([progress(b, t[0], TASKS[k]) for b, t, k in zip(clips.before, clips.truth, picked, strict=True)])
    pictures, margins = clips.pictures(), []
    for part in np.array_split(np.arange(n), max(1, n // 64)):
        asks = [[Ask(p.fill(TASKS[picked[i]].instruction), 1, YES, NO) for p in (SUCCESS, PROGRESS)] for i in part]
        margins.append(judge.ask(pictures[part], asks).margin.numpy())
    margin = np.concatenate(margins)
    family = np.array([TASKS[k].family for k in picked])
    numbers = {"auroc": auroc(margin[:, 0], label), "accuracy": float(((margin[:, 0] > 0) == label).mean())}
    both = [f for f in FAMILIES if 0 < label[family == f].mean() < 1]
    numbers |= {f"auroc_{f}": auroc(margin[family == f, 0], label[family == f]) for f in both}
    said = 1 / (1 + np.exp(-margin[:, 1]))
    return {**numbers, "progress_error": float(np.abs(said - far).mean()), "base_rate": float(label.mean())}
