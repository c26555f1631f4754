"""Moments of play: what was imagined of a chunk, what is said of it, and its place among all that was played."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagine.agents.play.twin import TrueChunk
from imagine.types import Score
from imagine.world.env import Outcome


@dataclass(frozen=True)
class Judgement:
    """What a judge and its guards say of a chunk.

    Attributes:
        probability: of success, in [0, 1]; None where the judge cannot tell.
        progress: the judge's term of that name; None where it has none.
        success: the instruction counts as carried out.
    """

    probability: float | None
    progress: float | None
    success: bool

    @property
    def value(self) -> float:
        """By which futures are compared: success + progress, the lowest where the judge cannot tell."""
        return -1.0 if self.probability is None else self.probability + (self.progress or 0.0)


@dataclass(frozen=True)
class Chunk:
    """A chunk that was imagined.

    Attributes:
        action: (K, A) float32, robot units; None of a start.
        frames: (F, H, W, 3) uint8; of a start its one first frame.
        motion: (F, P) float32, robot units, proprioception during it; of a start (1, P).
        instruction: that was followed during it.
        by: who acted: start, hands, policy.
        hallucination: normalised action units; None of a start, or where it is not asked.
        believable: whether that is within the limit.
        judgement: comes later.
        state: the dream at its end.
        target: (A,) where absolute actions are at its end.
    """

    action: np.ndarray | None
    frames: np.ndarray
    motion: np.ndarray
    instruction: str
    by: str
    hallucination: float | None
    believable: bool
    judgement: Future[Judgement]
    state: dict[str, Any]
    target: np.ndarray


@dataclass
class Moment:
    """The end of a chunk, in the tree of all that was played.

    Attributes:
        number: of the moment, from 0 on.
        parent: the moment before; None of a start.
        depth: chunks since the start.
        chunk: that led here.
        seed: of the start.
        asked: the instruction that the start was asked for; None: its own.
        instruction: that is followed from here on.
        state: of the dream.
        target: (A,) where absolute actions, as of grippers, are to be next.
        true: what the simulator says; None where there is none.
    """

    number: int
    parent: int | None
    depth: int
    chunk: Chunk
    seed: int
    asked: str | None
    instruction: str
    state: dict[str, Any]
    target: np.ndarray
    true: Future[TrueChunk] | None = None


@dataclass(frozen=True)
class Candidate:
    """One of several futures of a moment: chunks that were imagined but not played."""

    chunks: tuple[Chunk, ...]

    @property
    def judgement(self) -> Judgement:
        """Of its end."""
        return self.chunks[-1].judgement.result()

    @property
    def hallucination(self) -> float | None:
        """The worst on the way."""
        known = [c.hallucination for c in self.chunks if c.hallucination is not None]
        return max(known, default=None)

    @property
    def believable(self) -> bool:
        """Whether all of it is."""
        return all(c.believable for c in self.chunks)


def judged(outcome: Outcome, env: int) -> Judgement:
    """What an outcome says of one environment."""
    info, terms = outcome.info, outcome.info["reward_terms"]
    known = bool(info["valid"][env])
    progress = float(terms["progress"][env]) if known and "progress" in terms else None
    return Judgement(
        float(info["success_probability"][env]) if known else None,
        None if progress is None or np.isnan(progress) else progress,
        bool(outcome.terminated[env]),
    )


def known_already(judgement: Judgement) -> Future[Judgement]:
    """A judgement that is at hand."""
    out: Future[Judgement] = Future()
    out.set_result(judgement)
    return out


def later(score: Future[Score]) -> Future[Judgement]:
    """What a score of one clip will say."""
    out: Future[Judgement] = Future()

    def done(found: Future[Score]) -> None:
        if (error := found.exception()) is not None:
            out.set_exception(error)
            return
        given = found.result()
        known, progress = bool(given.valid[0]), given.terms.get("progress")
        value = None if progress is None or not known or bool(progress[0].isnan()) else float(progress[0])
        out.set_result(Judgement(float(given.success[0]) if known else None, value, bool(given.terminated[0])))

    score.add_done_callback(done)
    return out
