"""What the joint model learns from: video, proprioception and actions at decoupled noise levels.

What it departs from in DreamZero: levels are drawn per modality (UWM), so the checkpoint answers all five questions;
observed frames are encoded once per step and shared by the passes with and without video tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from imagine.data.windows import WindowBatch, Windows
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel
from imagine.noise import Shares, draw_levels, loss_weight, mix
from imagine.questions import DYNAMICS
from imagine.sampler import sample
from imagine.types import Chunk, Context, NoiseLevels

POLICY_PURE = 0.6
"""Share of POLICY levels at pure noise: only there the answer must come from the observation."""


class JointConfig(BaseModel):
    """What the joint loss draws, and how much each modality counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shares: Shares = Shares()
    video_only: float = 0.05  # share of steps without action tokens (the VIDEO question)
    video_shift: float = 3.0
    video_pure: float = 0.5  # share of video levels at pure noise: one-step dreams are the default
    floor: float = 0.6  # lets loss weights grow to 1 / floor^2 where there is little noise
    policy_passes: int = 1  # POLICY passes per step; each costs only the action tokens
    policy_batch: int = (
        80  # windows per step that the policy may imitate, for the POLICY passes alone; 0: the batch's own
    )
    proprio_weight: float = 0.5
    action_weight: float = 1.0
    policy_weight: float = 2.0
    context_noise: float = 0.1  # std added to observed latents: a dream must stand on its own blurred frames
    own_frames: float = 0.25  # share of samples that stand on frames the model has just dreamt itself, not on real ones
    own_chunks: int = 3  # at most how many chunks it dreams for that
    chunks: tuple[int, ...] = ()  # of a training sequence, growing as training goes on; (): single windows, no memory
    rarity: float = 0.5  # how much more unusual cells of a picture count (sequences only)
    pixel_weight: float = 0.0  # of the newest frame's error in pixels (sequences only)
    context_repeat: float = 0.5  # share of samples whose older frames repeat the newest, as a policy's and a reset's do


def to_tensors(model: WorldActionModel, batch: WindowBatch) -> tuple[Context, Chunk, dict[str, Tensor]]:
    """A batch of windows as (context, clean chunk, masks); normalised, on the model's device.

    Windows for a video codec hold canvases (:func:`observed_frames` of them before the chunk), which are encoded here;
    those for a frame codec hold latents.
    """
    t, device, step = model.cfg.context_frames, model.device, model.temporal
    image = given = None
    if step > 1:
        canvas = batch.video.to(device)
        image, given = model.image_condition(canvas[:, 0])
        video = model.codec.encode(canvas)
    else:
        video = batch.video.to(device, torch.float32)
    proprio = model.normalise_proprio(batch.proprio[:, ::step].to(device))
    action = model.normalise_action(batch.action.to(device))
    told, of_row = torch.unique(batch.instruction_id, return_inverse=True)  # few instructions are each told often
    text = model.embed_text([batch.instructions[i] for i in told.tolist()])[of_row.to(device)]
    known = batch.video_valid[:, step - 1 :: step].to(device)
    masks = {
        "action": batch.action_valid.to(device),
        "policy": (batch.policy_valid & batch.action_valid).to(device),
        "video": known,
        "proprio": known & batch.proprio_valid.to(device)[:, None],
    }
    context = Context(video=video[:, :t], proprio=proprio[:, :t], text=text, image=image, condition=given)
    future = proprio[:, t:] if "proprio" in model.chunk_shapes else None
    return context, Chunk(video=video[:, t:], proprio=future, action=action), masks


def observed_frames(model: WorldActionModel) -> int:
    """Frames that a window holds before its chunk: those whose latents fill a context."""
    return 1 + model.temporal * (model.cfg.context_frames - 1)


def disturb(context: Context, cfg: JointConfig, generator: torch.Generator | None) -> Context:
    """Noise on observed latents and proprioception, and sometimes no history, as a dream and a reset give."""
    b, device = len(context), context.video.device if generator is None else generator.device
    level = torch.rand(b, 1, 1, 1, 1, generator=generator, device=device) * cfg.context_noise
    noise = torch.randn(context.video.shape, generator=generator, device=device) * level
    video = context.video + noise.to(context.video)
    shaky = torch.randn(context.proprio.shape, generator=generator, device=device) * (0.5 * level[:, :, 0, 0])
    proprio = context.proprio + shaky.to(context.proprio)
    again = (torch.rand(b, generator=generator, device=device) < cfg.context_repeat).to(video.device)
    video = torch.where(again[:, None, None, None, None], video[:, -1:], video)
    proprio = torch.where(again[:, None, None], proprio[:, -1:], proprio)
    return replace(context, video=video, proprio=proprio)


@torch.no_grad()
def on_own_frames(
    model: WorldActionModel,
    windows: Windows,
    rows: np.ndarray,
    batch: WindowBatch,
    cfg: JointConfig,
    generator: torch.Generator,
) -> WindowBatch:
    """Replace the observed frames of the first samples by what the model dreams up to them; what follows stays real.

    A dream that only ever stood on real frames does not know its own faults, and they grow with every chunk.

    Args:
        model: as it is now.
        windows: where ``batch`` comes from.
        rows: (B,) its window numbers.
        batch: latent windows.
        cfg: ``own_frames`` and ``own_chunks``.
        generator: all randomness.

    Source: pushforward training, arXiv:2202.03376; Self Forcing, arXiv:2506.08009.
    """
    n, t = int(len(rows) * cfg.own_frames), model.cfg.context_frames
    if not n or not cfg.own_chunks or DYNAMICS not in model.answers:
        return batch
    depth = int(torch.randint(1, cfg.own_chunks + 1, (), generator=generator))
    first = windows.earlier(rows[:n], depth)
    found = first >= 0
    first = np.where(found, first, rows[:n])  # always n rows: a compiled block knows one size
    context, _, _ = to_tensors(model, windows.batch(first))
    for k in range(depth):
        relative, known = windows.actions(np.where(found, first + k * windows.embodiment.chunk_frames, first))
        found &= known.all(1)
        action = model.normalise_action(torch.from_numpy(relative).to(model.device))
        dream = sample(model, DYNAMICS, context, action=action, steps=1, generator=generator)
        assert dream.video is not None and dream.proprio is not None
        context = model.after(context, dream.video, dream.proprio, dream.memory)
    own = torch.from_numpy(np.flatnonzero(found))
    dreamt = context.to("cpu").index(own)
    video, proprio, action = batch.video.clone(), batch.proprio.clone(), batch.action.clone()
    reached = model.restore_proprio(dreamt.proprio.to(model.device)).to(proprio)
    # Commanded poses stay where they were, so relative actions are measured from where the dream believes to be.
    astray = (proprio[own, t - 1] - reached[:, -1])[:, model.anchor.cpu()] * model.anchored.cpu()
    video[own, :t], proprio[own, :t] = dreamt.video.to(video), reached
    action[own] += astray[:, None]
    return replace(batch, video=video, proprio=proprio, action=action)


def masked_mse(predicted: Tensor, target: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Mean over valid entries of weight (B,) * squared error; mask (B, n) selects along axis 1."""
    error = (predicted.float() - target).square().flatten(2).mean(2)
    return (error * mask * weight[:, None]).sum() / mask.sum().clamp(min=1)


def policy_loss(
    model: WorldActionModel,
    context: Context,
    action: Tensor,
    valid: Tensor,
    cache: ContextCache,
    cfg: JointConfig,
    generator: torch.Generator | None,
) -> Tensor:
    """Error of the POLICY question on clean actions (B, K, A) where ``valid`` (B, K) is True.

    Most draws are pure noise: there the answer comes from observation and instruction alone.
    """
    b, device = len(action), action.device if generator is None else generator.device
    sigma = torch.rand(b, generator=generator, device=device)
    sigma = torch.where(torch.rand(b, generator=generator, device=device) < POLICY_PURE, 1.0, sigma).to(action)
    noisy = mix(action, torch.randn(action.shape, generator=generator, device=device).to(action), sigma)
    guess = model.predict(Chunk(action=noisy), NoiseLevels(sigma, sigma), cache).action
    assert guess is not None
    return masked_mse(guess, action, valid, loss_weight(sigma, cfg.floor))


def joint_loss(
    model: WorldActionModel,
    batch: WindowBatch,
    cfg: JointConfig,
    generator: torch.Generator,
    demonstrations: WindowBatch | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """One training loss: a pass over the square, and POLICY passes that pay for action tokens only.

    Args:
        model: in training mode.
        batch: windows of any behaviour.
        cfg: draws and weights.
        generator: all randomness.
        demonstrations: windows for the POLICY passes; by default those of ``batch``.

    Source: UWM, arXiv:2504.02792 (decoupled levels); Wan I2V (newest frame as input channels).
    """
    context, clean, masks = to_tensors(model, batch)
    context = disturb(context, cfg, generator)
    cache = model.prefill(context)
    assert clean.video is not None and clean.proprio is not None and clean.action is not None
    noisy, levels = _noisy(clean, masks["action"].any(1), cfg, generator)
    guess = model.predict(noisy, levels, cache)
    weight = loss_weight(levels.video, cfg.floor) * (levels.video > 0)
    numbers: dict[str, Tensor] = {
        "video": masked_mse(guess.video, clean.video, masks["video"], weight),  # type: ignore[arg-type]
        "proprio": masked_mse(guess.proprio, clean.proprio, masks["proprio"], weight),  # type: ignore[arg-type]
    }
    if guess.action is not None:
        known = torch.where((levels.video == 0)[:, None], masks["action"], masks["policy"])
        weight = loss_weight(levels.action, cfg.floor) * (levels.action > 0)
        numbers["action"] = masked_mse(guess.action, clean.action, known, weight)
    numbers["policy"] = torch.zeros((), device=model.device)
    if cfg.policy_passes:
        imitated = (context, clean.action, masks["policy"], cache)
        if demonstrations is not None:
            seen, chunk, shown = to_tensors(model, demonstrations)
            seen = disturb(seen, cfg, generator)
            assert chunk.action is not None
            imitated = (seen, chunk.action, shown["policy"], model.prefill(seen))
        passes = [policy_loss(model, *imitated, cfg, generator) for _ in range(cfg.policy_passes)]
        numbers["policy"] = torch.stack(passes).mean()
    total = numbers["video"] + cfg.proprio_weight * numbers["proprio"] + cfg.policy_weight * numbers["policy"]
    if "action" in numbers:
        total = total + cfg.action_weight * numbers["action"]
    return total, {k: v.item() for k, v in numbers.items()}


def _noisy(clean: Chunk, has_action: Tensor, cfg: JointConfig, generator: torch.Generator) -> tuple[Chunk, NoiseLevels]:
    """A chunk at drawn noise levels, and these; without its actions in a ``video_only`` share of steps."""
    assert clean.video is not None and clean.proprio is not None and clean.action is not None
    b, device = len(clean.video), clean.video.device

    def mixed(x: Tensor, sigma: Tensor) -> Tensor:
        return mix(x, torch.randn(x.shape, generator=generator).to(device), sigma)

    levels = draw_levels(b, cfg.shares, video_shift=cfg.video_shift, generator=generator, pure=cfg.video_pure)
    levels = levels.to(device)
    levels = NoiseLevels(levels.video, torch.where(has_action, levels.action, torch.ones_like(levels.action)))
    alone = bool(torch.rand((), generator=generator) < cfg.video_only)
    if alone:
        levels = NoiseLevels(levels.video.clamp(min=0.02), levels.action)
    # Where video is given (INVERSE) it is a little off, as an imagined one would be.
    jitter = (levels.video == 0) * cfg.context_noise * torch.rand(b, generator=generator).to(device)
    video = mixed(clean.video, torch.maximum(levels.video, jitter))
    proprio = mixed(clean.proprio, torch.maximum(levels.video, 0.5 * jitter))
    return Chunk(video, proprio, None if alone else mixed(clean.action, levels.action)), levels
