"""Can this dream be believed? Measured against what really happened under the same actions.

A dream that ignores its actions scores the same with the true and with shuffled ones; one that draws nothing scores
like repeating the last frame; one whose motion is not the commanded motion is betrayed by INVERSE.
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
from imagine.questions import DYNAMICS, INVERSE, POLICY
from imagine.sampler import sample
from imagine.types import Context, DatasetError
from imagine.world.step import follow

Tell = Callable[[int, int], None]


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
    steps: int = 1,
    tell: Tell | None = None,
    actor: WorldActionModel | None = None,
) -> dict[str, np.ndarray]:
    """Per window: error of the dream under true and shuffled actions, of the last frame repeated, of the codec alone.

    Args:
        model: the model.
        windows: canvas windows (built without an encoder) with ``model.cfg.context_frames`` context frames.
        rows: (n,) window numbers.
        steps: denoising steps of the dream.
        tell: progress.
        actor: asked for POLICY; the same model when None.

    Returns:
        ``true``, ``shuffled``, ``copy``, ``codec`` (n,) mean squared errors (:func:`decibel`); ``episode`` (n,);
        ``inverse_r2``, ``inverse_r2_imagined``, ``policy_rms``, ``policy_rms_wrong`` scalars.
    """
    out: dict[str, list[Tensor]] = {}
    real, imagined = _Sums(), _Sums()
    policy = {"policy_rms": [0.0, 0.0], "policy_rms_wrong": [0.0, 0.0]}
    for begin in range(0, len(rows), 64):
        part = rows[begin : begin + 64]
        batch = windows.batch(part)
        context, truth, latents, proprio = encode(model, batch)
        action = model.normalise_action(batch.action.to(model.device))
        cache, seeds = model.prefill(context), [int(r) for r in part]
        valid = batch.video_valid.to(model.device)
        other = torch.roll(torch.arange(len(part)), max(1, len(part) // 2))
        dreams = {
            name: sample(model, DYNAMICS, context, action=a, steps=steps, seeds=seeds, cache=cache)
            for name, a in {"true": action, "shuffled": action[other]}.items()
        }
        shown = {k: model.decode(v.video) for k, v in dreams.items()}  # type: ignore[arg-type]
        shown["copy"] = batch.video[:, model.cfg.context_frames - 1, None].to(model.device).expand_as(truth)
        shown["codec"] = model.decode(latents)
        for name, frames in shown.items():
            out.setdefault(name, []).append(clip_mse(frames, truth, valid))
        out.setdefault("episode", []).append(batch.episode)
        known = batch.action_valid.to(model.device)
        dream = dreams["true"]
        for sums, v, p in ((real, latents, proprio), (imagined, dream.video, dream.proprio)):
            read = sample(model, INVERSE, context, video=v, proprio=p, steps=4, seeds=seeds, cache=cache).action
            sums.add(read, action, known)  # type: ignore[arg-type]
        imitate = (batch.policy_valid & batch.action_valid).to(model.device)
        for name, ctx in {"policy_rms": context, "policy_rms_wrong": _wrong(model, context, batch)}.items():
            read = sample(actor or model, POLICY, ctx, steps=4, seeds=seeds).action
            assert read is not None
            policy[name][0] += float(((read - action).square().mean(2) * imitate).sum())
            policy[name][1] += float(imitate.sum())
        if tell is not None:
            tell(begin + len(part), len(rows))
    scalars = {k: np.sqrt(a / max(b, 1.0)) for k, (a, b) in policy.items()}
    scalars |= {"inverse_r2": real.r2, "inverse_r2_imagined": imagined.r2}
    return {k: torch.cat(v).cpu().numpy() for k, v in out.items()} | {k: np.asarray(v) for k, v in scalars.items()}


def _wrong(model: WorldActionModel, context: Context, batch: WindowBatch) -> Context:
    """The same contexts under another instruction each, going through all that the windows know."""
    names = batch.instructions
    told = [names[(int(i) + 1 + k % max(1, len(names) - 1)) % len(names)] for k, i in enumerate(batch.instruction_id)]
    return replace(context, text=model.embed_text(told))


@torch.inference_mode()
def doubts(
    model: WorldActionModel, windows: Windows, rows: np.ndarray, *, steps: int = 1, inverse: int = 2
) -> np.ndarray:
    """(n,) doubt of one-chunk dreams under recorded actions, as :class:`imagine.world.dream.Dream` reports it.

    Its high quantiles say from where on a dream is less believable than any that starts from real frames.

    Args:
        model: the model.
        windows: latent windows.
        rows: window numbers.
        steps: denoising steps of the dream.
        inverse: denoising steps of the check.
    """
    out = []
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        batch, t = windows.batch(part), model.cfg.context_frames
        proprio = model.normalise_proprio(batch.proprio[:, :t].to(model.device))
        told = [batch.instructions[i] for i in batch.instruction_id]
        context = model.context(batch.video[:, :t].to(model.device, torch.float32), proprio, told)
        action = model.normalise_action(batch.action.to(model.device))
        seeds = [int(r) for r in part]
        out.append(follow(model, context, action, steps=steps, inverse_steps=inverse, seeds=seeds).doubt.cpu().numpy())
    return np.concatenate(out)


@torch.inference_mode()
def horizon(model: WorldActionModel, windows: Windows, chains: np.ndarray, *, steps: int = 1) -> dict[str, Any]:
    """Dream chunk after chunk on its own frames, under the recorded actions, from each episode's first frame.

    Args:
        model: the model.
        windows: canvas windows.
        chains: (E, H) from ``windows.chains``.
        steps: denoising steps.

    Returns:
        ``mse``, ``copy`` (E, H): errors of the dream, and of the first frame held, against what really happened;
        ``frames`` (E, H * F, H, W, 3) uint8 imagined and ``truth`` likewise.

    Raises:
        DatasetError: there is no episode that long.
    """
    if not len(chains):
        raise DatasetError("no held-out episode is long enough for this horizon; record more episodes or fewer chunks.")
    context, *_ = encode(model, windows.batch(chains[:, 0]))
    first = windows.batch(chains[:, 0]).video[:, model.cfg.context_frames - 1, None]
    scores: list[Tensor] = []
    copies: list[Tensor] = []
    seen: list[Tensor] = []
    true: list[Tensor] = []
    for h in range(chains.shape[1]):
        batch = windows.batch(chains[:, h])
        action = model.normalise_action(batch.action.to(model.device))
        dream = sample(model, DYNAMICS, context, action=action, steps=steps, seeds=[int(r) for r in chains[:, h]])
        assert dream.video is not None and dream.proprio is not None
        truth = batch.video[:, model.cfg.context_frames :].to(model.device)
        frames = model.decode(dream.video)
        scores.append(clip_mse(frames, truth))
        copies.append(clip_mse(first.to(model.device).expand_as(truth), truth))
        seen.append(frames)
        true.append(truth)
        context = model.after(context, dream.video, dream.proprio)
    return {
        "mse": torch.stack(scores, 1).cpu().numpy(),
        "copy": torch.stack(copies, 1).cpu().numpy(),
        "frames": torch.cat(seen, 1).cpu().numpy(),
        "truth": torch.cat(true, 1).cpu().numpy(),
    }
