"""Clips of the table to ask a judge about, and questions with their true answers.

A dataset that records the true state can be asked about in hindsight: whatever was told, any instruction may be asked
about between any two frames of an episode. So every demonstration is also a wrong-object and a wrong-instruction clip,
and every failure a near-miss or a drop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from imagine.configs.commands.imagined import imagined
from imagine.configs.material import Rollouts
from imagine.data.windows import Windows
from imagine.model.model import WorldActionModel
from imagine.model.text import split_words
from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.policy.robots.g1_table.tasks import FAMILIES, Task
from imagine.policy.robots.g1_table.truth import accomplished, held, is_there, left_alone, progress, touched
from imagine.rewards.local import Ask
from imagine.rewards.prompts import CONTACT, HOLDING, NO, PROGRESS, SAFETY, SUCCESS, YES, Prompt

TASKS = tuple(Task(f, c) for f in FAMILIES for c in COLOURS)
QUESTIONS: tuple[tuple[Prompt, float], ...] = (
    (SUCCESS, 0.6), (PROGRESS, 0.16), (HOLDING, 0.08), (CONTACT, 0.08), (SAFETY, 0.08)
)  # fmt: skip


@dataclass(frozen=True)
class Clips:
    """N clips to ask about: the first picture, M later ones, and what was true at each."""

    first: np.ndarray  # (N, H, W, 3) uint8
    now: np.ndarray  # (N, M, H, W, 3) uint8
    before: np.ndarray  # (N, S)
    truth: np.ndarray  # (N, M, S)

    def pictures(self) -> Tensor:
        """(N, M, 1, 2, H, W, 3) uint8: every moment beside the first picture."""
        first = np.broadcast_to(self.first[:, None], self.now.shape)
        return torch.from_numpy(np.stack([first, self.now], 2)[:, :, None])


class Recorded:
    """Real clips from canvas windows."""

    def __init__(self, windows: Windows, rows: np.ndarray, backwards: float, frozen: float) -> None:
        """Clips around ``rows``; ``backwards`` and ``frozen`` are the shares that run so."""
        self.windows, self.rows, self.backwards, self.frozen = windows, rows, backwards, frozen

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, at: np.ndarray, rng: np.random.Generator, moments: int) -> Clips:
        """Clips that end in or around the windows numbered ``at`` of ``rows``."""
        rows = self.rows[at]
        first, last = self.windows.episode_rows(rows)
        begin = np.where(
            rng.uniform(size=len(rows)) < 0.6, first, _between(rng, first[:, None], last[:, None], 1)[:, 0]
        )
        others = _between(rng, first[:, None], last[:, None], moments - 1)
        now = np.sort(np.concatenate([rows[:, None], others], 1), 1)
        kind = rng.uniform(size=len(rows))
        now = np.where((kind < self.backwards)[:, None], now[:, ::-1], now)
        frozen = (kind > 1 - self.frozen)[:, None]
        now = np.where(frozen, begin[:, None], now)
        (seen, before), (pictures, truth) = self.windows.newest(begin), self.windows.newest(now)
        return Clips(seen, pictures, before, truth)


class Dreamt:
    """Imagined clips, labelled by what the recording says about the same moments."""

    def __init__(self, model: WorldActionModel, windows: Windows, rows: np.ndarray, chunks: int) -> None:
        self.windows = windows
        known = [set(split_words(i)) <= set(model.text.cfg.words) for i in windows.instructions]
        rows = rows[np.array(known)[windows.instruction_ids(rows)]]
        bank = imagined(model, windows, rows, chunks=chunks)
        order = np.argsort(bank.dream, kind="stable")
        self.rows, self.dream = bank.rows[order], bank.dream[order]
        self.now = _decoded(model, bank.latents[torch.from_numpy(order)].split(256))
        self.begun = rows
        self.start = _through(model, windows.newest(rows)[0])
        self.origin_row, _ = windows.episode_rows(rows)
        self.origin = _through(model, windows.newest(self.origin_row)[0])
        names, self.offset, self.length = np.unique(self.dream, return_index=True, return_counts=True)
        self.of = np.searchsorted(names, self.dream)

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, at: np.ndarray, rng: np.random.Generator, moments: int) -> Clips:
        """Clips around the imagined frames numbered ``at``."""
        own = self.of[at]
        low = self.offset[own]
        high = low + self.length[own] - 1
        others = _between(rng, low[:, None], high[:, None], moments - 1)
        now = np.sort(np.concatenate([at[:, None], others], 1), 1)
        dream = self.dream[at]
        whole = rng.uniform(size=len(at)) < 0.5
        first = np.where(whole[:, None, None, None], self.origin[dream], self.start[dream])
        _, before = self.windows.newest(np.where(whole, self.origin_row[dream], self.begun[dream]))
        return Clips(first, self.now[now], before, self.windows.newest(self.rows[now])[1])


class Rolled:
    """Clips of imagined rollouts of policies, labelled by what the same actions did on the twin.

    Where a dream is kinder than the world (a clumsy grasp that holds), this is what tells the judge.
    """

    def __init__(self, rollouts: Rollouts, backwards: float) -> None:
        self.rollouts, self.backwards = rollouts, backwards

    def __len__(self) -> int:
        return self.rollouts.films.shape[0] * (self.rollouts.films.shape[1] - 1)

    def draw(self, at: np.ndarray, rng: np.random.Generator, moments: int) -> Clips:
        """Clips around the imagined frames numbered ``at``."""
        films, truths = self.rollouts.films, self.rollouts.truths
        n, last = len(at), films.shape[1] - 1
        which, when = at // last, at % last + 1
        others = _between(rng, np.full((n, 1), 1), np.full((n, 1), last), moments - 1)
        now = np.sort(np.concatenate([when[:, None], others], 1), 1)
        begin = np.zeros(n, int)
        back = rng.uniform(size=n) < self.backwards
        begin[back], now[back] = last, last - now[back]
        return Clips(films[which, begin], films[which[:, None], now], truths[which, begin], truths[which[:, None], now])


def questions(clips: Clips, rng: np.random.Generator, asked: int) -> tuple[list[list[Ask]], np.ndarray]:
    """Draw ``asked`` questions at each moment of each clip, and their true answers (N, M * asked) in [0, 1]."""
    n, moments = clips.truth.shape[:2]
    before = np.broadcast_to(clips.before[:, None], clips.truth.shape)
    done = np.stack([accomplished(before, clips.truth, t) for t in TASKS], -1)
    far = np.stack([progress(before, clips.truth, t) for t in TASKS], -1)
    there = np.stack([is_there(clips.before, t.colour) for t in TASKS], -1)
    touch = np.stack([touched(clips.truth, t.colour) for t in TASKS], -1)
    hold = np.stack([held(clips.truth, t.colour) for t in TASKS], -1)
    alone = np.stack([left_alone(before, clips.truth, t) for t in TASKS], -1)
    prompts, share = [p for p, _ in QUESTIONS], np.array([s for _, s in QUESTIONS])
    truths = {"success": done, "progress": far, "holding": hold, "contact": touch, "safety": alone}
    asks, target = [], np.zeros((n, moments * asked), np.float32)
    for i in range(n):
        row = []
        for j in range(moments * asked):
            m = j // asked
            prompt = prompts[int(rng.choice(len(prompts), p=share))]
            answer = truths[prompt.name][i, m]
            weight = np.where(there[i], 1.0, 0.1) * np.where((far[i, m] > 0.4) & ~done[i, m], 3.0, 1.0)
            if prompt is not PROGRESS:
                wanted = rng.uniform() < 0.5
                side = weight * (answer.astype(bool) == wanted)
                weight = side if side.sum() > 0 else weight
            t = int(rng.choice(len(TASKS), p=weight / weight.sum()))
            row.append(Ask(prompt.fill(TASKS[t].instruction), m + 1, YES, NO))
            target[i, j] = answer[t]
        asks.append(row)
    return asks, target


@torch.inference_mode()
def _decoded(model: WorldActionModel, latents: Iterable[Tensor]) -> np.ndarray:
    """Batches of latents to (N, H, W, 3) uint8."""
    return np.concatenate([model.codec.decode(part.to(model.device, torch.float32)).cpu().numpy() for part in latents])


@torch.inference_mode()
def _through(model: WorldActionModel, frames: np.ndarray) -> np.ndarray:
    """What a dream shows of real frames (N, H, W, 3) uint8: they have gone through the codec."""
    return _decoded(model, (model.codec.encode(x.to(model.device)) for x in torch.from_numpy(frames).split(256)))


def _between(rng: np.random.Generator, low: np.ndarray, high: np.ndarray, n: int) -> np.ndarray:
    """(len(low), n) integers from low to high, both (N, 1), ends included."""
    return low + (rng.uniform(size=(len(low), n)) * (high - low + 1)).astype(np.int64)
