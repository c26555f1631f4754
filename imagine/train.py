"""Joint training of video, proprioception and actions at decoupled noise levels.

What it departs from in DreamZero: levels are drawn per modality (UWM), so the checkpoint answers all five questions;
observed frames are encoded once per step and shared by the passes with and without video tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .cache import ContextCache
from .codec import CodecConfig, FrameCodec
from .data.windows import WindowBatch, Windows, WindowSampler, statistics
from .dit import DiTConfig
from .fit import FitConfig, fit, write_json
from .model import ModelConfig, Statistics, WorldActionModel
from .noise import Shares, draw_levels, loss_weight, mix
from .questions import DYNAMICS, INVERSE, POLICY
from .sampler import sample
from .text import TextConfig, vocabulary
from .types import Chunk, Context, DatasetError, NoiseLevels


class JointConfig(BaseModel):
    """What the joint loss draws, and how much each modality counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shares: Shares = Shares()
    video_only: float = 0.05  # share of steps without action tokens (the VIDEO question)
    video_shift: float = 3.0
    video_pure: float = 0.5  # share of video levels at pure noise: one-step dreams are the default
    floor: float = 0.6  # lets loss weights grow to 1 / floor^2 where there is little noise
    policy_pure: float = 0.6  # likewise for the policy: only there must it look instead of denoise
    policy_passes: int = 1  # POLICY passes per step; each costs only the action tokens
    policy_batch: int = (
        80  # windows per step that the policy may imitate, for the POLICY passes alone; 0: the batch's own
    )
    proprio_weight: float = 0.5
    action_weight: float = 1.0
    policy_weight: float = 2.0
    context_noise: float = 0.1  # std added to observed latents: a dream must stand on its own blurred frames
    context_repeat: float = 0.5  # share of lanes whose older frames repeat the newest, as a policy's and a reset's do


def trained_answers(cfg: JointConfig, has_actions: bool) -> tuple[str, ...]:
    """The questions that training with ``cfg`` brings into distribution; a checkpoint must claim no other."""
    share, acts = cfg.shares, has_actions
    trained = {
        "POLICY": acts and cfg.policy_passes > 0,
        "DYNAMICS": acts and share.dynamics > 0,
        "INVERSE": acts and share.inverse > 0,
        "JOINT": acts and share.joint > 0,
        "VIDEO": cfg.video_only > 0,
    }
    return tuple(name for name, is_trained in trained.items() if is_trained)


def build_model(
    windows: Windows, codec: FrameCodec, dit: DiTConfig, joint: JointConfig, *, name: str, text_dim: int = 128
) -> WorldActionModel:
    """A fresh model for a dataset: sizes from its embodiment, vocabulary and statistics from its training windows."""
    body, stats = windows.embodiment, statistics(windows)
    dit = dit.model_copy(
        update={
            "channels": codec.cfg.channels,
            "text_dim": text_dim,
            "action_dim": body.action_dim,
            "proprio_dim": body.proprio_dim,
        }
    )
    cfg = ModelConfig(
        name=name,
        embodiment=body,
        dit=dit,
        codec=codec.cfg,
        text=TextConfig(words=vocabulary(windows.instructions), dim=text_dim),
        statistics=Statistics(
            proprio_mean=tuple(stats["proprio"]["mean"].tolist()),
            proprio_std=tuple(stats["proprio"]["std"].clip(1e-3).tolist()),
            action_mean=tuple(stats["action"]["mean"].tolist()),
            action_std=tuple(stats["action"]["std"].clip(1e-3).tolist()),
        ),
        answers=trained_answers(joint, bool(windows.actions(windows.rows("all")[::100])[1].any())),
    )
    model = WorldActionModel(cfg)
    model.codec.load_state_dict(codec.state_dict())
    model.codec.requires_grad_(False)
    return model


def to_tensors(model: WorldActionModel, batch: WindowBatch) -> tuple[Context, Chunk, dict[str, Tensor]]:
    """A batch of windows as (context, clean chunk, masks); normalised, on the model's device."""
    t = model.cfg.context_frames
    device = model.device
    video = batch.video.to(device, torch.float32)
    proprio = model.normalise_proprio(batch.proprio.to(device))
    action = model.normalise_action(batch.action.to(device))
    text = model.embed_text([batch.instructions[i] for i in batch.instruction_id])
    masks = {
        "action": batch.action_valid.to(device),
        "policy": (batch.policy_valid & batch.action_valid).to(device),
        "video": batch.video_valid.to(device),
        "proprio": batch.video_valid.to(device) & batch.proprio_valid.to(device)[:, None],
    }
    context = Context(video=video[:, :t], proprio=proprio[:, :t], text=text)
    return context, Chunk(video=video[:, t:], proprio=proprio[:, t:], action=action), masks


def disturb(context: Context, cfg: JointConfig, generator: torch.Generator) -> Context:
    """Noise on observed latents and proprioception, and sometimes no history, as a dream and a reset give."""
    b = len(context)
    level = torch.rand(b, 1, 1, 1, 1, generator=generator) * cfg.context_noise
    noise = torch.randn(context.video.shape, generator=generator) * level
    video = context.video + noise.to(context.video)
    shaky = torch.randn(context.proprio.shape, generator=generator) * (0.5 * level[:, :, 0, 0])
    proprio = context.proprio + shaky.to(context.proprio)
    again = (torch.rand(b, generator=generator) < cfg.context_repeat).to(video.device)
    video = torch.where(again[:, None, None, None, None], video[:, -1:], video)
    proprio = torch.where(again[:, None, None], proprio[:, -1:], proprio)
    return Context(video=video, proprio=proprio, text=context.text)


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
    generator: torch.Generator,
) -> Tensor:
    """Error of the POLICY question on clean actions (B, K, A) where ``valid`` (B, K) is True.

    Most draws are pure noise: there the answer must come from what is seen and said, elsewhere it can be read off.
    """
    b = len(action)
    sigma = torch.rand(b, generator=generator)
    sigma = torch.where(torch.rand(b, generator=generator) < cfg.policy_pure, torch.ones(b), sigma).to(action)
    noisy = mix(action, torch.randn(action.shape, generator=generator).to(action), sigma)
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
    b, device = len(context), model.device

    def noisy(x: Tensor, sigma: Tensor) -> Tensor:
        return mix(x, torch.randn(x.shape, generator=generator).to(device), sigma)

    levels = draw_levels(b, cfg.shares, video_shift=cfg.video_shift, generator=generator, pure=cfg.video_pure).to(
        device
    )
    has_action = masks["action"].any(1)
    levels = NoiseLevels(levels.video, torch.where(has_action, levels.action, torch.ones_like(levels.action)))
    alone = bool(torch.rand((), generator=generator) < cfg.video_only)
    if alone:
        levels = NoiseLevels(levels.video.clamp(min=0.02), levels.action)
    assert clean.video is not None and clean.proprio is not None and clean.action is not None
    # Where video is given (INVERSE) it is a little off, as an imagined one would be.
    jitter = (levels.video == 0) * cfg.context_noise * torch.rand(b, generator=generator).to(device)
    x = Chunk(
        video=noisy(clean.video, torch.maximum(levels.video, jitter)),
        proprio=noisy(clean.proprio, torch.maximum(levels.video, 0.5 * jitter)),
        action=None if alone else noisy(clean.action, levels.action),
    )
    guess = model.predict(x, levels, cache)
    weight = loss_weight(levels.video, cfg.floor) * (levels.video > 0)
    numbers: dict[str, Tensor] = {
        "video": masked_mse(guess.video, clean.video, masks["video"], weight),  # type: ignore[arg-type]
        "proprio": masked_mse(guess.proprio, clean.proprio, masks["proprio"], weight),  # type: ignore[arg-type]
    }
    if guess.action is not None:
        known = torch.where((levels.video == 0)[:, None], masks["action"], masks["policy"])
        weight = loss_weight(levels.action, cfg.floor) * (levels.action > 0)
        numbers["action"] = masked_mse(guess.action, clean.action, known, weight)
    if cfg.policy_passes:
        told = (context, clean.action, masks["policy"], cache)
        if demonstrations is not None:
            shown, chunk, seen = to_tensors(model, demonstrations)
            shown = disturb(shown, cfg, generator)
            assert chunk.action is not None
            told = (shown, chunk.action, seen["policy"], model.prefill(shown))
        numbers["policy"] = torch.stack(
            [policy_loss(model, *told, cfg, generator) for _ in range(cfg.policy_passes)]
        ).mean()
    else:
        numbers["policy"] = torch.zeros((), device=device)
    total = numbers["video"] + cfg.proprio_weight * numbers["proprio"] + cfg.policy_weight * numbers["policy"]
    if "action" in numbers:
        total = total + cfg.action_weight * numbers["action"]
    return total, {k: v.item() for k, v in numbers.items()}


@torch.no_grad()
def held_out(model: WorldActionModel, windows: Windows, rows: np.ndarray, steps: int = 1) -> dict[str, float]:
    """The three figures to watch from the first minute, on held-out windows; see :mod:`imagine.fidelity` for all.

    Latent PSNR is taken in pixels after decoding. Action errors are root mean squares in normalised units.
    """
    model.eval()
    out: dict[str, list[float]] = {}
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        context, clean, masks = to_tensors(model, windows.batch(part))
        cache, seeds = model.prefill(context), [int(r) for r in part]
        truth = model.decode(clean.video)  # type: ignore[arg-type]
        other = torch.roll(torch.arange(len(part)), max(1, len(part) // 2))
        dreams = {"true": clean.action, "shuffled": clean.action[other]}  # type: ignore[index]
        for name, action in dreams.items():
            dream = sample(model, DYNAMICS, context, action=action, steps=steps, seeds=seeds, cache=cache)
            out.setdefault(f"psnr_{name}", []).append(psnr(model.decode(dream.video), truth))  # type: ignore[arg-type]
        still = model.decode(context.video[:, -1:]).expand_as(truth)
        out.setdefault("psnr_copy", []).append(psnr(still, truth))
        inverse = sample(model, INVERSE, context, video=clean.video, proprio=clean.proprio, steps=4, seeds=seeds)
        out.setdefault("inverse_rms", []).append(rms(inverse.action, clean.action, masks["action"]))
        wrong = Context(context.video, context.proprio, context.text[other])
        for name, ctx in {"policy_rms": context, "policy_wrong": wrong}.items():
            act = sample(model, POLICY, ctx, steps=2, seeds=seeds).action
            out.setdefault(name, []).append(rms(act, clean.action, masks["policy"]))
    return {k: float(np.mean(v)) for k, v in out.items()}


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of uint8 frames in dB, from the error pooled over all of them."""
    return float(10 * torch.log10(255.0**2 / (a.float() - b.float()).square().mean().clamp(min=1e-3)))


def rms(a: Tensor | None, b: Tensor | None, mask: Tensor) -> float:
    """Root mean square over the actions that ``mask`` (B, K) keeps."""
    assert a is not None and b is not None
    return float((((a - b).square().mean(2) * mask).sum() / mask.sum().clamp(min=1)).sqrt())


def train_joint(
    windows: Windows, model: WorldActionModel, cfg: JointConfig, run: FitConfig, folder: Path, *, out: Path
) -> WorldActionModel:
    """Train (or resume) the joint model and publish its moving average, with metrics beside it, to ``out``."""
    if run.compile:
        for block in model.dit.blocks:
            block.compile(dynamic=False)
    rows = windows.rows("train")
    if not len(rows):
        raise DatasetError("the dataset has no training window; record more or longer episodes.")
    sampler = WindowSampler(rows, run.batch, seed=run.seed)
    good = rows[windows.imitable(rows)]
    shown = WindowSampler(good, cfg.policy_batch, run.seed + 1) if len(good) and cfg.policy_batch else None
    held = windows.rows("held_out")
    held = held if len(held) else rows  # a dataset of one episode holds nothing out
    held = held[np.random.default_rng(0).permutation(len(held))[:256]]

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        model.train()
        demonstrations = None if shown is None else windows.batch(shown.at(step))
        return joint_loss(model, windows.batch(sampler.at(step)), cfg, generator, demonstrations)

    def publish(ema: nn.Module, numbers: dict[str, float]) -> None:
        assert isinstance(ema, WorldActionModel)
        ema.save_pretrained(out)
        write_json(out / "training.json", numbers)

    def evaluate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, WorldActionModel)
        return held_out(ema, windows, held)

    ema = fit(model, loss, run, folder, evaluate=evaluate, publish=publish, name="model")
    assert isinstance(ema, WorldActionModel)
    return ema


def train_codec(frames: np.ndarray, cfg: CodecConfig, run: FitConfig, folder: Path) -> FrameCodec:
    """Train (or resume) the frame codec on canvases (M, H, W, 3) uint8; sets its latent mean and std at the end.

    The loss weighs pixels by how far they are from the mean canvas, so that small moving things count.
    """
    codec = FrameCodec(cfg).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    every = max(1, len(frames) // 2000)
    mean = torch.from_numpy(frames[::every]).float().mean(0).div(127.5).sub(1).permute(2, 0, 1)
    order = np.random.default_rng(run.seed).permutation(len(frames))
    train, held = np.sort(order[200:]), np.sort(order[:200])

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        codec.train()
        pick = torch.randint(len(train), (run.batch,), generator=generator).numpy()
        x = torch.from_numpy(frames[train[pick]]).to(next(codec.parameters()).device)
        z = codec.encode_raw(x)
        z = z + 0.02 * torch.randn(z.shape, generator=generator).to(z) * z.detach().float().std().to(z)
        target = x.permute(0, 3, 1, 2).float() / 127.5 - 1
        error = codec.decode_raw(z).float() - target
        weight = 1 + 4 * (target - mean.to(target)).abs()
        value = (weight * (error.square() + 0.1 * error.abs())).mean() + 1e-4 * z.float().square().mean()
        return value, {"psnr": 10 * np.log10(4 / error.detach().square().mean().item())}

    def evaluate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, FrameCodec)
        with torch.no_grad():
            x = torch.from_numpy(frames[held]).to(next(ema.parameters()).device)
            ema.mean.zero_(), ema.std.fill_(1.0)
            return {"psnr_codec": psnr(ema.decode(ema.encode_raw(x)), x)}

    ema = fit(codec, loss, run, folder, evaluate=evaluate, name="codec")
    assert isinstance(ema, FrameCodec)
    with torch.no_grad():
        device = next(ema.parameters()).device
        some = np.random.default_rng(1).choice(len(frames), min(4000, len(frames)), replace=False)
        z = torch.cat(
            [ema.encode_raw(torch.from_numpy(frames[np.sort(p)]).to(device)) for p in np.array_split(some, 16)]
        )
        ema.mean.copy_(z.mean((0, 2, 3))), ema.std.copy_(z.std((0, 2, 3)))
    return ema
