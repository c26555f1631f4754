"""What honest dreams look like: the limits beyond which a dream is not believed and no success counts."""

from __future__ import annotations

import numpy as np
import torch

from imagine.agents.labelled_frames import imagine_again
from imagine.data.windows import Windows
from imagine.model.model import WorldActionModel
from imagine.rewards.rules import blurred, noisy
from imagine.world.dream import DreamConfig
from imagine.world.fidelity import inverse_errors

EPISODES, MOMENTS, CHUNKS, TOGETHER = 200, 2000, 8, 64
RARE = 0.99


def measured_limits(model: WorldActionModel, windows: Windows, canvases: Windows) -> DreamConfig:
    """Settings of dreams, from held-out recordings.

    As MOReL, dreams halt beyond the inverse error that dreams of real frames ever show. How much sharpness a picture
    may lose, or win, is what one in a hundred moments does where recorded episodes are dreamt again, if that is more
    than the default: what leaves the view, or comes into it, takes sharpness along.

    Args:
        model: dreams.
        windows: latent windows.
        canvases: windows of the same rows as pictures.
    """
    cfg, rng = DreamConfig(), np.random.default_rng(0)
    held = rng.permutation(windows.rows("held_out"))[:MOMENTS]
    errors = inverse_errors(model, windows, held, cfg) if len(held) else np.array([np.inf])
    found = {"hallucination_limit": float(np.quantile(errors, RARE))}
    starts = canvases.chains(1, "held_out")[:, 0]
    if len(starts):
        dreams = imagine_again(model, canvases, rng.permutation(starts)[:EPISODES], chunks=CHUNKS)
        first = canvases.batch(dreams.rows).start_video
        with torch.inference_mode():
            shown = torch.cat([model.decode(part.float()[:, None]) for part in dreams.latents.split(TOGETHER)])
        for name, measure in (("blur_limit", blurred), ("noise_limit", noisy)):
            found[name] = max(getattr(cfg, name), float(np.quantile(measure(shown, first).numpy(), RARE)))
    return cfg.model_copy(update=found)
