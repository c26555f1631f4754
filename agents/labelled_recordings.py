"""Whole recorded episodes dreamt again under their own actions: labelled rollouts of a robot without a simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from imagine.agents.labelled_rollouts import HELD, TOGETHER, OnProgress, Recorder
from imagine.agents.rollout import DreamEnvs, RecordedEnvs, rollout
from imagine.data.windows import Windows
from imagine.labels import LabelledRollouts
from imagine.types import DatasetError
from imagine.world.dream import Dream
from imagine.world.starts import Start


class _FirstFrames:
    """Starts are the first frames of recorded episodes; a seed is the number of one."""

    def __init__(self, windows: Windows, rows: np.ndarray) -> None:
        self.windows, self.rows = windows, rows

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """See :class:`imagine.world.starts.Starts`."""
        batch = self.windows.batch(self.rows[[seed]])
        now = self.windows.context_frames - 1
        text = options.get("instruction") or batch.instructions[int(batch.instruction_id[0])]
        return Start(batch.video[0, now].numpy(), batch.proprio[0, now].numpy(), text, f"recorded-{seed}")


def recorded_rollouts(
    dream: Callable[[Any], Dream], windows: Windows, chunks: int, *, num_envs: int = TOGETHER, frames: bool = False,
    on_progress: OnProgress | None = None,
) -> LabelledRollouts:  # fmt: skip
    """Recorded episodes dreamt again from their first frames under their own actions, with the recorded labels.

    Args:
        dream: makes a dream of starts; its judge sees no success.
        windows: canvas windows.
        chunks: per episode at most; fewer where less than half of the episodes are that long. Shorter episodes, and
            those whose instruction changes on the way, are left out.
        num_envs: episodes imagined together.
        frames: whether the frames are wanted.
        on_progress: told how many episodes are done.

    Raises:
        DatasetError: the dataset does not record success, or no episode holds a whole chunk.
    """
    chains = _chains(windows, chunks)
    body, own = windows.embodiment, list(range(len(chains)))
    actions = np.stack([windows.actions(chains[:, t])[0] for t in range(chains.shape[1])], 1)
    actions = np.clip(actions, body.action_low, body.action_high)
    starts = _FirstFrames(windows, chains[:, 0])
    dreams = DreamEnvs(dream(starts), min(num_envs, len(own)), horizon=chains.shape[1], break_off=False)
    envs, recorder = RecordedEnvs(dreams, dict(enumerate(actions))), Recorder(dreams, len(own), frames)
    records = rollout(envs, None, own, keep=True, on_step=recorder, on_progress=on_progress)
    after = [windows.batch(chains[:, t]).success_future[:, : body.chunk_frames].any(1) for t in range(chains.shape[1])]
    done = np.logical_or.accumulate(np.stack([a.numpy() for a in after], 1), 1)
    ends = np.concatenate([chains[:, :1], chains + body.chunk_frames], 1)
    last = windows.episode_rows(chains[:, 0])[1][:, None]  # windows have a successor: the very last frame has none
    states = windows.newest(np.minimum(ends, last))[1]
    held = np.isin(chains[:, 0], windows.rows("held_out"))
    held = held if held.any() else np.arange(len(held)) % HELD == 0
    return recorder.labelled(records, states, done, "recorded", held)


def _chains(windows: Windows, chunks: int) -> np.ndarray:
    """(E, T) windows of episodes of one instruction, T as large as half of the episodes allow, ``chunks`` at most."""
    if not windows.batch(windows.rows()[:1]).success_valid.all():
        raise DatasetError("the dataset records no `next.success`, so no episode can be labelled; record it.")
    episodes = len(np.unique(windows.episode_rows(windows.rows())[0]))
    for length in range(chunks, 0, -1):
        chains = windows.chains(length)
        ids = windows.instruction_ids(chains.ravel()).reshape(chains.shape) if len(chains) else chains
        chains = chains[(ids == ids[:, :1]).all(1)]
        if len(chains) * 2 >= episodes:
            return chains
    raise DatasetError("less than half of the episodes hold a whole chunk of one instruction; record longer ones.")
