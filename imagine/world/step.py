"""What follows a context under an action, and how far it can be believed: one step of every dream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imagine.model.dit import Kept
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel
from imagine.questions import DYNAMICS, INVERSE
from imagine.sampler import sample
from imagine.types import Context


@dataclass(frozen=True)
class Followed:
    """An imagined chunk.

    Attributes:
        video: (B, F, C, h, w) latents.
        proprio: (B, F, P) normalised; predicted, or where the actions lead if the model never predicts it.
        doubt: (B,) root mean square, in normalised action units, between the action and the one that INVERSE reads from
            what was imagined; zero where nobody asked.
    """

    video: Tensor
    proprio: Tensor
    doubt: Tensor


def follow(
    model: WorldActionModel,
    context: Context,
    action: Tensor,
    *,
    steps: int = 1,
    inverse_steps: int = 2,
    seeds: Sequence[int] | None = None,
    cache: ContextCache | None = None,
    kept: Kept | None = None,
) -> Followed:
    """Imagine one chunk in every lane.

    Args:
        model: imagines.
        context: B lanes.
        action: (B, K, A) normalised.
        steps: denoising steps of DYNAMICS.
        inverse_steps: of INVERSE; 0 leaves the check out.
        seeds: one per lane.
        cache: ``model.prefill(context)``, if at hand.
        kept: filled with what the last step leaves behind to be remembered.

    Raises:
        UntrainedQuestion: the checkpoint was not trained for DYNAMICS, or for INVERSE where it is asked.
    """
    cache = model.prefill(context) if cache is None else cache
    dream = sample(model, DYNAMICS, context, action=action, steps=steps, seeds=seeds, cache=cache, kept=kept)
    assert dream.video is not None
    proprio = model.felt(context, dream)
    doubt = torch.zeros(len(context), device=action.device)
    if inverse_steps:
        seen = sample(
            model, INVERSE, context, video=dream.video, proprio=dream.proprio, steps=inverse_steps, seeds=seeds,
            cache=cache,
        )  # fmt: skip
        assert seen.action is not None
        off = (seen.action - action)[..., : model.body.action_dim]
        doubt = off.square().mean((1, 2)).sqrt()
    return Followed(dream.video, proprio, doubt)
