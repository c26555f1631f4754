"""What a model with memory learns from: sequences of chunks, most of them on frames that it has just drawn itself.

One pass per chunk over the square of noise levels. Rows that *dream* go on from their own frames, state and memory, so
that what is forgotten in one chunk is missed in the next ones; the other rows are shown what was recorded, at levels
drawn anew for every chunk, so that all questions stay in distribution. Gradients run through the whole sequence.

What a step needs is drawn in advance (:func:`draw_sequences`), so that the loss itself never waits for the processor
and a GPU can replay it as one graph (:mod:`imagine.train.replay`).

Source: training on own rollouts, arXiv:2202.03376 and Self Forcing, arXiv:2506.08009; decoupled levels: UWM,
arXiv:2504.02792.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from imagine.data.windows import Windows
from imagine.model.model import WorldActionModel
from imagine.noise import draw_levels, loss_weight, mix
from imagine.train.losses import JointConfig, disturb, policy_loss
from imagine.types import Chunk, Context, NoiseLevels

FROM_THE_START = 0.3
"""Share of sequences that begin with their episode, as most dreams do."""
MOST_RARE = 16.0
"""Squared deviations (in variances) from which on a cell does not count any more for being unusual."""
_TAKEN = (
    "frame",
    "proprio",
    "action",
    "video_valid",
    "proprio_valid",
    "action_valid",
    "policy_valid",
    "instruction_id",
)


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


def draw_sequences(
    windows: Windows,
    rows: np.ndarray,
    chunks: int,
    cfg: JointConfig,
    generator: torch.Generator,
    demonstrations: np.ndarray | None = None,
) -> dict[str, Tensor]:
    """All that :func:`sequence_loss` needs of sequences of n = ``chunks`` chunks about the windows ``rows`` (B,).

    Returns:
        On the CPU: fields of :class:`imagine.data.windows.WindowBatch` by name, each (n, B, ...), masked after an
        episode's end; ``video_level`` and ``action_level`` (n, B); ``dreams`` (B,) bool, which rows go on from their
        own frames; ``asked`` (B,) int64, after which chunk POLICY is asked; and the fields of ``demonstrations`` (D,),
        if any, with ``shown_`` before their names.
    """
    parts = [_chunk(windows, rows, at) for at in sequence_rows(windows, rows, chunks, generator)]
    out = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    levels = [
        draw_levels(len(rows), cfg.shares, video_shift=cfg.video_shift, generator=generator, pure=cfg.video_pure)
        for _ in parts
    ]
    dreams = torch.rand(len(rows), generator=generator) < cfg.own_frames
    has_action = out["action_valid"].any(2)
    out["video_level"] = torch.where(dreams, 1.0, torch.stack([level.video for level in levels]))
    action = torch.where(dreams, 0.0, torch.stack([level.action for level in levels]))
    out["action_level"] = torch.where(has_action, action, 1.0)
    out["dreams"], out["asked"] = dreams, torch.randint(chunks, (len(rows),), generator=generator)
    if demonstrations is not None:
        shown = windows.batch(demonstrations, with_video=False)
        out |= {f"shown_{name}": getattr(shown, name) for name in _TAKEN}
    return out


def _chunk(windows: Windows, rows: np.ndarray, at: np.ndarray) -> dict[str, Tensor]:
    """Fields of the windows ``at`` (B,); those of what is -1 are masked."""
    batch = windows.batch(np.where(at < 0, rows, at), with_video=False)
    fields = {name: getattr(batch, name) for name in _TAKEN}
    for name in ("video_valid", "proprio_valid", "action_valid", "policy_valid"):
        alive = torch.from_numpy(at >= 0)
        fields[name] = fields[name] & (alive if fields[name].ndim == 1 else alive[:, None])
    return fields


def sequence_loss(
    model: WorldActionModel,
    windows: Windows,
    words: Tensor,
    given: dict[str, Tensor],
    cfg: JointConfig,
    usual: Usual,
    generator: torch.Generator | None,
    *,
    silent: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One training loss over sequences.

    Args:
        model: in training mode.
        windows: of latents; only their video is used.
        words: (I, L) the tokens of all their instructions.
        given: what :func:`draw_sequences` drew, on the model's device.
        cfg: weights, and how observed frames are disturbed.
        usual: weighs cells by how unusual they are.
        generator: of the model's device, for all noise; None is the device's own.
        silent: leave the actions out: the VIDEO question.

    Returns:
        The loss, and its parts by name, on the device.
    """
    run = _Sequence(model, windows, words, cfg, usual, generator, given, silent)
    chunks = len(given["frame"])
    for k in range(chunks):
        run.chunk(k)
    numbers = {name: torch.stack(parts).sum() / chunks for name, parts in run.losses.items()}
    if cfg.policy_passes:
        numbers["policy"] = run.policy()
    weights = {"proprio": cfg.proprio_weight, "action": cfg.action_weight, "policy": cfg.policy_weight}
    weights["pixels"] = cfg.pixel_weight
    total = torch.stack([weights.get(name, 1.0) * value for name, value in numbers.items()]).sum()
    return total, {name: value.detach() for name, value in numbers.items()}


class _Sequence:
    """A batch of sequences under way: what the next chunk stands on, and the losses so far."""

    def __init__(
        self,
        model: WorldActionModel,
        windows: Windows,
        words: Tensor,
        cfg: JointConfig,
        usual: Usual,
        generator: torch.Generator | None,
        given: dict[str, Tensor],
        silent: bool,
    ) -> None:
        self.model, self.windows, self.cfg, self.usual = model, windows, cfg, usual
        self.given, self.silent, self.noise = given, silent, generator
        self.text = model.text(words)
        self.dreams = given["dreams"]
        self.context: Context | None = None
        self.asked: tuple[Context, Tensor, Tensor] | None = None
        self.losses: dict[str, list[Tensor]] = {}

    def _tensors(self, fields: dict[str, Tensor]) -> tuple[Context, Chunk, dict[str, Tensor]]:
        """As :func:`imagine.train.losses.to_tensors`, of windows whose video is looked up here."""
        model, t = self.model, self.model.cfg.context_frames
        video = self.windows.frames(fields["frame"]).float()
        proprio = model.normalise_proprio(fields["proprio"])
        told = fields["instruction_id"][:, None] == torch.arange(len(self.text), device=video.device)
        text = (told.to(self.text) @ self.text.flatten(1)).unflatten(1, self.text.shape[1:])  # no lookup: graphs
        context = Context(video[:, :t], proprio[:, :t], text)
        masks = {
            "action": fields["action_valid"],
            "policy": fields["policy_valid"] & fields["action_valid"],
            "video": fields["video_valid"],
            "proprio": fields["video_valid"] & fields["proprio_valid"][:, None],
        }
        return context, Chunk(video[:, t:], proprio[:, t:], model.normalise_action(fields["action"])), masks

    def chunk(self, k: int) -> None:
        """Add the losses of the k-th chunk, and go on to what follows it."""
        model = self.model
        seen, clean, masks = self._tensors({name: self.given[name][k] for name in _TAKEN})
        context = self._standing_on(seen)
        assert clean.video is not None and clean.proprio is not None and clean.action is not None
        clean = replace(clean, action=self._from_here(clean.action, context, seen))
        noisy, levels = self._noisy(clean, k)
        guess = model.predict(noisy, levels, model.prefill(context))
        assert guess.video is not None and guess.proprio is not None
        self._count(guess, clean, levels, masks)
        if self.cfg.policy_passes:
            self._ask_later(k, context, clean, masks["policy"])
        own = self.dreams[:, None, None]
        video = torch.where(own[..., None, None], guess.video.float(), clean.video)  # type: ignore[arg-type]
        proprio = torch.where(own, guess.proprio.float(), clean.proprio)  # type: ignore[arg-type]
        self.context = model.after(context, video, proprio, guess.memory)

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

    def _noisy(self, clean: Chunk, k: int) -> tuple[Chunk, NoiseLevels]:
        """A chunk at its noise levels, and these: rows that dream are asked DYNAMICS from pure noise."""
        assert clean.video is not None and clean.proprio is not None and clean.action is not None
        video = self.given["video_level"][k]
        levels = NoiseLevels(video.clamp(min=0.02) if self.silent else video, self.given["action_level"][k])
        # Where video is given (INVERSE) it is a little off, as an imagined one would be.
        some = torch.rand(video.shape, generator=self.noise, device=video.device)
        jitter = (levels.video == 0) * self.cfg.context_noise * some

        def mixed(x: Tensor, sigma: Tensor) -> Tensor:
            return mix(x, torch.randn(x.shape, generator=self.noise, device=x.device), sigma)

        shown = (mixed(clean.video, torch.maximum(levels.video, jitter)),)
        shown = (*shown, mixed(clean.proprio, torch.maximum(levels.video, jitter / 2)))  # type: ignore[assignment]
        return Chunk(*shown, None if self.silent else mixed(clean.action, levels.action)), levels

    def _count(self, guess: Chunk, clean: Chunk, levels: NoiseLevels, masks: dict[str, Tensor]) -> None:
        cfg = self.cfg
        assert guess.video is not None and clean.video is not None
        assert guess.proprio is not None and clean.proprio is not None and clean.action is not None
        weight = loss_weight(levels.video, cfg.floor) * (levels.video > 0)
        rare = (1 + cfg.rarity * self.usual.rarity(clean.video)) / (1 + cfg.rarity)
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

    def _ask_later(self, k: int, context: Context, clean: Chunk, valid: Tensor) -> None:
        """Keep the newest frame of the rows that POLICY is asked about after chunk k, as a policy sees it: alone."""
        newest = replace(context, video=context.video[:, -1:].detach(), proprio=context.proprio[:, -1:].detach())
        now = newest.video, newest.proprio, newest.text, clean.action, valid
        if self.asked is None:
            self.asked = replace(newest, memory=None), clean.action, valid  # type: ignore[assignment]
            return
        before = self.asked[0].video, self.asked[0].proprio, self.asked[0].text, *self.asked[1:]
        here = self.given["asked"] == k
        video, proprio, text, action, valid = (
            torch.where(here.view(-1, *[1] * (new.ndim - 1)), new, old)  # type: ignore[union-attr, arg-type]
            for new, old in zip(now, before, strict=True)
        )
        self.asked = Context(video, proprio, text), action, valid

    def policy(self) -> Tensor:
        """The loss of POLICY on those frames, the rows' own among them, and on demonstrations."""
        model, cfg = self.model, self.cfg
        assert self.asked is not None
        context, action, valid = self.asked
        t = model.cfg.context_frames
        twice = replace(
            context, video=context.video.expand(-1, t, -1, -1, -1), proprio=context.proprio.expand(-1, t, -1)
        )
        asked = [(twice, action, valid)]
        if "shown_frame" in self.given:
            shown, clean, masks = self._tensors({name: self.given[f"shown_{name}"] for name in _TAKEN})
            assert clean.action is not None
            asked.append((disturb(shown, cfg, self.noise), clean.action, masks["policy"]))
        losses = [policy_loss(model, c, a, v, model.prefill(c), cfg, self.noise) for c, a, v in asked]
        return torch.stack(losses).mean()
