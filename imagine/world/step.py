"""One step of every dream: predict the chunk that follows a context under an action, and show it to a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from torch import Tensor

from imagine.model.batching import TILE
from imagine.model.kv_cache import BlockKV, ContextCache
from imagine.model.model import WorldActionModel
from imagine.questions import DYNAMICS, INVERSE
from imagine.sampler import sample
from imagine.types import Clip, Context


class DreamConfig(BaseModel):
    """How a dream is imagined and checked; files of earlier versions say ``memory`` and ``doubt_cost``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = 1  # denoising steps per chunk
    tile: int = TILE  # rows per network call; fixed, so that a row's bytes do not depend on N; 0: all at once
    inverse_steps: int = 2  # denoising steps of the check; 0 leaves the check out
    hallucination_limit: float | None = None  # inverse error (normalised action units) above which nothing is believed
    blur_limit: float = 0.6  # share of the first frame's sharpness that a frame of a judged success may have lost
    noise_limit: float = 2.0  # and by which it may be sharper; noise is by far more
    adapter: str | None = None  # LoRA folder beside the weights that the dream has and the policy has not
    history: Literal["read", "extend", "kept", "reset"] = Field(  # see `imagine.world.history`
        default="read", validation_alias=AliasChoices("history", "memory")
    )
    compile: bool = False  # fuse the model's blocks, whose weights never change then; needs a C++ compiler on a CPU
    autocast: bool = False  # imagine in bfloat16 on chips that have it: about twice as fast; the last bits differ
    inverse_error_cost: float = Field(  # reward lost per unit of inverse error, every chunk (MOPO, arXiv:2005.13239)
        default=0.0, validation_alias=AliasChoices("inverse_error_cost", "doubt_cost")
    )


@dataclass(frozen=True)
class Prediction:
    """An imagined chunk.

    Attributes:
        video: (B, F, C, h, w) float latents, normalised.
        proprio: (B, F, P) float, normalised; predicted, or where the actions lead if the model never predicts it.
        inverse: (B, K, A) float, normalised: the action that INVERSE reads from what was imagined; None where nobody
            asked.
        inverse_error: (B,) float, root mean square in normalised action units between it and the commanded action;
            None likewise.
        memory: (B, M, h, w) float, the scene after the chunk, of a model with memory, else None.
    """

    video: Tensor
    proprio: Tensor
    inverse: Tensor | None = None
    inverse_error: Tensor | None = None
    memory: Tensor | None = None


def predict_chunk(
    model: WorldActionModel,
    context: Context,
    action: Tensor,
    cfg: DreamConfig,
    *,
    seeds: Sequence[int] | None = None,
    cache: ContextCache | None = None,
    block_kv: BlockKV | None = None,
) -> Prediction:
    """Imagine one chunk in every row.

    Args:
        model: imagines.
        context: B rows.
        action: (B, K, A) float, normalised.
        cfg: denoising steps of DYNAMICS and of INVERSE.
        seeds: one per row; None for fresh noise.
        cache: ``model.prefill(context)``, if at hand.
        block_kv: filled with the keys and values of the last denoising step; None where nobody needs them.

    Raises:
        UntrainedQuestion: the checkpoint was not trained for DYNAMICS, or for INVERSE where it is asked.
    """
    cache = model.prefill(context) if cache is None else cache
    dream = sample(
        model, DYNAMICS, context, action=action, steps=cfg.steps, seeds=seeds, cache=cache, block_kv=block_kv
    )
    assert dream.video is not None
    proprio = model.integrate_proprio(context, dream)
    if not cfg.inverse_steps:
        return Prediction(dream.video, proprio, memory=dream.memory)
    inverse = sample(
        model, INVERSE, context, video=dream.video, proprio=dream.proprio, steps=cfg.inverse_steps, seeds=seeds,
        cache=cache,
    ).action  # fmt: skip
    assert inverse is not None
    off = (inverse - action)[..., : model.body.action_dim]
    return Prediction(dream.video, proprio, inverse, off.square().mean((1, 2)).sqrt(), dream.memory)


@dataclass(frozen=True)
class EpisodeStart:
    """The first frame of B episodes.

    Attributes:
        video: (B, C, h, w) float latents, normalised.
        proprio: (B, P) float, normalised.
        canvas: (B, H, W, 3) uint8, the frame as the codec decodes it; None where it is not decoded yet.
    """

    video: Tensor
    proprio: Tensor
    canvas: Tensor | None = None


def judge_clip(
    model: WorldActionModel,
    start: EpisodeStart,
    context: Context,
    prediction: Prediction,
    action: Tensor,
    newest: Tensor | None = None,
) -> Clip:
    """What a judge is shown of a predicted chunk.

    Args:
        model: knows the units and decodes.
        start: B rows.
        context: what the chunk follows.
        prediction: the chunk.
        action: (B, K, A) float32, robot units, relative to the chunk's first state where the embodiment says so.
        newest: (B, H, W, 3) uint8, the chunk's newest frame, where it is decoded already.
    """
    latents = torch.cat([start.video[:, None], prediction.video], 1)
    decoded: Mapping[int, Tensor | None] = {0: start.canvas, prediction.video.shape[1]: newest}
    now = model.restore_proprio(context.proprio[:, -1])[:, model.anchor] * model.anchored
    commanded = model.displacements(action) + now[:, None]
    difference = torch.as_tensor(model.body.is_difference, device=action.device)
    return Clip(
        latents=latents,
        proprio=torch.cat([start.proprio[:, None], prediction.proprio], 1),
        decode=model.lazy_decode(latents, {i: f for i, f in decoded.items() if f is not None}, before=context.video),
        action=commanded,
        # An absolute command does not say where the robot is; no displacement is assumed there.
        pose=torch.where(difference, now, commanded[:, 0]),
        inverse_error=prediction.inverse_error,
    )
