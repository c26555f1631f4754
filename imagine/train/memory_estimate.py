"""What an adaptation will need, before it starts: parameters exactly, memory and arithmetic by formula.

Bytes of activations were derived from the code of a block by listing what autograd keeps, in bfloat16 under autocast,
and agree with what it keeps (tests/test_adapt.py). Weights of Wan's text, image and video encoders are not counted:
what they say is computed once and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from imagine.model.action_registers import RegisterConfig
from imagine.model.dit import DiTConfig, JointDiT
from imagine.model.layers import LORA_IN_ALL
from imagine.model.model import WorldActionModel

Method = Literal["lora", "full"]
HALF, SINGLE = 2, 4  # bytes
SLACK = 2 * 2**30  # context, workspaces and fragmentation of one GPU
SPEED = 4e14  # FLOP per second of one H100 or H200 that training reaches (half of its peak)
CARDS = (80, 141)  # GB

_WAN: dict[str, Any] = {
    "patch": (1, 2, 2), "text_dim": 4096, "action_patch": 1, "see_last_frame": False, "pooled_text": False,
    "prediction": "velocity", "image_dim": 1280, "block": 2, "first_alone": True, "registers": RegisterConfig(),
    "action_dim": 32, "proprio_dim": 64, "max_context_blocks": 5,
}  # fmt: skip
DREAMZERO: dict[str, tuple[DiTConfig, dict[str, int]]] = {
    "5b": (
        DiTConfig(layers=30, heads=24, head_dim=128, ffn_dim=14336, channels=48, **_WAN),
        {"frames": 9, "height": 10, "width": 20, "actions": 24},
    ),
    "14b": (
        DiTConfig(
            layers=40, heads=40, head_dim=128, ffn_dim=13824, channels=16, condition_channels=20, **_WAN
        ),
        {"frames": 9, "height": 44, "width": 80, "actions": 24},
    ),
}  # fmt: skip
"""Shapes of the two DreamZeros, and of what they are trained on: latent frames, latent size, actions of a chunk."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Needs of one training run; bytes are those of one GPU.

    Attributes:
        parameters: of the network, exactly.
        trainable: of them or, with LoRA, beside them.
        tokens: per sample, observed and in the chunk.
        weights: bytes, with the half-precision copy that is computed with.
        gradients: bytes.
        optimiser: bytes of AdamW's two moments.
        activations: bytes for the batch of one GPU, as asked for.
        kept: bytes of activations without gradient checkpointing.
        recomputed: bytes of activations with it.
        total: bytes.
        forward: FLOP per sample.
        recompute: FLOP per sample that gradient checkpointing adds.
        backward: FLOP per sample.
        batch: samples per GPU and step.
        world_size: GPUs.
    """

    parameters: int
    trainable: int
    tokens: int
    weights: int
    gradients: int
    optimiser: int
    activations: int
    kept: int
    recomputed: int
    total: int
    forward: float
    recompute: float
    backward: float
    batch: int
    world_size: int

    @property
    def fits(self) -> str:
        """A sentence: on which card, and how long a step takes."""
        need = self.total / 1e9
        cards = [f"{size} GB" for size in CARDS if need <= size]
        where = f"fits a GPU of {cards[0]}" if cards else f"fits no GPU of {CARDS[-1]} GB: use more GPUs, LoRA, "
        if not cards:
            where += "gradient checkpointing or a smaller batch"
        seconds = self.batch * (self.forward + self.recompute + self.backward) / SPEED
        return f"{need:.0f} GB per GPU {where}; a step takes about {seconds:.2g} s at {SPEED / 1e12:.0f} TFLOP/s."

    def table(self) -> dict[str, str]:
        """All of it, readable."""
        gigabytes = ("weights", "gradients", "optimiser", "activations", "total")
        return {
            "parameters": f"{self.parameters:,}",
            "trainable": f"{self.trainable:,} ({100 * self.trainable / self.parameters:.3g} %)",
            "tokens_per_sample": f"{self.tokens:,}",
            "gpus": f"{self.world_size} with {self.batch} samples each",
            **{f"{name}_per_gpu": f"{getattr(self, name) / 1e9:.4g} GB" for name in gigabytes},
            "activations_without_checkpointing": f"{self.kept / 1e9:.4g} GB",
            "activations_with_checkpointing": f"{self.recomputed / 1e9:.4g} GB",
            "forward_per_sample": f"{self.forward / 1e12:.4g} TFLOP",
            "recompute_per_sample": f"{self.recompute / 1e12:.4g} TFLOP",
            "backward_per_sample": f"{self.backward / 1e12:.4g} TFLOP",
            "verdict": self.fits,
        }


def estimate(
    dit: DiTConfig,
    *,
    frames: int,
    height: int,
    width: int,
    actions: int,
    batch: int = 1,
    method: Method = "lora",
    rank: int = 16,
    master: Literal["float32", "bfloat16"] = "float32",
    world_size: int = 1,
    sharding: Literal["none", "fsdp"] = "none",
    checkpointing: bool = True,
    text: int = 512,
    image: int = 257,
    chunk: int | None = None,
) -> MemoryEstimate:
    """Count what training a network will need: one context, one noisy chunk and one POLICY pass per sample.

    Args:
        dit: shape of the network.
        frames: latent frames of a sample, observed ones and the chunk's.
        height: of a latent frame.
        width: of a latent frame.
        actions: of a chunk.
        batch: samples per GPU and step.
        method: train adapters (and registers), or everything.
        rank: of the adapters.
        master: precision of what trains; what does not train is bfloat16.
        world_size: GPUs.
        sharding: "fsdp" shares weights, gradients and optimiser state out over them.
        checkpointing: recompute blocks instead of keeping what happened inside them.
        text: tokens of the instruction.
        image: tokens of the first frame, for a network that looks at them.
        chunk: latent frames of the chunk; by default one block.

    Source: shapes and costs of DreamZero, arXiv:2602.15922; gradient checkpointing, arXiv:1604.06174; LoRA,
    arXiv:2106.09685; ZeRO, arXiv:1910.02054.
    """
    parameters, trainable, block = count(dit, method, rank)
    size, future = SINGLE if master == "float32" else HALF, chunk or dit.block * dit.patch[0]
    passes = _passes(dit, frames - future, future, height, width, actions)
    read = text + (image if dit.image_dim else 0)

    # ---- weights, gradients, moments
    frozen = parameters if method == "lora" else 0
    copy = HALF * parameters if method == "full" and size > HALF else 0  # autocast keeps it for a step
    weights, gradients, optimiser = frozen * HALF + trainable * size, trainable * size, 2 * trainable * size
    if sharding == "fsdp":
        rest = parameters - dit.layers * block
        copy = HALF * (rest + 2 * block) + (SINGLE * block if method == "full" else 0)  # this block, the next, its sum
        weights, gradients, optimiser = (-(-n // world_size) for n in (weights, gradients, optimiser))
    weights += copy

    # ---- activations
    kept, recomputed = (batch * n for n in _activations(dit, passes, read))
    activations = recomputed if checkpointing else kept

    # ---- arithmetic
    inside, outside, attention = _arithmetic(dit, passes, text, image if dit.image_dim else 0)
    forward = inside + outside + attention
    backward = (2 if method == "full" else 1) * (inside + outside) + 2 * attention
    return MemoryEstimate(
        parameters=parameters,
        trainable=trainable,
        tokens=sum(p.tokens for p in passes[:-1]),
        weights=weights,
        gradients=gradients,
        optimiser=optimiser,
        activations=activations,
        kept=kept,
        recomputed=recomputed,
        total=weights + gradients + optimiser + activations + SLACK,
        forward=forward,
        recompute=(inside + attention) if checkpointing else 0.0,
        backward=backward,
        batch=batch,
        world_size=world_size,
    )


def sample_sizes(model: WorldActionModel) -> dict[str, int]:
    """Sizes of a sample of a model's own robot, as :func:`estimate` takes them."""
    future, _, height, width = model.chunk_shapes["video"]
    words = {} if model.cfg.dit.registers else {"text": model.cfg.text.length}
    sizes = {"frames": model.cfg.context_frames + future, "height": height, "width": width, "chunk": future}
    return sizes | {"actions": model.body.chunk_actions, **words}


@cache
def count(cfg: DiTConfig, method: Method, rank: int) -> tuple[int, int, int]:
    """Parameters of the network, those that train, and those of one block; it is built on no device."""
    with torch.device("meta"):
        dit = JointDiT(cfg)
    total, block = (sum(p.numel() for p in m.parameters()) for m in (dit, dit.blocks[0]))
    if method == "full":
        return total, total, block
    train = sum(rank * _ends(m) for n, m in dit.named_modules() if n.endswith(LORA_IN_ALL))
    if cfg.registers:
        train += sum(p.numel() for p in dit.registers.parameters())
    return total, train, block


def _ends(layer: nn.Module) -> int:
    """What one rank of an adapter on a layer costs."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    out, *into = layer.weight.shape
    return out + int(torch.Size(into).numel())


@dataclass(frozen=True)
class _Pass:
    """Tokens through all blocks at once, and the tokens that were remembered before."""

    tokens: int
    past: int
    video: int
    actions: int
    remembered: bool


def _passes(cfg: DiTConfig, observed: int, future: int, height: int, width: int, actions: int) -> list[_Pass]:
    """Observed blocks, the chunk, and POLICY."""
    pt, ph, pw = cfg.patch
    cells = (height // ph) * (width // pw)
    step, state = cfg.block * pt, int(cfg.registers is not None)
    sizes = ([1] if cfg.first_alone else []) + [step] * ((observed - cfg.first_alone) // step)
    states = int(bool(cfg.proprio_dim) and not state)
    passes, past = [], 0
    for size in sizes:
        tokens = size // pt * (cells + states)
        passes.append(_Pass(tokens, past, size // pt * cells, 0, True))
        past += tokens
    acting = actions // cfg.action_patch + state
    video = future // pt * cells
    passes.append(_Pass(video + future // pt * states + acting, past, video, acting, False))
    return [*passes, _Pass(acting, past, 0, acting, False)]


def _activations(cfg: DiTConfig, passes: list[_Pass], read: int) -> tuple[int, int]:
    """Bytes that autograd keeps of one sample: with all inside the blocks, and with their inputs alone."""
    wide = HALF * cfg.dim  # one row of one token
    # 14 rows of float32: what enters norms and comes out of them, queries and keys before theirs, modulations. 12 of
    # bfloat16: what enters linear maps, queries, keys, values, what attention says, gates. And the hidden layer twice.
    inside = (14 * 2 + 12) * wide + 2 * HALF * cfg.ffn_dim
    entering = (4 * 2 + 2) * wide  # of these, what comes before keys and values
    kept = recomputed = 0
    for p in passes:
        grown = 2 * (p.past + p.tokens) * wide if p.past else 0  # keys and values beside those that were remembered
        own = 3 * p.tokens * wide if p.remembered else 0  # keys, turned keys and values
        whole = cfg.layers - int(p.remembered)  # the last block of an observed pass ends at its keys and values
        kept += whole * (p.tokens * inside + grown) + cfg.layers * own + (cfg.layers - whole) * p.tokens * entering
        recomputed += cfg.layers * (p.tokens * wide + own + (grown if p.remembered else 0))
    words = cfg.layers * 6 * read * wide  # keys and values, and the keys before their norm
    most = max(p.tokens * inside + 2 * (p.past + p.tokens) * wide for p in passes)
    return kept + words, recomputed + words + most


def _arithmetic(cfg: DiTConfig, passes: list[_Pass], text: int, image: int) -> tuple[float, float, float]:
    """FLOP of one forward pass of one sample: linear layers inside blocks, those outside, and attention."""
    d, pt = cfg.dim, cfg.patch[0] * cfg.patch[1] * cfg.patch[2]
    # The last block of an observed pass ends at its keys and values.
    whole = [(p, cfg.layers - int(p.remembered)) for p in passes]
    inside = 2.0 * sum(n * p.tokens for p, n in whole) * (6 * d * d + 2 * d * cfg.ffn_dim)
    inside += 2.0 * sum(p.tokens for p in passes if p.remembered) * 2 * d * d
    words = 2.0 * cfg.layers * (text + image) * 2 * d * d
    attention = 4.0 * d * sum(n * p.tokens * (p.past + p.tokens + text + image) for p, n in whole)
    entry = pt * (cfg.channels * (1 + cfg.see_last_frame) + cfg.condition_channels) * d
    outside = words + 2.0 * text * (cfg.text_dim * d + d * d)
    outside += 2.0 * image * (cfg.image_dim * cfg.image_dim + cfg.image_dim * d)
    outside += 2.0 * sum(p.video for p in passes) * entry
    outside += 2.0 * sum(p.video for p in passes if not p.remembered) * pt * cfg.channels * d
    if cfg.registers:
        r = cfg.registers
        each = r.action_dim * d + 3 * d * d + d * r.hidden + r.hidden * r.action_dim
        outside += 2.0 * sum(p.actions for p in passes) * each
    groups = len(passes) + 1  # one level per pass, and the actions' own in the chunk
    outside += 2.0 * groups * (cfg.freq_dim * d + 7 * d * d)
    return inside, outside, attention
