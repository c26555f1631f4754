"""Adapting a model: teaching a DreamZero the questions it was never trained to answer, above all DYNAMICS.

A released DreamZero has seen video and actions at one common noise level, so a clean action beside noisy video is new
to it. Here each modality has a level of its own (UWM), an ignored one is absent, and observed blocks enter through the
cache, which equals the published training mask block by block (tests/test_dreamzero.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from imagine.data.windows import WindowBatch
from imagine.extras import extra
from imagine.model.action_registers import filled
from imagine.model.dit import JointDiT
from imagine.model.model import WorldActionModel
from imagine.noise import Shares, draw_levels, mix
from imagine.questions import QUESTIONS
from imagine.train.fit import FitConfig, fit
from imagine.train.fsdp import checkpoint_blocks, processes, shard, whole_state
from imagine.train.losses import masked_mse, to_tensors
from imagine.train.memory_estimate import LORA_TARGETS, Method
from imagine.types import Batched, Chunk, Context, ImagineError, NoiseLevels, ShapeError


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
    film = 0.0 if "VIDEO" not in questions else 0.05 if edges else 1.0
    return Draws(shares=Shares(**{**NO_SHARES, **edges}), video_only=film, policy="POLICY" in questions)


class AdaptConfig(BaseModel):
    """What is drawn, how much each part counts, and how the network learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    draws: Draws = Draws()
    video_shift: float = 5.0  # as the giants were trained with
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


# ---------------------------------------------------------------------- the loss
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


def adapt_loss(
    dit: JointDiT, batch: Latents, cfg: AdaptConfig, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Joint flow-matching loss at decoupled noise levels: one pass over the square (or VIDEO), and one for POLICY.

    Every process draws for the lanes of all and uses its own, so that the sum over processes is that of one process,
    and all of them make the same passes.

    Args:
        dit: predicts velocities.
        batch: this process's lanes.
        cfg: draws and weights.
        generator: all randomness; the same in every process.

    Raises:
        ShapeError: the network predicts clean values or proprioception, or the frames do not fill its blocks.

    Source: DreamZero, arXiv:2602.15922 (velocity, 1:1); UWM, arXiv:2504.02792 (decoupled levels).
    """
    _check(dit, batch)
    (process, world), b, device = processes(), len(batch), batch.video.device
    lanes, everyone = slice(process * b, (process + 1) * b), b * world

    def own(draw: Tensor) -> Tensor:
        return draw[lanes].to(device)

    def noise(like: Tensor) -> Tensor:
        return own(torch.randn(everyone, *like.shape[1:], generator=generator)).to(like)

    observed = batch.video.shape[1] - batch.video_valid.shape[1]
    felt = batch.state[:, None].expand(-1, observed, -1)
    cache = dit.prefill(Context(batch.video[:, :observed], felt, batch.text, batch.image, batch.condition))
    # The network has always seen noise in every dimension of its registers; beyond the robot's own only the loss is
    # masked. So zeros come first and noise after.
    registers = dit.cfg.registers
    action = filled(batch.action, registers.action_dim, "action") if registers else batch.action
    video, numbers, total = batch.video[:, observed:], dict[str, float](), batch.video.new_zeros(())

    def add(name: str, weight: float, error: Tensor) -> None:
        nonlocal total
        total, numbers[name] = total + weight * error, error.item()

    def error_of(guess: Tensor | None, clean: Tensor, eps: Tensor, known: Tensor, noisy: Tensor) -> Tensor:
        """Of the velocity of actions, in the robot's own dimensions."""
        assert guess is not None
        robot = slice(batch.action.shape[2])
        return masked_mse(guess[..., robot], (eps - clean)[..., robot], known, noisy)

    alone = bool(torch.rand((), generator=generator) < cfg.draws.video_only)
    if alone or sum(cfg.draws.shares.model_dump().values()):
        shares = Shares(**{**NO_SHARES, "joint": 1.0}) if alone else cfg.draws.shares
        levels = draw_levels(everyone, shares, video_shift=cfg.video_shift, generator=generator, pure=cfg.pure)
        at, action_at = own(levels.video), own(levels.action)
        action_at = torch.where(batch.action_valid.any(1), action_at, torch.ones_like(action_at))
        sigma = NoiseLevels(at, action_at)
        eps, shaken = noise(video), noise(action)
        noisy = Chunk(mix(video, eps, sigma.video), action=None if alone else mix(action, shaken, sigma.action))
        guess = dit(noisy, sigma, cache)
        # A given modality (level 0) is no target: nothing of its noise is left to be seen.
        add(
            "video",
            cfg.video_weight,
            masked_mse(guess.video, eps - video, batch.video_valid, (sigma.video > 0).float()),
        )
        if not alone:
            known = torch.where((sigma.video == 0)[:, None], batch.action_valid, batch.policy_valid)
            error = error_of(guess.action, action, shaken, known, (sigma.action > 0).float())
            add("action", cfg.action_weight, error)
    if cfg.draws.policy:
        level = torch.rand(everyone, generator=generator)
        at = own(torch.where(torch.rand(everyone, generator=generator) < cfg.pure, torch.ones_like(level), level))
        shaken = noise(action)
        guess = dit(Chunk(action=mix(action, shaken, at)), NoiseLevels(at, at), cache)
        add(
            "policy", cfg.policy_weight, error_of(guess.action, action, shaken, batch.policy_valid, torch.ones_like(at))
        )
    return total, numbers


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


# ---------------------------------------------------------------------- training
def adapt(
    dit: JointDiT,
    loss: Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]],
    cfg: AdaptConfig,
    folder: Path,
    *,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> dict[str, Tensor]:
    """Train a network in place, or resume; over all processes of an ``accelerate launch``.

    Args:
        dit: it has adapters inside and may be sharded afterwards; use what is returned.
        loss: (step, generator) to (loss, numbers to log), of ``dit``; the generator is the same in every process.
        cfg: how.
        folder: run folder, as for :func:`imagine.train.fit.fit`.
        evaluate: numbers on held-out data.

    Returns:
        All weights under the names of a plain JointDiT, adapters merged, on the CPU; empty but in process 0.
    """
    dit.requires_grad_(cfg.method == "full")
    if cfg.method == "lora":
        _put_adapters(dit, cfg)
    for p in dit.parameters():
        if p.requires_grad:  # the steps of bfloat16 are larger than those of learning
            p.data = p.data.float()
    if cfg.checkpointing:
        checkpoint_blocks(dit)
    if processes()[1] > 1:
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
        shard(dit, device, half=cfg.fit.mixed_precision == "bf16")
    fit(dit, loss, cfg.fit.model_copy(update={"ema": 0}), folder, evaluate=evaluate, name="adapt")
    return _merged(whole_state(dit))


def _put_adapters(dit: JointDiT, cfg: AdaptConfig) -> None:
    """Adapters in the blocks; registers train whole, as they say how noisy an action is."""
    with extra("train"):
        from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(r=cfg.rank, lora_alpha=cfg.rank, target_modules=list(LORA_TARGETS), bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.fit.seed)
        inject_adapter_in_model(lora, dit)
    if dit.cfg.registers:
        dit.registers.requires_grad_(True)


def _merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapters (of scale 1) added to the layers that they change, under the names of these layers."""
    plain = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        stem, inside, leaf = name.rpartition(".base_layer.")
        if inside and leaf == "weight":
            down, up = (state[f"{stem}.lora_{end}.default.weight"].flatten(1).float() for end in "AB")
            value = (value.float() + (up @ down).view_as(value)).to(value.dtype)
        plain[f"{stem}.{leaf}" if inside else name] = value
    return plain


def settle(model: WorldActionModel, weights: dict[str, Tensor], trained: Sequence[str]) -> None:
    """Put what :func:`adapt` returned into a model, which from now on answers what was trained as well."""
    with torch.device("meta"):
        dit = JointDiT(model.cfg.dit)
    dit.load_state_dict(weights, assign=True)
    dit.chunk_blocks = model.dit.chunk_blocks
    model.dit = dit.to(model.device).eval()
    answers = tuple(name for name in QUESTIONS if name in {*model.cfg.answers, *trained})
    model.cfg = model.cfg.model_copy(update={"answers": answers})
    model.answers = frozenset(QUESTIONS[name] for name in answers)
