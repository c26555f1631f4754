"""How often judges are right about the same actions: shown dreams, shown what truly happened, shown a frozen picture.

A judge that is right about real frames and wrong about dreams says what the pictures of the dream cost. One that is as
right about the first picture held for ever does not look: what it says of a dream is no credit to the dream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from imagine.agents.rollout import OnProgress
from imagine.agents.same_actions import TOGETHER, SameActions
from imagine.agents.statistics import mean_interval, success_rate
from imagine.types import Chunk, Clip, RewardModel, Score
from imagine.world.step import EpisodeStart, Prediction, judge_clip

SHOWN = ("dream", "real", "frozen")
"""What judges are shown: dreams; true frames (and their latents); the first picture, and where the actions lead."""


class Panel:
    """A ``RewardModel`` of several judges: what each says is a term of its name, and no episode ends."""

    def __init__(self, judges: Mapping[str, RewardModel]) -> None:
        """``judges`` by name."""
        self.judges = judges

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """See :class:`imagine.types.RewardModel`."""
        nothing = torch.zeros(len(clip.latents))
        terms = {name: judge(clip, instruction).terminated.float().cpu() for name, judge in self.judges.items()}
        return Score(nothing, nothing, nothing == 0, terms)


def judged(same: SameActions, panel: Panel, shown: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """By judge (M, C) bool: has it seen a success of some rollouts by the end of each chunk?

    Args:
        same: the rollouts, and who dreams of them.
        panel: the judges.
        shown: one of :data:`SHOWN`.
        rows: (M,) numbers of rollouts.
    """
    if shown == "dream":
        outcomes = [o for _, o in same.dream(rows, same.rollouts.actions[rows], panel)]
        each = {n: np.stack([o.info["reward_terms"][n] for o in outcomes], 1) for n in panel.judges}
    else:
        each = _judged_clips(same, panel, shown == "frozen", rows)
    return {name: np.logical_or.accumulate(x > 0, 1) for name, x in each.items()}


@torch.inference_mode()
def _judged_clips(same: SameActions, panel: Panel, frozen: bool, rows: np.ndarray) -> dict[str, np.ndarray]:
    model, rollouts, f = same.model, same.rollouts, same.model.chunk_shapes["video"][0]
    texts = [str(t) for t in rollouts.instructions[rows]]
    latents = same.latents(rollouts.frames[rows])
    felt = torch.from_numpy(rollouts.proprio[rows][:, :: model.temporal]).to(model.device)
    proprio = model.normalise_proprio(felt)
    start = EpisodeStart(latents[:, 0], proprio[:, 0])
    terms = []
    for c in range(rollouts.actions.shape[1]):
        now, ends = 1 + c * f, 1 + (c + 1) * f
        context = model.context(latents[:, :now], proprio[:, :now], texts)
        action = torch.from_numpy(model.body.check_action(rollouts.actions[rows, c])).to(model.device)
        if frozen:
            led = model.integrate_proprio(context, Chunk(action=model.normalise_action(action)))
            latents[:, now:ends], proprio[:, now:ends] = latents[:, :1], led
        chunk = Prediction(latents[:, now:ends], proprio[:, now:ends])
        clip = judge_clip(model, start, context, chunk, action)
        if not frozen:
            shown = rollouts.frames[rows][:, :: model.temporal][:, [0, *range(now, ends)]]
            clip = replace(clip, decode=_shown(shown, model.device))
        terms.append(panel(clip, texts).terms)
    return {name: torch.stack([t[name] for t in terms], 1).numpy() for name in panel.judges}


def _shown(frames: np.ndarray, device: torch.device) -> Callable[..., torch.Tensor]:
    """A ``Clip.decode`` of frames (M, 1 + F, H, W, 3) that nobody has to decode."""
    known = torch.from_numpy(frames).to(device)
    return lambda wanted=None: known if wanted is None else known[:, list(wanted)]


def compare_judges(
    same: SameActions, judges: Mapping[str, RewardModel], *, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Ask judges about all rollouts, and hold what they say against the truth of the same actions.

    Args:
        same: who dreams of what.
        judges: by name.
        on_progress: told how many rollouts are done.

    Returns:
        By judge and what it was shown (:data:`SHOWN`) a list over chunks: ``agreement``, the share of rollouts of which
        it says by then what is true, with its interval, and ``bias``, the share it calls done less the true one.
    """
    panel, done, n = Panel(judges), same.rollouts.done, len(same.rollouts)
    says: dict[str, dict[str, list[np.ndarray]]] = {name: {shown: [] for shown in SHOWN} for name in judges}
    for begin in range(0, n, TOGETHER):
        rows = np.arange(begin, min(begin + TOGETHER, n))
        for shown in SHOWN:
            for name, said in judged(same, panel, shown, rows).items():
                says[name][shown].append(said)
        if on_progress is not None:
            on_progress(int(rows[-1]) + 1, n)
    return {
        name: {shown: _held_against(np.concatenate(said), done) for shown, said in each.items()}
        for name, each in says.items()
    }


def _held_against(said: np.ndarray, done: np.ndarray) -> dict[str, Any]:
    """Agreement and bias by chunk of judgements (N, C) and truth (N, C), both bool."""
    agreement = [success_rate(a == b).plain() for a, b in zip(said.T, done.T, strict=True)]
    off = said.astype(np.float64) - done
    return {"agreement": agreement, "bias": [mean_interval(x, expanded=True).plain() for x in off.T]}
