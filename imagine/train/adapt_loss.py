"""What a model learns from that is taught further questions: passes at noise levels of their own per modality.

A released DreamZero has seen video and actions at one common noise level, so a clean action beside noisy video is new
to it. Here each modality has a level of its own (UWM), an ignored one is absent, and observed blocks enter through the
cache, which equals the published training mask block by block (tests/test_dreamzero.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from imagine.data.windows import WindowBatch, Windows
from imagine.model.action_registers import filled
from imagine.model.dit import JointDiT
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel
from imagine.noise import Shares, draw_levels, mix
from imagine.questions import QUESTIONS
from imagine.train.fit import FitConfig
from imagine.train.fsdp import processes
from imagine.train.losses import JointConfig, joint_loss, masked_mse, to_tensors
from imagine.train.memory_estimate import Method
from imagine.types import Batched, Chunk, Context, ImagineError, NoiseLevels, ShapeError

WindowLoss = Callable[[np.ndarray, torch.Generator], tuple[Tensor, dict[str, float]]]
"""Window numbers and all randomness to a loss and numbers to log."""


# ---------------------------------------------------------------------- what is asked
class Draws(BaseModel):
    """Which passes training makes, and at which noise levels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shares: Shares = Shares()
    video_only: float = 0.05  # share of steps without action tokens (VIDEO)
    policy: bool = True  # a pass without video tokens (POLICY) in every step; it costs only the action tokens

    @property
    def answers(self) -> tuple[str, ...]:
        """The questions that these draws bring into distribution.

        After flash, DYNAMICS and JOINT are answered in few steps only: clean video is hardly ever drawn.
        """
        share, with_actions = self.shares, self.video_only < 1
        trained = {
            "POLICY": self.policy,
            "DYNAMICS": with_actions and share.dynamics + share.flash > 0,
            "INVERSE": with_actions and share.inverse > 0,
            "JOINT": with_actions and share.joint + share.flash > 0,
            "VIDEO": self.video_only > 0,
        }
        return tuple(name for name, is_trained in trained.items() if is_trained)


NO_SHARES = dict.fromkeys(Shares.model_fields, 0.0)


def draws(questions: Sequence[str]) -> Draws:
    """Draws for "all" five questions, for "flash", or for some questions by name.

    Raises:
        ImagineError: another word.
    """
    if tuple(questions) == ("all",):
        return Draws()
    if tuple(questions) == ("flash",):
        return Draws(shares=Shares(**{**NO_SHARES, "flash": 1.0}), video_only=0, policy=False)
    if not questions or set(questions) - set(QUESTIONS):
        raise ImagineError(
            f"questions are {','.join(questions)!r}, expected all, flash, or some of {', '.join(QUESTIONS)}."
        )
    edges = {q.lower(): getattr(Shares(), q.lower()) for q in questions if q.lower() in Shares.model_fields}
    video = 0.0 if "VIDEO" not in questions else 0.05 if edges else 1.0
    return Draws(shares=Shares(**{**NO_SHARES, **edges}), video_only=video, policy="POLICY" in questions)


class AdaptConfig(BaseModel):
    """What is drawn, how much each part counts, and how the network learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    draws: Draws = Draws()
    video_shift: float = 5.0  # as Wan was trained with
    pure: float = 0.15  # share of levels that are exactly 1, where every sample starts
    video_weight: float = 1.0
    action_weight: float = 1.0
    policy_weight: float = 1.0
    method: Method = "lora"
    rank: int = 16
    checkpointing: bool = True  # recompute blocks in the backward pass instead of keeping what happened inside them
    fit: FitConfig = FitConfig(
        steps=1000, batch=8, lr=1e-4, warmup=50, weight_decay=1e-5, ema=0, log_every=10, save_every=250, eval_every=250
    )


@dataclass(frozen=True)
class Latents(Batched):
    """A batch to learn from: T observed latent frames and the chunk of F frames after them.

    Attributes:
        video: (B, T + F, C, h, w) float, normalised latents.
        state: (B, P) float, normalised proprioception before the chunk.
        action: (B, K, A) float, normalised actions of the chunk.
        text: (B, L, D) float, as :class:`Context`'s.
        video_valid: (B, F) bool, False on frames after the episode's end.
        action_valid: (B, K) bool, False where no action was recorded.
        policy_valid: (B, K) bool, the actions of them that a policy may imitate.
        image: (B, I, E) float or None, as :class:`Context`'s.
        condition: (B, T + F, Cc, h, w) float or None, as :class:`Context`'s.
    """

    video: Tensor
    state: Tensor
    action: Tensor
    text: Tensor
    video_valid: Tensor
    action_valid: Tensor
    policy_valid: Tensor
    image: Tensor | None = None
    condition: Tensor | None = None

    def __len__(self) -> int:
        return len(self.video)


def from_windows(model: WorldActionModel, batch: WindowBatch) -> Latents:
    """Recorded windows as a model without proprioception tokens sees them; normalised, on its device."""
    context, chunk, masks = to_tensors(model, batch)
    assert chunk.video is not None and chunk.action is not None
    return Latents(
        video=torch.cat([context.video, chunk.video], 1),
        state=context.proprio[:, -1],
        action=chunk.action,
        text=context.text,
        video_valid=masks["video"],
        action_valid=masks["action"],
        policy_valid=masks["policy"],
        image=context.image,
        condition=context.condition,
    )


@dataclass(frozen=True)
class _Share:
    """This process's part of draws that are made for the samples of all, so that every number of them draws alike."""

    size: int
    device: torch.device
    generator: torch.Generator

    @property
    def total(self) -> int:
        """Samples of all processes."""
        return self.size * processes()[1]

    def own(self, draw: Tensor) -> Tensor:
        """The rows of this process, on its device."""
        begin = processes()[0] * self.size
        return draw[begin : begin + self.size].to(self.device)

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal, of that shape."""
        return self.own(torch.randn(self.total, *like.shape[1:], generator=self.generator)).to(like)


def adapt_loss(
    dit: JointDiT, batch: Latents, cfg: AdaptConfig, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Joint flow-matching loss at decoupled noise levels: one pass over the square (or VIDEO), and one for POLICY.

    Every process draws for the samples of all and uses its own, so that the sum over processes is that of one process,
    and all of them make the same passes.

    Args:
        dit: predicts velocities.
        batch: this process's samples.
        cfg: draws and weights.
        generator: all randomness; the same in every process.

    Raises:
        ShapeError: the network predicts clean values or proprioception, or the frames do not fill its blocks.

    Source: DreamZero, arXiv:2602.15922 (velocity, 1:1); UWM, arXiv:2504.02792 (decoupled levels).
    """
    _check(dit, batch)
    share = _Share(len(batch), batch.video.device, generator)
    observed = batch.video.shape[1] - batch.video_valid.shape[1]
    states = batch.state[:, None].expand(-1, observed, -1)
    cache = dit.prefill(Context(batch.video[:, :observed], states, batch.text, batch.image, batch.condition))
    errors: dict[str, Tensor] = {}
    alone = bool(torch.rand((), generator=generator) < cfg.draws.video_only)
    if alone or sum(cfg.draws.shares.model_dump().values()):
        errors |= _square_errors(dit, batch, cache, cfg, share, alone=alone)
    if cfg.draws.policy:
        level = torch.rand(share.total, generator=generator)
        pure = torch.rand(share.total, generator=generator) < cfg.pure
        sigma = share.own(torch.where(pure, torch.ones_like(level), level))
        action = _registers(dit, batch)
        eps = share.noise(action)
        guess = dit(Chunk(action=mix(action, eps, sigma)), NoiseLevels(sigma, sigma), cache)
        errors["policy"] = _action_error(guess, action, eps, batch, batch.policy_valid, torch.ones_like(sigma))
    weights = {"video": cfg.video_weight, "action": cfg.action_weight, "policy": cfg.policy_weight}
    total = batch.video.new_zeros(())
    for name, error in errors.items():
        total = total + weights[name] * error
    return total, {name: error.item() for name, error in errors.items()}


def _square_errors(
    dit: JointDiT, batch: Latents, cache: ContextCache, cfg: AdaptConfig, share: _Share, *, alone: bool
) -> dict[str, Tensor]:
    """Errors of video and actions at levels from the noise square; of video ``alone`` without action tokens."""
    shares = Shares(**{**NO_SHARES, "joint": 1.0}) if alone else cfg.draws.shares
    levels = draw_levels(
        share.total, shares, video_shift=cfg.video_shift, generator=share.generator, pure=cfg.pure
    )  # fmt: skip
    at, action_at = share.own(levels.video), share.own(levels.action)
    sigma = NoiseLevels(at, torch.where(batch.action_valid.any(1), action_at, torch.ones_like(action_at)))
    video, action = batch.video[:, -batch.video_valid.shape[1] :], _registers(dit, batch)
    eps, action_eps = share.noise(video), share.noise(action)
    noisy = Chunk(mix(video, eps, sigma.video), action=None if alone else mix(action, action_eps, sigma.action))
    guess = dit(noisy, sigma, cache)
    # A given modality (level 0) is no target: nothing of its noise is left to be seen.
    errors = {"video": masked_mse(guess.video, eps - video, batch.video_valid, (sigma.video > 0).float())}
    if not alone:
        known = torch.where((sigma.video == 0)[:, None], batch.action_valid, batch.policy_valid)
        weight = (sigma.action > 0).float()
        errors["action"] = _action_error(guess, action, action_eps, batch, known, weight)
    return errors


def _registers(dit: JointDiT, batch: Latents) -> Tensor:
    """Actions (B, K, width of the registers): the network has always seen noise in every dimension of these.

    So zeros come first and noise after; beyond the robot's own dimensions only the loss is masked.
    """
    registers = dit.cfg.registers
    return filled(batch.action, registers.action_dim, "action") if registers else batch.action


def _action_error(guess: Chunk, action: Tensor, eps: Tensor, batch: Latents, known: Tensor, weight: Tensor) -> Tensor:
    """Of the velocity of actions, in the robot's own dimensions."""
    assert guess.action is not None
    robot = slice(batch.action.shape[2])
    return masked_mse(guess.action[..., robot], (eps - action)[..., robot], known, weight)


def _check(dit: JointDiT, batch: Latents) -> None:
    cfg, future = dit.cfg, batch.video_valid.shape[1]
    if cfg.prediction != "velocity" or (cfg.proprio_dim and not cfg.registers):
        raise ShapeError("adapt_loss is for networks that predict velocities of video and actions; use joint_loss.")
    observed = batch.video.shape[1] - future
    if observed < 1 or (observed - cfg.first_alone) % (cfg.block * cfg.patch[0]):
        raise ShapeError(
            f"{observed} observed frames do not fill blocks of {cfg.block * cfg.patch[0]}"
            f"{' after a first frame' if cfg.first_alone else ''}; give whole blocks."
        )


def window_loss(model: WorldActionModel, windows: Windows, cfg: AdaptConfig) -> WindowLoss:
    """What a batch of windows costs: the joint loss of our own models, or :func:`adapt_loss` of a Wan."""
    if model.cfg.dit.registers:
        return lambda rows, generator: adapt_loss(model.dit, from_windows(model, windows.batch(rows)), cfg, generator)
    shares = cfg.draws.shares if cfg.draws.video_only < 1 else Shares()  # then no level of the square is drawn
    joint = JointConfig(shares=shares, video_only=cfg.draws.video_only, policy_passes=int(cfg.draws.policy))
    return lambda rows, generator: joint_loss(model, windows.batch(rows), joint, generator)
