"""Wan and DreamZero checkpoints become a JointDiT, and go back; only this and its ``wan_*`` know foreign names.

Layouts: Wan's own folders, diffusers' (a pipeline or its ``transformer``), DreamZero's (``action_head.model.*``), the
same repacked in diffusers' folders, and any of them with a LoRA inside.

    foreign = inspect(folder)                        # what is it? loads nothing
    dit = load_dit(folder, device="cuda", dtype=torch.bfloat16, action_dim=22, proprio_dim=20)
    dit = compose_lora(adapter, base=folder)         # a LoRA, on the weights it was trained on
    save_diffusers(dit, folder)                      # for diffusers' WanTransformer3DModel.from_pretrained
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagine.files import atomic_path
from imagine.model.dit import DiTConfig, JointDiT
from imagine.types import CheckpointMismatch
from imagine.wan import names
from imagine.wan.inspect import REGISTERS_FILE, Foreign, Source, inspect
from imagine.wan.names import LAYOUTS, NEGATIVE, PARTS, PROMPTS, prompt, tile
from imagine.wan.shards import headers, some, stream, write

__all__ = [
    "LAYOUTS", "NEGATIVE", "PARTS", "PROMPTS", "Foreign", "compose_lora", "inspect", "load_dit", "other_parts",
    "prompt", "save_diffusers", "tile",
]  # fmt: skip


def load_dit(
    folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None, **dit_overrides: Any
) -> JointDiT:
    """Load a checkpoint, tensor by tensor to where it stays; a second copy never exists.

    Args:
        folder: of any layout that :func:`inspect` knows.
        device: where to.
        dtype: of the weights, None for that of the files; norms, modulation tables and the time embedder stay float32
            in a half-precision model, as in Wan.
        dit_overrides: fields of :class:`DiTConfig` that the checkpoint leaves open, above all the robot's
            ``action_dim`` and ``proprio_dim``, ``parity`` and how much context is remembered.

    Raises:
        CheckpointMismatch: as :func:`inspect`; or tensors are missing, unexpected or of another shape (they are
            listed); or there is a LoRA.
    """
    source = Source.open(Path(folder))
    if source.factors:
        raise CheckpointMismatch(f"{folder} holds a LoRA; load it with compose_lora.")
    return _load(source, {}, device, dtype, dit_overrides)


def compose_lora(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    **dit_overrides: Any,
) -> JointDiT:
    """Load a LoRA checkpoint, merged into the weights that it was trained on: base + alpha / rank B A, in float32.

    Args:
        folder: factors (PEFT's names) beside the weights that they change, or factors alone (and, with DreamZero, the
            registers that were trained with them).
        base: for factors alone, the checkpoint they were trained on.
        device: where to.
        dtype: as for :func:`load_dit`.
        dit_overrides: as for :func:`load_dit`.

    Raises:
        CheckpointMismatch: no factors; factors alone without a base, or with one that is not theirs: a LoRA that was
            trained on a DreamZero makes a silently degraded policy of a plain Wan (dreamzero#82).

    Source: LoRA, arXiv:2106.09685.
    """
    own = Source.open(Path(folder))
    if not own.factors:
        raise CheckpointMismatch(f"{folder} holds no LoRA factors; load it with load_dit.")
    if own.alone:
        own = _on(own, base)
    elif base is not None:
        raise CheckpointMismatch(f"{folder} carries the weights that its LoRA changes; leave out base={str(base)!r}.")
    return _load(own, _deltas(own), device, dtype, dit_overrides)


def other_parts(folder: str | Path, prefix: str, *, device: str | torch.device = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Tensors of a checkpoint's other parts, one at a time, their names without ``prefix`` (one of :data:`PARTS`).

    Raises:
        CheckpointMismatch: no tensor has that prefix, or a file is missing or truncated.
    """
    found = {n.removeprefix(prefix): h for n, h in headers(Path(folder)).items() if n.startswith(prefix)}
    if not found:
        raise CheckpointMismatch(f"{folder} holds nothing under {prefix!r}; known parts: {', '.join(PARTS.values())}.")
    return stream(found, device)


def save_diffusers(
    dit: JointDiT, folder: str | Path, *, shard_bytes: int = 5 * 10**9, action_horizon: int | None = None
) -> Path:
    """Write ``folder/transformer`` in diffusers' layout; registers in a file of their own, under DreamZero's names.

    Args:
        dit: shaped like a Wan or a DreamZero.
        folder: has no ``transformer`` yet.
        shard_bytes: of one weight file at most.
        action_horizon: actions of a chunk; needed with registers, as nothing else remembers it.

    Returns:
        The transformer's folder.

    Raises:
        CheckpointMismatch: the model is not a Wan, the horizon is missing, or the folder has a transformer.
    """
    target = Path(folder) / "transformer"
    _check_like_wan(dit.cfg)
    if dit.cfg.registers and action_horizon is None:
        raise CheckpointMismatch("a model with registers is saved with its action_horizon, the actions of a chunk.")
    if target.exists():
        raise CheckpointMismatch(f"{target} exists already; give a new folder.")
    state = dit.state_dict()
    registers = {names.theirs(n): _turned_back(state.pop(n)) for n in list(state) if names.is_register(n)}
    with atomic_path(target) as temporary:
        temporary.mkdir()
        write(temporary, state, shard_bytes=shard_bytes)
        if registers:
            write(temporary, registers, stem=Path(REGISTERS_FILE).stem, shard_bytes=2**62)
        (temporary / "config.json").write_text(json.dumps(_their_config(dit.cfg, action_horizon), indent=2))
    return target


# ---------------------------------------------------------------------------------------------------------- loading
def _load(
    source: Source,
    deltas: Mapping[str, tuple[Tensor, Tensor]],
    device: str | torch.device,
    dtype: torch.dtype | None,
    overrides: Mapping[str, Any],
) -> JointDiT:
    cfg = DiTConfig.model_validate({**source.describe().dit.model_dump(), **overrides})
    with torch.device("meta"):
        dit = JointDiT(cfg)
    _check(dit, source)
    for name, tensor in stream(source.pieces, device):
        if names.is_register(name):
            tensor = tensor[0].T.contiguous() if tensor.ndim > 2 else tensor[0]
        to = dtype or tensor.dtype
        if name in deltas:
            up, down = (factor.to(tensor.device) for factor in deltas[name])
            tensor = torch.addmm(tensor.float(), up, down)
        if names.KEPT_FLOAT32.search(name):
            to = torch.promote_types(to, torch.float32)
        parent, _, leaf = name.rpartition(".")
        setattr(dit.get_submodule(parent), leaf, nn.Parameter(tensor.to(to)))
        del tensor  # so that it is gone before the next one comes
    return dit.eval()


def _check(dit: JointDiT, source: Source) -> None:
    wanted = {name: tuple(p.shape) for name, p in dit.state_dict().items()}
    wrong = {
        "missing": [n for n in wanted if n not in source.pieces],
        "unexpected": source.strange + [h.name for n, h in source.pieces.items() if n not in wanted],
        "mis-shaped": [
            f"{n} is {source.shape(n)}, expected {shape}"
            for n, shape in wanted.items()
            if n in source.pieces and source.shape(n) != shape
        ],
    }
    if problems := [f"{len(which)} {what}: {some(which)}" for what, which in wrong.items() if which]:
        raise CheckpointMismatch(f"weights in {source.folder} do not fit: {'; '.join(problems)}.")


def _on(own: Source, base: str | Path | None) -> Source:
    """A LoRA alone, put on its base; what was trained beside the factors (registers) replaces the base's."""
    if base is None:
        raise CheckpointMismatch(own.needs_base())
    under = Source.open(Path(base))
    if under.factors:
        raise CheckpointMismatch(f"the base {base} is itself a LoRA checkpoint; compose and save it first.")
    if own.has_registers and not under.has_registers:
        raise CheckpointMismatch(f"the base {base} is a plain Wan, without DreamZero's registers. {own.needs_base()}")
    return replace(
        own,
        sections=own.sections + under.sections,
        dialect=under.dialect,
        pieces=under.pieces | own.pieces,
        strange=under.strange + own.strange,
    )


def _deltas(source: Source) -> dict[str, tuple[Tensor, Tensor]]:
    """Both factors of every changed weight, float32, the scale in the first; they are small."""
    special = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")
    if odd := [key for section in source.sections for key in special if section.get(key)]:
        raise CheckpointMismatch(f"{source.config} asks for {', '.join(odd)}; only plain LoRA can be merged.")
    alpha = source.need("lora_alpha")
    broken = [n for n, pair in source.factors.items() if len(pair) < 2 or n not in source.pieces]
    if broken:
        raise CheckpointMismatch(f"a factor, or the weight it changes, is missing of {some(broken)}; copy it again.")
    deltas = {}
    for name, pair in source.factors.items():
        (rank, width), (height, up), weight = pair["A"].shape, pair["B"].shape, source.shape(name)
        if rank != up or (height, width) != weight:
            raise CheckpointMismatch(
                f"the LoRA of {name} is ({height}, {up}) x ({rank}, {width}), expected {weight}; is it another base's?"
            )
        factors = dict(stream(pair))
        deltas[name] = factors["B"].float() * (alpha / rank), factors["A"].float()
    return deltas


# ----------------------------------------------------------------------------------------------------------- saving
def _check_like_wan(cfg: DiTConfig) -> None:
    wanted = {"see_last_frame": False, "pooled_text": False, "prediction": "velocity"}
    ours = ("place_frequencies", "action_frequencies", "steer_tokens", "decoder")
    wanted |= {key: DiTConfig.model_fields[key].default for key in ours}
    if not cfg.registers:
        wanted |= {"action_dim": 0, "proprio_dim": 0}
    if strange := [f"{key} {getattr(cfg, key)!r}" for key, value in wanted.items() if getattr(cfg, key) != value]:
        raise CheckpointMismatch(f"this model is no Wan: {', '.join(strange)}; save it with save_pretrained.")


def _turned_back(value: Tensor) -> Tensor:
    """A linear layer's weight or bias as the register of one embodiment."""
    return (value.T if value.ndim > 1 else value)[None]


def _their_config(cfg: DiTConfig, action_horizon: int | None) -> dict[str, Any]:
    about: dict[str, Any] = {
        "_class_name": names.NETWORKS[0],
        "added_kv_proj_dim": cfg.dim if cfg.image_dim else None,
        "attention_head_dim": cfg.head_dim,
        "cross_attn_norm": True,
        "eps": cfg.eps,
        "ffn_dim": cfg.ffn_dim,
        "freq_dim": cfg.freq_dim,
        "image_dim": cfg.image_dim or None,
        "in_channels": cfg.channels + cfg.condition_channels,
        "num_attention_heads": cfg.heads,
        "num_layers": cfg.layers,
        "out_channels": cfg.channels,
        "patch_size": list(cfg.patch),
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": cfg.text_dim,
    }
    if cfg.registers:
        about |= {
            "concat_first_frame_latent": cfg.condition_channels > 0,
            "max_chunk_size": cfg.max_context_blocks,
            "num_action_per_block": action_horizon,
            "num_frame_per_block": cfg.block,
            "num_state_per_block": 1,
        }
    return about
