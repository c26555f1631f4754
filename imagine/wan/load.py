"""A Wan or DreamZero checkpoint as a :class:`WorldActionModel`: its transformer in our class, its other parts frozen.

The robot is data here too: an embodiment file says which cameras fill the canvas, and statistics what a normalised
number means. What a checkpoint was never trained to answer it refuses; `imagine finetune joint` teaches it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imagine.embodiment import Embodiment
from imagine.files import atomic_write
from imagine.model.checkpoint import resolve
from imagine.model.config import ModelConfig, PromptConfig, Statistics, VideoCodecConfig
from imagine.model.dit import DiTConfig, JointDiT
from imagine.model.model import WorldActionModel
from imagine.types import CheckpointMismatch, ShapeError
from imagine.wan.convert import PARTS, Foreign, compose_lora, inspect, load_dit, other_parts
from imagine.wan.shards import headers, read_json, some, stream, write

_ASSETS = ("*.json", "*.safetensors", "*.txt", "*.model")
SHIFT = 5.0  # of Wan's and DreamZero's noise levels
FACTORS = {16: 8, 48: 16}  # pixels per latent cell of Wan 2.1 and 2.2, by latent channels
LEFT_OPEN = ("parity", "blank", "max_context_blocks", "sink_blocks")
"""What a checkpoint does not say about a transformer."""


def describe(
    folder: str | Path,
    embodiment: Embodiment | str | Path,
    statistics: Statistics | None = None,
    *,
    template: str = "{task}",
    parts: str | Path | None = None,
    answers: Sequence[str] | None = None,
    factor: int | None = None,
    length: int = 512,
    **dit: Any,
) -> ModelConfig:
    """What a foreign checkpoint is as a model of ours, from its config and the headers of its files; no weight is read.

    Args:
        folder: Wan in diffusers layout, DreamZero or DreamZero-5B in either; a folder or a hub id.
        embodiment: the robot, or the file that describes it; its chunk must be the checkpoint's.
        statistics: of the robot's numbers; None reads those beside a DreamZero checkpoint (``experiment_cfg``), and
            takes the embodiment's bounds for a plain Wan, which sees neither states nor actions.
        template: the prompts that the model was trained on, around ``{task}``; see :data:`imagine.wan.convert.PROMPTS`.
        parts: a Wan pipeline in diffusers layout with codec, text and image encoder; None takes the folder's own.
        answers: questions it was trained to answer; by default JOINT for a DreamZero and VIDEO for a Wan.
        factor: pixels per latent cell; None is what Wan's codecs of 16 and 48 channels have.
        length: tokens that a prompt is filled up to.
        dit: fields of :class:`DiTConfig` that the checkpoint leaves open: ``parity``, ``blank``,
            ``max_context_blocks``, ``sink_blocks`` (by default a DreamZero keeps its first frame, which its image
            condition is about).

    Raises:
        CheckpointMismatch: as :func:`imagine.wan.convert.inspect`, or the statistics are nowhere to be found.
        ShapeError: the embodiment's chunk or canvas is not the checkpoint's.
    """
    where = resolve(folder, _ASSETS)
    body = embodiment if isinstance(embodiment, Embodiment) else Embodiment.load(embodiment)
    foreign = inspect(where)
    _check_chunk(foreign, body)
    zero = foreign.dit.registers is not None
    network = foreign.dit.model_copy(update={"sink_blocks": int(zero and foreign.dit.first_alone)} | dit)
    factor = factor or FACTORS.get(network.channels)
    if factor is None:
        raise CheckpointMismatch(f"latents of {network.channels} channels are none of Wan's codecs; give `factor`.")
    source = str(where if parts is None else parts)
    return ModelConfig(
        name=where.name,
        weights=str(where),
        embodiment=body,
        dit=DiTConfig.model_validate(network.model_dump()),
        codec=VideoCodecConfig(source=source, channels=network.channels, factor=factor),
        text=PromptConfig(source=source, template=template, length=length, dim=network.text_dim),
        statistics=statistics or (read_statistics(where, body) if zero else _of_bounds(body)),
        context_frames=remembered(network),
        answers=tuple(answers) if answers is not None else ("JOINT",) if zero else ("VIDEO",),
        schedule_shift=SHIFT,
    )


def adopt(
    folder: str | Path,
    embodiment: Embodiment | str | Path,
    out: str | Path,
    statistics: Statistics | None = None,
    **more: Any,
) -> ModelConfig:
    """Write a model folder that points at a foreign checkpoint, for ``WorldActionModel.from_pretrained``.

    Args:
        folder: see :func:`describe`.
        embodiment: see :func:`describe`.
        out: folder for ``config.json``; the weights stay where they are.
        statistics: see :func:`describe`.
        more: as :func:`describe`.
    """
    cfg, out = describe(folder, embodiment, statistics, **more), Path(out)
    atomic_write(out / "config.json", cfg.model_dump_json(indent=1))
    return cfg


def load_pretrained(
    folder: str | Path,
    embodiment: Embodiment | str | Path,
    statistics: Statistics | None = None,
    *,
    codec: nn.Module | None = None,
    text: nn.Module | None = None,
    image_encoder: nn.Module | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    **more: Any,
) -> WorldActionModel:
    """Load a foreign checkpoint and dress it as a model of ours.

    Args:
        folder: see :func:`describe`.
        embodiment: see :func:`describe`.
        statistics: see :func:`describe`.
        codec: a codec that is loaded already; likewise ``text`` and ``image_encoder``.
        text: see ``codec``.
        image_encoder: see ``codec``.
        device: where to.
        dtype: of the transformer's weights, None for that of the files.
        more: as :func:`describe`.

    Raises:
        CheckpointMismatch: as :func:`imagine.wan.convert.load_dit`, or a part is nowhere to be found.
        ShapeError: the embodiment's chunk or canvas is not the checkpoint's.
    """
    if codec is not None:
        more.setdefault("factor", codec.factor)
    if text is not None:
        more.setdefault("length", text.length)
    cfg = describe(folder, embodiment, statistics, **more)
    ready = {"codec": codec, "text": text, "image_encoder": image_encoder}
    return rebuild(cfg, Path(folder), device, dtype, **{k: v for k, v in ready.items() if v is not None})


def remembered(cfg: DiTConfig) -> int:
    """Latent frames that fill a transformer's memory."""
    alone = int(cfg.first_alone)
    return (alone + (cfg.max_context_blocks - alone) * cfg.block) * cfg.patch[0]


def save(model: WorldActionModel, folder: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
    """Write ``config.json`` and the transformer, in shards and as it is; the frozen parts stay where they are."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, model.dit.state_dict(), stem="model", shard_bytes=shard_bytes)
    atomic_write(folder / "config.json", model.cfg.model_copy(update={"weights": None}).model_dump_json(indent=1))


def rebuild(
    cfg: ModelConfig,
    folder: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    **parts: nn.Module,
) -> WorldActionModel:
    """Load what :func:`save` or :func:`adopt` wrote; parts (codec, text, image_encoder) at hand are taken over.

    Raises:
        CheckpointMismatch: tensors are missing or of another shape, or a frozen part is not where it was.
    """
    assert isinstance(cfg.codec, VideoCodecConfig) and isinstance(cfg.text, PromptConfig)
    if cfg.weights is None:
        dit = _own(cfg.dit, folder, device)
    else:
        where = resolve(cfg.weights, _ASSETS)
        open_ = {name: getattr(cfg.dit, name) for name in LEFT_OPEN}
        load = compose_lora if inspect(where).lora else load_dit
        dit = load(where, device=device, dtype=dtype, **open_)
    source = resolve(cfg.codec.source, _ASSETS) if len(parts) < 2 + bool(cfg.dit.image_dim) else Path(cfg.codec.source)
    own = source.is_dir() and not _is_pipeline(source)
    codec = parts.get("codec") or _codec(source, own)
    text = parts.get("text") or _text(source, own)
    images = parts.get("image_encoder") or (_image_encoder(source, own) if cfg.dit.image_dim else None)
    return WorldActionModel(cfg, dit=dit, codec=codec, text=text, image_encoder=images).to(device).eval()


def _own(cfg: DiTConfig, folder: Path, device: str | torch.device) -> JointDiT:
    with torch.device("meta"):
        dit = JointDiT(cfg)
    want, found = dit.state_dict(), headers(folder)
    wrong = [n for n, v in want.items() if n not in found or found[n].shape != tuple(v.shape)]
    if wrong or len(found) != len(want):
        odd = wrong or sorted(found.keys() - want.keys())
        raise CheckpointMismatch(f"weights in {folder} do not fit its config: {some(odd)}; copy the whole folder.")
    dit.load_state_dict(dict(stream({n: found[n] for n in want}, device)), assign=True)
    return dit


def _is_pipeline(folder: Path) -> bool:
    return (folder / "vae").is_dir()


def read_statistics(folder: Path, body: Embodiment) -> Statistics:
    """A robot's statistics beside a DreamZero checkpoint: quantiles 1 and 99 are -1 and 1, relative where it says so.

    Raises:
        CheckpointMismatch: the files are not there, or know none of the robot's slices.
    """
    about = read_json(_one(folder, "metadata.json"))
    about = about.get(body.name) or (next(iter(about.values())) if len(about) == 1 else {})
    known = about.get("statistics", about)
    relative = next(iter(folder.rglob("relative_stats_dreamzero.json")), None)
    moved = read_json(relative) if relative else {}

    def centre(name: str, size: int, *tables: Mapping[str, Any]) -> tuple[list[float], list[float]]:
        found = next((t[name] for t in tables if name in t), None)
        if not found or len(found.get("q01", ())) != size or len(found.get("q99", ())) != size:
            raise CheckpointMismatch(
                f"statistics in {folder} have no quantiles of {size} numbers for {name!r}; give `statistics` "
                "(--statistics FILE.json)."
            )
        low, high = found["q01"], found["q99"]
        mean = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        return mean, [max((b - a) / 2, 1e-6) for a, b in zip(low, high, strict=True)]

    states = {s.name: s.size for s in body.state}
    proprio = [centre(n, states[n], known.get("state", {})) for n in body.proprio]
    action = [centre(a.name, a.size, *([moved] if a.relative_to else []), known.get("action", {})) for a in body.action]
    flat = [tuple(x for part in parts for x in part[i]) for parts in (proprio, action) for i in (0, 1)]
    return Statistics(proprio_mean=flat[0], proprio_std=flat[1], action_mean=flat[2], action_std=flat[3])


def _of_bounds(body: Embodiment) -> Statistics:
    low, high = body.action_low.astype(float), body.action_high.astype(float)
    middle, half = tuple(((low + high) / 2).tolist()), tuple(((high - low) / 2).clip(1e-6).tolist())
    p = body.proprio_dim
    return Statistics(proprio_mean=(0.0,) * p, proprio_std=(1.0,) * p, action_mean=middle, action_std=half)


def _one(folder: Path, name: str) -> Path:
    found = sorted(folder.rglob(name))
    if not found:
        raise CheckpointMismatch(
            f"{folder} has no {name}, so nothing says what its numbers mean; give `statistics` (--statistics FILE)."
        )
    return found[0]


def _check_chunk(foreign: Foreign, body: Embodiment) -> None:
    if foreign.action_horizon and foreign.action_horizon != body.chunk_actions:
        raise ShapeError(
            f"checkpoint's chunk is {foreign.action_horizon} actions, that of {body.name!r} {body.chunk_actions}."
        )
    if foreign.dit.registers and 4 * foreign.block_frames != body.chunk_frames:
        raise ShapeError(
            f"checkpoint's chunk is {4 * foreign.block_frames} frames, that of {body.name!r} {body.chunk_frames}."
        )
    if foreign.canvas and foreign.canvas != (body.canvas_height, body.canvas_width):
        raise ShapeError(
            f"checkpoint's canvas is {foreign.canvas}, that of embodiment {body.name!r} is "
            f"{(body.canvas_height, body.canvas_width)}."
        )


def _codec(source: Path, own: bool) -> Any:
    from imagine.wan.encoders import load_codec

    return load_codec(other_parts(source, PARTS["vae"]) if own else source)


def _text(source: Path, own: bool) -> Any:
    from imagine.wan.encoders import load_prompts

    return load_prompts(other_parts(source, PARTS["text_encoder"]) if own else source)


def _image_encoder(source: Path, own: bool) -> Any:
    from imagine.wan.encoders import load_image_encoder

    return load_image_encoder(other_parts(source, PARTS["image_encoder"]) if own else source)


def layout(folder: Path) -> str:
    """Layout of a Wan or DreamZero checkpoint; empty where there is none."""
    try:
        return inspect(folder).layout
    except CheckpointMismatch:
        return ""
