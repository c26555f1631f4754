"""What judges are taught with: clips and whole imagined episodes, with what really happened.

Whoever makes them (``imagine.agents.labelled_rollouts``) and whoever learns from them (``imagine.rewards.train``) know
this module and not each other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelledPairs:
    """B clips, each as the first frame of its episode and one later frame, recorded or imagined.

    Attributes:
        latents: (B, 2, C, h, w) float, normalised.
        proprio: (B, 2, P) float, normalised.
        instruction: B texts.
        success: (B,) bool, had it been carried out at the later frame?
        chunks_left: (B,) float, chunks from there until the success that was reached; 0 on it, inf where none was.
    """

    latents: Tensor
    proprio: Tensor
    instruction: list[str]
    success: Tensor
    chunks_left: Tensor

    def to(self, device: torch.device) -> LabelledPairs:
        """All of it on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if k != "instruction"}
        return LabelledPairs(**moved, instruction=self.instruction)

    @staticmethod
    def cat(parts: list[LabelledPairs]) -> LabelledPairs:
        """All rows of several."""
        tensors = {
            f.name: torch.cat([getattr(p, f.name) for p in parts])
            for f in fields(LabelledPairs)
            if f.name != "instruction"
        }
        return LabelledPairs(**tensors, instruction=[text for p in parts for text in p.instruction])


class PairSource(Protocol):
    """Labelled pairs by number.

    Attributes:
        episode: (n,) int, which episode each is of.
    """

    episode: np.ndarray

    def __len__(self) -> int: ...

    def at(self, rows: np.ndarray) -> LabelledPairs:
        """Those of the given numbers (B,)."""
        ...

    def later(self, rows: np.ndarray, chunks: int) -> tuple[LabelledPairs, np.ndarray]:
        """What follows 0 to ``chunks`` chunks later: B (1 + chunks) pairs, those of one row adjacent, and which are
        still of the same episode and instruction, (B, 1 + chunks) bool.
        """
        ...


@dataclass(frozen=True)
class LabelledRollouts:
    """N imagined episodes of T chunks, none cut short, and what the same actions did from the same start.

    Attributes:
        latents: (N, 1 + T, C, h, w) float16, the first frame and the last of each chunk.
        proprio: (N, 1 + T, P) float32, normalised, at the same frames.
        frames: (N, 1 + T, H, W, 3) uint8, the frames of ``latents`` decoded; (N, 0, ...) where nobody wants them.
        actions: (N, T, K, A) float32, robot units.
        inverse_error: (N, T) float32, normalised action units; NaN where it was not measured.
        instruction: N texts.
        done: (N, T) bool, had the instruction really been carried out by the end of each chunk?
        states: (N, 1 + T, S) float, what was true at those moments; S = 0 where nobody knows.
        seeds: (N,) int, start seeds or numbers of recorded episodes.
        kind: (N,) text, whose actions.
        held: (N,) bool, episodes that nobody is taught with.
    """

    latents: np.ndarray
    proprio: np.ndarray
    frames: np.ndarray
    actions: np.ndarray
    inverse_error: np.ndarray
    instruction: np.ndarray
    done: np.ndarray
    states: np.ndarray
    seeds: np.ndarray
    kind: np.ndarray
    held: np.ndarray

    def __len__(self) -> int:
        return len(self.done)

    def pick(self, rows: np.ndarray) -> LabelledRollouts:
        """Some of the episodes."""
        return LabelledRollouts(**{k: v[rows] for k, v in vars(self).items()})

    @staticmethod
    def cat(parts: list[LabelledRollouts]) -> LabelledRollouts:
        """All episodes of several."""
        names = [f.name for f in fields(LabelledRollouts)]
        return LabelledRollouts(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


class RolloutPairs:
    """The chunks of :class:`LabelledRollouts` up to and with the first success, as a :class:`PairSource`."""

    def __init__(self, rollouts: LabelledRollouts, *, most: float = 20.0, whole: bool = False) -> None:
        """Choose the chunks.

        Args:
            rollouts: whole episodes.
            most: bound of a normalised latent; wild actions may drive a dream out of half precision.
            whole: chunks after the first success too.
        """
        done = rollouts.done
        before = np.concatenate([np.zeros((len(done), 1), bool), done[:, :-1]], 1)
        self.rows = np.argwhere(np.ones_like(done) if whole else ~before)
        self.episode = self.rows[:, 0]
        self._latents = torch.from_numpy(np.clip(rollouts.latents, -most, most))
        self._proprio = torch.from_numpy(rollouts.proprio)
        self._done, self._instruction = done, rollouts.instruction
        first = np.where(done.any(1), done.argmax(1), np.inf)
        self._left = np.clip(first[:, None] - np.arange(done.shape[1]), 0, None)

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, rows: np.ndarray) -> LabelledPairs:
        """See :class:`PairSource`."""
        return self._pairs(*self.rows[rows].T)

    def later(self, rows: np.ndarray, chunks: int) -> tuple[LabelledPairs, np.ndarray]:
        """See :class:`PairSource`."""
        i, t = self.rows[rows].T
        then = t[:, None] + np.arange(chunks + 1)
        within = then < self._done.shape[1]
        return self._pairs(np.repeat(i, chunks + 1), np.where(within, then, t[:, None]).ravel()), within

    def _pairs(self, i: np.ndarray, t: np.ndarray) -> LabelledPairs:
        pair = np.stack([np.zeros_like(t), t + 1], 1)
        return LabelledPairs(
            latents=self._latents[i[:, None], pair].float(),
            proprio=self._proprio[i[:, None], pair],
            instruction=self._instruction[i].tolist(),
            success=torch.from_numpy(self._done[i, t]),
            chunks_left=torch.from_numpy(self._left[i, t]).float(),
        )


@dataclass(frozen=True)
class Clips:
    """N clips to ask about in hindsight: the first picture, M later ones, and the true state at each.

    Attributes:
        first: (N, H, W, 3) uint8.
        now: (N, M, H, W, 3) uint8.
        before: (N, S) float, the true state at the first picture.
        truth: (N, M, S) float, likewise at the later ones.
    """

    first: np.ndarray
    now: np.ndarray
    before: np.ndarray
    truth: np.ndarray

    def pictures(self) -> Tensor:
        """(N, M, 1, 2, H, W, 3) uint8: every moment beside the first picture."""
        first = np.broadcast_to(self.first[:, None], self.now.shape)
        return torch.from_numpy(np.stack([first, self.now], 2)[:, :, None])

    @staticmethod
    def cat(parts: list[Clips]) -> Clips:
        """All clips of several."""
        return Clips(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Clips)))


class ClipSource(Protocol):
    """Where clips to ask about come from."""

    def __len__(self) -> int: ...

    def draw(self, at: np.ndarray, rng: np.random.Generator, moments: int) -> Clips:
        """Clips of ``moments`` later pictures, one around each of the frames numbered ``at``."""
        ...


class Hindsight(Protocol):
    """Reads answers from true states; a robot plug-in does (:class:`imagine.policy.robots.plugin.RobotPlugin`)."""

    def instructions(self) -> tuple[str, ...]:
        """Every instruction whose answers can be read from a true state."""
        ...

    def answers(self, before: np.ndarray, now: np.ndarray, instruction: str) -> dict[str, np.ndarray]:
        """What is true of an instruction between two true states (..., S), each answer (...)."""
        ...
