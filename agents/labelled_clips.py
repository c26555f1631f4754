"""Clips for a judge that looks at pictures, each with the true state at every moment of it.

A recording that holds the true state can be asked about in hindsight: whatever the robot was told, any instruction may
be asked about between any two frames of an episode. So every demonstration is also a wrong-object and a
wrong-instruction clip, and every failure a near-miss or a drop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imagine.agents.labelled_frames import OnProgress, imagine_again
from imagine.data.windows import Windows
from imagine.labels import Clips, LabelledRollouts
from imagine.model.model import WorldActionModel
from imagine.model.text import split_words
from imagine.policy.robots.plugin import RobotPlugin


class RecordedClips:
    """Clips of canvas windows as they were recorded."""

    def __init__(self, windows: Windows, rows: np.ndarray, *, backwards: float = 0.0, frozen: float = 0.0) -> None:
        """Clips around ``rows``; ``backwards`` and ``frozen`` are the shares that run so."""
        self.windows, self.rows, self.backwards, self.frozen = windows, rows, backwards, frozen

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, at: np.ndarray, rng: np.random.Generator, moments: int) -> Clips:
        """See :class:`imagine.labels.ClipSource`."""
        rows = self.rows[at]
        first, last = self.windows.episode_rows(rows)
        anywhere = _between(rng, first[:, None], last[:, None], 1)[:, 0]
        begin = np.where(rng.uniform(size=len(rows)) < 0.6, first, anywhere)
        others = _between(rng, first[:, None], last[:, None], moments - 1)
        now = np.sort(np.concatenate([rows[:, None], others], 1), 1)
        kind = rng.uniform(size=len(rows))
        now = np.where((kind < self.backwards)[:, None], now[:, ::-1], now)
        now = np.where((kind > 1 - self.frozen)[:, None], begin[:, None], now)
        (seen, before), (pictures, truth) = self.windows.newest(begin), self.windows.newest(now)
        return Clips(seen, pictures, before, truth)


class ImaginedClips:
    """Clips of recorded episodes dreamt again under their own actions, labelled by the recording."""

    def __init__(
        self,
        model: WorldActionModel,
        windows: Windows,
        rows: np.ndarray,
        chunks: int,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Dream ``chunks`` chunks from those of the canvas windows ``rows`` whose instruction the model knows."""
        self.windows = windows
        known = [set(split_words(i)) <= set(model.text.cfg.words) for i in windows.instructions]
        rows = rows[np.array(known)[windows.instruction_ids(rows)]]
        found = imagine_again(model, windows, rows, chunks=chunks, on_progress=on_progress)
        order = np.argsort(found.dream, kind="stable")
        self.rows, self.dream = found.rows[order], found.dream[order]
        self.now = _decoded(model, found.latents[torch.from_numpy(order)].split(256))
        self.started_at = rows
        self.start = _through_codec(model, windows.newest(rows)[0])
        self.origin_row, _ = windows.episode_rows(rows)
        self.origin = _through_codec(model, windows.newest(self.origin_row)[0])
        names, self.offset, self.length = np.unique(self.dream, return_index=True, return_counts=True)
        self.of = np.searchsorted(names, self.dream)

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, at: np.ndarray, rng: np.random.Generator, moments: int) -> Clips:
        """See :class:`imagine.labels.ClipSource`."""
        low = self.offset[self.of[at]]
        high = low + self.length[self.of[at]] - 1
        others = _between(rng, low[:, None], high[:, None], moments - 1)
        now = np.sort(np.concatenate([at[:, None], others], 1), 1)
        dream = self.dream[at]
        whole = rng.uniform(size=len(at)) < 0.5
        first = np.where(whole[:, None, None, None], self.origin[dream], self.start[dream])
        _, before = self.windows.newest(np.where(whole, self.origin_row[dream], self.started_at[dream]))
        return Clips(first, self.now[now], before, self.windows.newest(self.rows[now])[1])


class RolloutClips:
    """Clips of imagined rollouts of policies, labelled by what the same actions did on the simulator.

    Where a dream is kinder than the world (a clumsy grasp that holds), this is what tells the judge.
    """

    def __init__(self, rollouts: LabelledRollouts, *, backwards: float = 0.0) -> None:
        """``rollouts`` with frames and states; a share ``backwards`` of the clips run so."""
        self.frames, self.states, self.backwards = rollouts.frames, rollouts.states, backwards

    def __len__(self) -> int:
        return self.frames.shape[0] * (self.frames.shape[1] - 1)

    def draw(self, at: np.ndarray, rng: np.random.Generator, moments: int) -> Clips:
        """See :class:`imagine.labels.ClipSource`."""
        n, last = len(at), self.frames.shape[1] - 1
        which, when = at // last, at % last + 1
        others = _between(rng, np.full((n, 1), 1), np.full((n, 1), last), moments - 1)
        now = np.sort(np.concatenate([when[:, None], others], 1), 1)
        begin = np.zeros(n, int)
        back = rng.uniform(size=n) < self.backwards
        begin[back], now[back] = last, last - now[back]
        row = which[:, None]
        return Clips(self.frames[which, begin], self.frames[row, now], self.states[which, begin], self.states[row, now])


@dataclass(frozen=True)
class AskedClips:
    """N questions about recorded clips, with the truth.

    Attributes:
        clips: (N, 2, H, W, 3) uint8, the first frame and now.
        instruction: what is asked about.
        label: (N,) bool.
        cluster: (N,) int, the first window of the episode; clips of one are not independent.
    """

    clips: np.ndarray
    instruction: list[str]
    label: np.ndarray
    cluster: np.ndarray


def ask_episodes(windows: Windows, robot: RobotPlugin, seed: int) -> AskedClips:
    """Questions about each recorded episode: its end and a random moment, about what was told, and about another.

    What was told is the episode's last instruction, and its clip begins when that was given. Another instruction is
    asked about where the true state was recorded and the robot reads answers from it; else labels are the recorded
    success of the episode's own.
    """
    rng, picked = np.random.default_rng(seed), list[tuple[int, int, str, int]]()
    first, last = windows.episode_rows(windows.rows("all"))
    known = robot.instructions() if windows.newest(windows.rows()[:1])[1].shape[-1] else ()
    for begin, end in np.unique(np.stack([first, last], 1), axis=0).tolist():
        ids = windows.instruction_ids(np.arange(begin, end + 1))
        given = begin + int(np.flatnonzero(ids != ids[-1]).max(initial=-1)) + 1
        own, state = windows.instructions[ids[-1]], windows.newest(np.array(given))[1]
        others = [text for text in known if text != own and robot.answers(state, state, text)["possible"]]
        for at in (end, int(rng.integers(given, end + 1))):
            picked.append((given, at, own, begin))
            if others:
                picked.append((given, at, others[int(rng.integers(len(others)))], begin))
    begins, nows, texts, clusters = (list(x) for x in zip(*picked, strict=True))
    (seen, before), (pictures, after) = windows.newest(np.array(begins)), windows.newest(np.array(nows))
    if known:
        label = [bool(robot.answers(b, a, t)["success"]) for b, a, t in zip(before, after, texts, strict=True)]
    else:
        label = windows.succeeded(np.array(nows)).tolist()
    return AskedClips(np.stack([seen, pictures], 1), texts, np.array(label, bool), np.array(clusters))


@torch.inference_mode()
def _decoded(model: WorldActionModel, latents: Iterable[Tensor]) -> np.ndarray:
    """Batches of latents to (N, H, W, 3) uint8."""
    return np.concatenate([model.codec.decode(part.to(model.device, torch.float32)).cpu().numpy() for part in latents])


@torch.inference_mode()
def _through_codec(model: WorldActionModel, frames: np.ndarray) -> np.ndarray:
    """What a dream shows of real frames (N, H, W, 3) uint8: they have gone through the codec."""
    return _decoded(model, (model.codec.encode(x.to(model.device)) for x in torch.from_numpy(frames).split(256)))


def _between(rng: np.random.Generator, low: np.ndarray, high: np.ndarray, n: int) -> np.ndarray:
    """(len(low), n) integers from low to high, both (N, 1), ends included."""
    return low + (rng.uniform(size=(len(low), n)) * (high - low + 1)).astype(np.int64)
