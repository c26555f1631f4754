"""Does somebody else's world model follow its actions? The measures that ours is held to, on a ``ForeignModel``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from imagine.agents.rollout import OnProgress
from imagine.agents.statistics import decibel_gain, success_rate
from imagine.agents.true_rollouts import TrueRollouts
from imagine.data.windows import WindowBatch, Windows
from imagine.embodiment import Embodiment
from imagine.world.fidelity import clip_mse, decibel
from imagine.world.foreign import ForeignModel, shown

TOGETHER = 16


def measure_foreign(
    model: ForeignModel, windows: Windows, *, n: int, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Predict recorded chunks under their own actions, under others, and not at all.

    Args:
        model: whose.
        windows: canvas windows over the episodes.
        n: windows at most, drawn evenly.
        on_progress: called with windows done and windows in all.

    Returns:
        ``psnr_true``, ``psnr_shuffled``, ``psnr_copy`` (the last frame, still) in dB; ``gain_over_copy`` and
        ``gain_over_shuffled`` with intervals over episodes; ``counterfactual``, the share of windows whose truth is
        nearer to the prediction under its own actions than to that under another window's, 0.5 for a model that does
        not listen; ``n``, ``episodes``.
    """
    rows = windows.rows("all")
    rows = np.sort(rows[np.random.default_rng(0).permutation(len(rows))[:n]])
    each: dict[str, list[np.ndarray]] = {}
    for begin in range(0, len(rows), TOGETHER):
        part = rows[begin : begin + TOGETHER]
        other = np.roll(rows, len(rows) // 2)[begin : begin + TOGETHER]
        found = _errors(model, windows, windows.batch(part), windows.batch(other), [int(r) for r in part])
        for name, error in found.items():
            each.setdefault(name, []).append(error)
        if on_progress is not None:
            on_progress(begin + len(part), len(rows))
    errors = {name: np.concatenate(parts) for name, parts in each.items()}
    answer: dict[str, Any] = {f"psnr_{k}": round(decibel(errors[k]), 3) for k in ("true", "shuffled", "copy")}
    for name in ("copy", "shuffled"):
        answer[f"gain_over_{name}"] = decibel_gain(errors["true"], errors[name], errors["episode"]).plain()
    told = errors["true"] != errors["shuffled"]  # one that shows the same under both says nothing either way
    nearer = np.where(told, errors["true"] < errors["shuffled"], np.arange(len(told)) % 2 == 0)
    answer["counterfactual"] = success_rate(nearer).plain()
    return {**answer, "n": len(rows), "episodes": len(np.unique(errors["episode"]))}


def _errors(
    model: ForeignModel, windows: Windows, batch: WindowBatch, other: WindowBatch, seeds: list[int]
) -> dict[str, np.ndarray]:
    """Squared errors (B,) by what is predicted, and the episode of each window."""
    t, body = windows.context_frames, windows.embodiment
    truth, valid = batch.video[:, t:], batch.video_valid
    told = [batch.instructions[i] for i in batch.instruction_id]
    state = model.encode(batch.video[:, :t].numpy(), batch.proprio[:, :t].numpy(), told)
    frames = {"copy": batch.video[:, t - 1, None].expand_as(truth)}
    for name, actions in (("true", batch.action), ("shuffled", other.action)):
        predicted = model.predict(state, actions.numpy(), seeds)
        frames[name] = torch.from_numpy(shown(model, body, predicted, len(seeds)))
    return {k: clip_mse(v, truth, valid).numpy() for k, v in frames.items()} | {"episode": batch.episode.numpy()}


class ForeignActions:
    """What :func:`imagine.agents.object_fidelity.measure_objects` asks, of a ``ForeignModel``; no codec."""

    kinds = ("dream", "codec", "frozen", "shuffled")

    def __init__(self, model: ForeignModel, rollouts: TrueRollouts, body: Embodiment) -> None:
        """Say who dreams of what."""
        self.foreign, self.rollouts, self.model = model, rollouts, SimpleNamespace(body=body)
        self.shuffled = np.roll(np.arange(len(rollouts)), max(1, len(rollouts) // 2))

    def pictures(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """(M, T, H, W, 3) uint8 of some rollouts, the first of them true."""
        r, frames = self.rollouts, self.rollouts.frames[rows]
        if kind in ("frozen", "codec"):
            return frames if kind == "codec" else np.repeat(frames[:, :1], frames.shape[1], 1)
        actions = r.actions[self.shuffled[rows] if kind == "shuffled" else rows]
        state = self.foreign.encode(frames[:, :1], r.proprio[rows, :1], [str(r.instructions[i]) for i in rows])
        parts = [frames[:, :1]]
        for c in range(actions.shape[1]):
            state = self.foreign.predict(state, actions[:, c], [int(i) for i in rows])
            parts.append(shown(self.foreign, self.model.body, state, len(rows)))
        return np.concatenate(parts, 1)
