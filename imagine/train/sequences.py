"""What a model with memory learns from: sequences of chunks, most of them on frames that it has just drawn itself.

One pass per chunk over the square of noise levels. Rows that *dream* go on from their own frames, state and memory, so
that what is forgotten in one chunk is missed in the next ones; the other rows are shown what was recorded, at levels
drawn anew for every chunk, so that all questions stay in distribution. Gradients run through the whole sequence.

Source: training on own rollouts, arXiv:2202.03376 and Self Forcing, arXiv:2506.08009; decoupled levels: UWM,
arXiv:2504.02792.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from imagine.data.windows import WindowBatch, Windows
from imagine.model.model import WorldActionModel
from imagine.noise import draw_levels, loss_weight, mix
from imagine.train.losses import JointConfig, disturb, policy_loss, to_tensors
from imagine.types import Chunk, Context, NoiseLevels

FROM_THE_START = 0.3
"""Share of sequences that begin with their episode, as most dreams do."""
MOST_RARE = 16.0
"""Squared deviations (in variances) from which on a cell does not count any more for being unusual."""


@dataclass(frozen=True)
class Usual:
    """What each cell of a dataset's latents looks like as a rule: mean and variance, (C, h, w) each."""

    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, windows: Windows, frames: int = 4000) -> Usual:
        """Measure it on some frames of the training episodes."""
        at = windows.training_frames()
        at = np.sort(np.random.default_rng(0).choice(at, min(frames, len(at)), replace=False))
        video = windows.frames(at).float()
        return cls(video.mean(0), video.var(0, unbiased=False).clamp(min=0.02))

    def rarity(self, video: Tensor) -> Tensor:
        """(B, F, h, w): squared deviation of latents (B, F, C, h, w), about 1 on average, at most ``MOST_RARE``.

        A block or a hand is rare wherever it is; a table is not. Squared errors alone would be spent on the table.
        """
        off = (video - self.mean.to(video)).square() / self.variance.to(video)
        return off.mean(2).clamp(max=MOST_RARE)


def sequence_rows(windows: Windows, rows: np.ndarray, chunks: int, generator: torch.Generator) -> list[np.ndarray]:
    """Window numbers (B,) of each chunk of sequences about ``rows``; -1 after an episode's end."""
    step = windows.embodiment.chunk_frames
    first, last = windows.episode_rows(rows)
    begin = np.maximum(first, np.minimum(rows, last - chunks * step + 1))
    early = (torch.rand(len(rows), generator=generator) < FROM_THE_START).numpy()
    begin = np.where(early, first, begin)
    return [np.where(begin + k * step <= last, begin + k * step, -1) for k in range(chunks)]


def sequence_loss(
    model: WorldActionModel,
    windows: Windows,
    rows: np.ndarray,
    chunks: int,
    cfg: JointConfig,
    usual: Usual,
    generator: torch.Generator,
    demonstrations: WindowBatch | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """One training loss over sequences of ``chunks`` chunks about the windows ``rows``.

    Args:
        model: in training mode; has memory.
        windows: latents.
        rows: (B,) window numbers.
        chunks: per sequence.
        cfg: draws and weights; ``own_frames`` is the share of rows that dream.
        usual: weighs cells by how unusual they are.
        generator: all randomness.
        demonstrations: windows for the POLICY passes.
    """
    run = _Sequence(model, cfg, usual, generator, len(rows))
    asked = int(torch.randint(chunks, (), generator=generator)) if cfg.policy_passes else -1
    # Everything is copied before anything is computed: a copy waits for the device.
    parts = [_chunk(model, windows, rows, at) for at in sequence_rows(windows, rows, chunks, generator)]
    shown = None if demonstrations is None or not cfg.policy_passes else to_tensors(model, demonstrations)
    for k, part in enumerate(parts):
        run.chunk(*part, imitate=k == asked)
    numbers = {name: torch.stack(parts).sum() / chunks for name, parts in run.losses.items() if name != "policy"}
    policy = run.losses.get("policy", [])
    if shown is not None:
        context, clean, masks = shown
        context = disturb(context, cfg, run.noise)
        assert clean.action is not None
        cache = model.prefill(context)
        policy = [*policy, policy_loss(model, context, clean.action, masks["policy"], cache, cfg, generator)]
    if policy:
        numbers["policy"] = torch.stack(policy).mean()
    weights = {"proprio": cfg.proprio_weight, "action": cfg.action_weight, "policy": cfg.policy_weight}
    weights["pixels"] = cfg.pixel_weight
    total = torch.stack([weights.get(name, 1.0) * value for name, value in numbers.items()]).sum()
    logged = torch.stack([v.detach().float() for v in numbers.values()]).tolist()  # one wait for the device, not five
    return total, dict(zip(numbers, logged, strict=True))


def _chunk(
    model: WorldActionModel, windows: Windows, rows: np.ndarray, at: np.ndarray
) -> tuple[Context, Chunk, dict[str, Tensor]]:
    """The windows ``at`` (B,) as :func:`imagine.train.losses.to_tensors`; what is -1 is masked."""
    context, clean, masks = to_tensors(model, windows.batch(np.where(at < 0, rows, at)))
    alive = torch.from_numpy(at >= 0).to(model.device)[:, None]
    return context, clean, {name: mask & alive for name, mask in masks.items()}


class _Sequence:
    """A batch of sequences under way: what the next chunk stands on, and the losses so far."""

    def __init__(
        self, model: WorldActionModel, cfg: JointConfig, usual: Usual, generator: torch.Generator, rows: int
    ) -> None:
        self.model, self.cfg, self.usual, self.generator = model, cfg, usual, generator
        self.noise = torch.Generator(model.device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
        self.dreams = (torch.rand(rows, generator=generator) < cfg.own_frames).to(model.device)
        self.silent = bool(torch.rand((), generator=generator) < cfg.video_only)  # no actions: the VIDEO question
        self.context: Context | None = None
        self.losses: dict[str, list[Tensor]] = {}

    def chunk(self, seen: Context, clean: Chunk, masks: dict[str, Tensor], *, imitate: bool) -> None:
        """Add the losses of the next chunk, and go on to what follows it."""
        model = self.model
        assert clean.video is not None and clean.proprio is not None and clean.action is not None
        context = self._standing_on(seen)
        clean = replace(clean, action=self._from_here(clean.action, context, seen))
        assert clean.action is not None
        cache = model.prefill(context)
        noisy, levels = self._noisy(clean, masks["action"].any(1))
        guess = model.predict(noisy, levels, cache)
        assert guess.video is not None and guess.proprio is not None
        assert clean.video is not None and clean.proprio is not None
        self._count(guess, clean, levels, masks)
        if imitate:
            self._imitate(context, clean.action, masks["policy"])
        own = self.dreams[:, None, None]
        video = torch.where(own[..., None, None], guess.video.float(), clean.video)
        self.context = model.after(context, video, torch.where(own, guess.proprio.float(), clean.proprio), guess.memory)

    def _standing_on(self, seen: Context) -> Context:
        """The rows' own frames where they dream, else what was recorded, a little disturbed."""
        disturbed = disturb(seen, self.cfg, self.noise)
        if self.context is None:
            return disturbed
        own = self.dreams[:, None, None]
        video = torch.where(own[..., None, None], self.context.video, disturbed.video)
        proprio = torch.where(own, self.context.proprio, disturbed.proprio)
        return replace(disturbed, video=video, proprio=proprio, memory=self.context.memory)

    def _from_here(self, action: Tensor, context: Context, seen: Context) -> Tensor:
        """The recorded actions, measured from where a row believes to be; commanded poses stay where they were."""
        off = (seen.proprio[:, -1] - context.proprio[:, -1].detach()) * self.model.proprio_std
        off = off[:, self.model.anchor] * self.model.anchored / self.model.action_std
        return action + (off * self.dreams[:, None])[:, None]

    def _noisy(self, clean: Chunk, has_action: Tensor) -> tuple[Chunk, NoiseLevels]:
        """A chunk at drawn noise levels, and these: rows that dream are asked DYNAMICS from pure noise."""
        cfg, n, device = self.cfg, len(has_action), has_action.device
        assert clean.video is not None and clean.proprio is not None and clean.action is not None
        drawn = draw_levels(
            n, cfg.shares, video_shift=cfg.video_shift, generator=self.generator, pure=cfg.video_pure
        ).to(device)
        video = torch.where(self.dreams, torch.ones_like(drawn.video), drawn.video)
        action = torch.where(self.dreams, torch.zeros_like(drawn.action), drawn.action)
        if self.silent:
            video = video.clamp(min=0.02)
        levels = NoiseLevels(video, torch.where(has_action, action, torch.ones_like(action)))
        # Where video is given (INVERSE) it is a little off, as an imagined one would be.
        jitter = (video == 0) * cfg.context_noise * torch.rand(n, generator=self.noise, device=device)

        def mixed(x: Tensor, sigma: Tensor) -> Tensor:
            return mix(x, torch.randn(x.shape, generator=self.noise, device=device), sigma)

        shown = mixed(clean.video, torch.maximum(video, jitter)), mixed(clean.proprio, torch.maximum(video, jitter / 2))
        return Chunk(*shown, None if self.silent else mixed(clean.action, levels.action)), levels

    def _count(self, guess: Chunk, clean: Chunk, levels: NoiseLevels, masks: dict[str, Tensor]) -> None:
        cfg = self.cfg
        assert guess.video is not None and clean.video is not None
        assert guess.proprio is not None and clean.proprio is not None and clean.action is not None
        weight = loss_weight(levels.video, cfg.floor) * (levels.video > 0)
        rare = 1 + cfg.rarity * self.usual.rarity(clean.video)
        rare = rare / (1 + cfg.rarity)
        error = ((guess.video.float() - clean.video).square().mean(2) * rare).mean((2, 3))
        self._add("video", error, masks["video"], weight)
        if cfg.pixel_weight:
            pixels = self._pixels(guess.video[:, -1], clean.video[:, -1], rare[:, -1])
            self._add("pixels", pixels, masks["video"][:, -1:], weight)
        self._add("proprio", (guess.proprio.float() - clean.proprio).square().mean(2), masks["proprio"], weight)
        if guess.action is not None:
            known = torch.where((levels.video == 0)[:, None], masks["action"], masks["policy"])
            weight = loss_weight(levels.action, cfg.floor) * (levels.action > 0)
            self._add("action", (guess.action.float() - clean.action).square().mean(2), known, weight)

    def _add(self, name: str, error: Tensor, mask: Tensor, weight: Tensor) -> None:
        """The mean of errors (B, n) over the entries that ``mask`` (B, n) keeps, each row times its weight (B,)."""
        mean = (error * mask * weight[:, None]).sum() / mask.sum().clamp(min=1)
        self.losses.setdefault(name, []).append(mean)

    def _pixels(self, guess: Tensor, clean: Tensor, rare: Tensor) -> Tensor:
        """(B, 1) squared error of the newest frames as the codec shows them, in its units of -1 to 1."""
        codec = self.model.codec
        scale, shift = codec.std[:, None, None], codec.mean[:, None, None]
        with torch.no_grad():
            truth = codec.decode_raw(clean * scale + shift).float()
        error = (codec.decode_raw(guess * scale + shift).float() - truth).square().mean(1)
        cells = torch.nn.functional.avg_pool2d(error[:, None], error.shape[-1] // rare.shape[-1])[:, 0]
        return (cells * rare).mean((1, 2))[:, None]

    def _imitate(self, context: Context, action: Tensor, valid: Tensor) -> None:
        """The POLICY question on the rows' newest frames, alone as a policy sees them, their own among them."""
        newest = replace(
            context,
            video=context.video[:, -1:].detach().expand_as(context.video),
            proprio=context.proprio[:, -1:].detach().expand_as(context.proprio),
            memory=None,
        )
        cache = self.model.prefill(newest)
        loss = policy_loss(self.model, newest, action, valid, cache, self.cfg, self.generator)
        self.losses.setdefault("policy", []).append(loss)
