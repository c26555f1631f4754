"""How far a dream can be believed, measured against what really happened under the same actions.

A dream that ignores its actions scores the same with the true and with shuffled ones; one that draws nothing scores
like repeating the last frame; one whose motion is not the commanded motion has a low INVERSE R^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagine.data.windows import WindowBatch, Windows
from imagine.model.model import WorldActionModel
from imagine.questions import INVERSE, POLICY
from imagine.sampler import sample
from imagine.types import Context, DatasetError
from imagine.world.step import DreamConfig, predict_chunk

Progress = Callable[[int, int], None]
BATCH = 64
"""Windows per batch of a measurement."""

_DEFAULT = DreamConfig()


def clip_mse(a: Tensor, b: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean squared error per clip, (B,), of uint8 frames (B, F, H, W, 3) where ``valid`` (B, F) is True."""
    mse = (a.float() - b.float()).square().flatten(2).mean(2)
    keep = torch.ones_like(mse) if valid is None else valid.float()
    return (mse * keep).sum(1) / keep.sum(1).clamp(min=1)


def decibel(mse: np.ndarray | float) -> float:
    """Peak signal-to-noise ratio of uint8 frames whose squared errors average to ``mse``.

    Errors are pooled before the logarithm: where nothing moves, a still frame is perfect, and averaging decibels over
    clips would let a few such clips outweigh everything that happens.
    """
    return float(10 * np.log10(255.0**2 / max(float(np.mean(mse)), 1e-3)))


class _Sums:
    """R^2 pooled over dimensions, each normalised; sums are kept so that batches add up."""

    def __init__(self) -> None:
        self.error, self.total = 0.0, 0.0

    def add(self, read: Tensor, true: Tensor, mask: Tensor) -> None:
        m = mask[..., None].float()
        self.error += float(((read - true).square() * m).sum())
        mean = (true * m).sum((0, 1)) / m.sum().clamp(min=1)
        self.total += float(((true - mean).square() * m).sum())

    @property
    def r2(self) -> float:
        return 1 - self.error / max(self.total, 1e-9)


def encode(model: WorldActionModel, batch: WindowBatch) -> tuple[Context, Tensor, Tensor, Tensor]:
    """A batch of canvas windows as (context, true frames uint8, true latents, true proprioception)."""
    t = model.cfg.context_frames
    canvas = batch.video.to(model.device)
    latents = model.codec.encode(canvas.flatten(0, 1)).unflatten(0, canvas.shape[:2])
    proprio = model.normalise_proprio(batch.proprio.to(model.device))
    context = model.context(latents[:, :t], proprio[:, :t], [batch.instructions[i] for i in batch.instruction_id])
    return context, canvas[:, t:], latents[:, t:], proprio[:, t:]


@torch.inference_mode()
def one_chunk(
    model: WorldActionModel,
    windows: Windows,
    rows: np.ndarray,
    *,
    cfg: DreamConfig = _DEFAULT,
    on_progress: Progress | None = None,
    actor: WorldActionModel | None = None,
) -> dict[str, np.ndarray]:
    """Per window: error of the dream under true and shuffled actions, of the last frame repeated, of the codec alone.

    Args:
        model: the model.
        windows: canvas windows (built without an encoder) with ``model.cfg.context_frames`` context frames.
        rows: (n,) window numbers.
        cfg: denoising steps of the dream and of INVERSE, at least 1 of each.
        on_progress: called with how many windows are done, and how many there are.
        actor: asked for POLICY; the same model when None.

    Returns:
        ``true``, ``shuffled``, ``copy``, ``codec`` (n,) mean squared errors (:func:`decibel`); ``episode`` (n,);
        ``inverse_r2``, ``inverse_r2_imagined``, ``policy_rms``, ``policy_rms_wrong`` scalars.
    """
    measured = _OneChunk(model, actor or model, cfg)
    for begin in range(0, len(rows), BATCH):
        part = rows[begin : begin + BATCH]
        measured.add(windows.batch(part), [int(r) for r in part])
        if on_progress is not None:
            on_progress(begin + len(part), len(rows))
    return measured.numbers()


class _OneChunk:
    """What :func:`one_chunk` gives, added up batch by batch."""

    def __init__(self, model: WorldActionModel, actor: WorldActionModel, cfg: DreamConfig) -> None:
        self.model, self.actor = model, actor
        self.cfg = cfg.model_copy(update={"inverse_steps": max(1, cfg.inverse_steps)})
        self.errors: dict[str, list[Tensor]] = {}
        self.inverse = {"inverse_r2": _Sums(), "inverse_r2_imagined": _Sums()}
        self.policy = {"policy_rms": [0.0, 0.0], "policy_rms_wrong": [0.0, 0.0]}

    def add(self, batch: WindowBatch, seeds: list[int]) -> None:
        """Dream a batch of windows under its own and under other actions."""
        model, cfg = self.model, self.cfg
        context, truth, latents, proprio = encode(model, batch)
        action = model.normalise_action(batch.action.to(model.device))
        cache, other = model.prefill(context), torch.roll(torch.arange(len(seeds)), max(1, len(seeds) // 2))
        dream = predict_chunk(model, context, action, cfg, seeds=seeds, cache=cache)
        shuffled = predict_chunk(model, context, action[other], _unchecked(cfg), seeds=seeds, cache=cache)
        real = sample(
            model, INVERSE, context, video=latents, proprio=proprio, steps=cfg.inverse_steps, seeds=seeds, cache=cache
        )
        for total, read in zip(self.inverse.values(), (real.action, dream.inverse), strict=True):
            assert read is not None
            total.add(read, action, batch.action_valid.to(model.device))
        shown = {
            "true": model.decode(dream.video),
            "shuffled": model.decode(shuffled.video),
            "copy": batch.video[:, model.cfg.context_frames - 1, None].to(model.device).expand_as(truth),
            "codec": model.decode(latents),
        }
        for name, frames in shown.items():
            self.errors.setdefault(name, []).append(clip_mse(frames, truth, batch.video_valid.to(model.device)))
        self.errors.setdefault("episode", []).append(batch.episode)
        self._add_policy((context, _wrong(model, context, batch)), batch, action, seeds)

    def _add_policy(
        self, contexts: tuple[Context, Context], batch: WindowBatch, action: Tensor, seeds: list[int]
    ) -> None:
        """The squared errors of POLICY, and their number, where the policy is to imitate the recording."""
        imitate = (batch.policy_valid & batch.action_valid).to(action.device)
        for sums, context in zip(self.policy.values(), contexts, strict=True):
            read = sample(self.actor, POLICY, context, steps=4, seeds=seeds).action
            assert read is not None
            sums[0] += float(((read - action).square().mean(2) * imitate).sum())
            sums[1] += float(imitate.sum())

    def numbers(self) -> dict[str, np.ndarray]:
        """See :func:`one_chunk`."""
        scalars = {k: v.r2 for k, v in self.inverse.items()}
        scalars |= {k: float(np.sqrt(a / max(b, 1.0))) for k, (a, b) in self.policy.items()}
        each = {k: torch.cat(v).cpu().numpy() for k, v in self.errors.items()}
        return each | {k: np.asarray(v) for k, v in scalars.items()}


def _unchecked(cfg: DreamConfig) -> DreamConfig:
    return cfg.model_copy(update={"inverse_steps": 0})


def _wrong(model: WorldActionModel, context: Context, batch: WindowBatch) -> Context:
    """The same contexts under another instruction each, going through all that the windows know."""
    names = batch.instructions
    others = [names[(int(i) + 1 + k % max(1, len(names) - 1)) % len(names)] for k, i in enumerate(batch.instruction_id)]
    return replace(context, text=model.embed_text(others))


@torch.inference_mode()
def inverse_errors(
    model: WorldActionModel, windows: Windows, rows: np.ndarray, cfg: DreamConfig = _DEFAULT
) -> np.ndarray:
    """(n,) inverse errors of one-chunk dreams under recorded actions, as :class:`imagine.world.dream.Dream` has them.

    Their high quantiles say from where on a dream is less believable than any that starts from real frames.

    Args:
        model: the model.
        windows: latent windows.
        rows: window numbers.
        cfg: denoising steps of the dream and of INVERSE, at least 1 of each.
    """
    out = []
    for part in np.array_split(rows, max(1, len(rows) // BATCH)):
        batch, t = windows.batch(part), model.cfg.context_frames
        proprio = model.normalise_proprio(batch.proprio[:, :t].to(model.device))
        instructions = [batch.instructions[i] for i in batch.instruction_id]
        context = model.context(batch.video[:, :t].to(model.device, torch.float32), proprio, instructions)
        action, seeds = model.normalise_action(batch.action.to(model.device)), [int(r) for r in part]
        chunk = predict_chunk(model, context, action, cfg, seeds=seeds)
        assert chunk.inverse_error is not None
        out.append(chunk.inverse_error.cpu().numpy())
    return np.concatenate(out)


@torch.inference_mode()
def horizon(
    model: WorldActionModel, windows: Windows, chains: np.ndarray, cfg: DreamConfig = _DEFAULT
) -> dict[str, Any]:
    """Dream chunk after chunk on its own frames, under the recorded actions, from each episode's first frame.

    Args:
        model: the model.
        windows: canvas windows.
        chains: (E, H) from ``windows.chains``.
        cfg: denoising steps of the dream.

    Returns:
        ``mse``, ``copy`` (E, H): errors of the dream, and of the first frame held, against what really happened;
        ``frames`` (E, H * F, H, W, 3) uint8 imagined and ``truth`` likewise.

    Raises:
        DatasetError: there is no episode that long.
    """
    if not len(chains):
        raise DatasetError("no held-out episode is long enough for this horizon; record more episodes or fewer chunks.")
    context, *_ = encode(model, windows.batch(chains[:, 0]))
    first = windows.batch(chains[:, 0]).video[:, model.cfg.context_frames - 1, None].to(model.device)
    parts: list[tuple[Tensor, ...]] = []
    for h in range(chains.shape[1]):
        batch, seeds = windows.batch(chains[:, h]), [int(r) for r in chains[:, h]]
        action = model.normalise_action(batch.action.to(model.device))
        chunk = predict_chunk(model, context, action, _unchecked(cfg), seeds=seeds)
        truth = batch.video[:, model.cfg.context_frames :].to(model.device)
        frames = model.decode(chunk.video)
        parts.append((clip_mse(frames, truth), clip_mse(first.expand_as(truth), truth), frames, truth))
        context = model.after(context, chunk.video, chunk.proprio, chunk.memory)
    mse, copy, shown, true = zip(*parts, strict=True)
    return {
        "mse": torch.stack(mse, 1).cpu().numpy(),
        "copy": torch.stack(copy, 1).cpu().numpy(),
        "frames": torch.cat(shown, 1).cpu().numpy(),
        "truth": torch.cat(true, 1).cpu().numpy(),
    }
