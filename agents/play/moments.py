"""Moments of play: what was imagined of a chunk, what is said of it, and its place among all that was played."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagine.agents.play.late import Verdict
from imagine.agents.play.twin import TrueChunk
from imagine.world.env import Outcome


@dataclass(frozen=True)
class Judgement:
    """What a judge and its guards say of a chunk.

    Attributes:
        probability: of success, in [0, 1]; None where the judge cannot tell.
        progress: the judge's term of that name; None where it has none.
        success: the instruction counts as carried out.
        hallucination: normalised action units; None where nobody asks whether the dream follows the actions.
        believable: whether that is within the limit.
    """

    probability: float | None
    progress: float | None
    success: bool
    hallucination: float | None = None
    believable: bool = True

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
        judgement: comes later.
        state: the dream at its end.
        target: (A,) where absolute actions are at its end.
    """

    action: np.ndarray | None
    frames: np.ndarray
    motion: np.ndarray
    instruction: str
    by: str
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
        each = [c.judgement.result().hallucination for c in self.chunks]
        known = [error for error in each if error is not None]
        return max(known, default=None)

    @property
    def believable(self) -> bool:
        """Whether all of it is."""
        return all(c.judgement.result().believable for c in self.chunks)


def judged(outcome: Outcome, env: int, *, checked: bool) -> Judgement:
    """What an outcome says of one environment; ``checked``: it was asked whether it follows the actions."""
    info, terms = outcome.info, outcome.info["reward_terms"]
    known = bool(info["valid"][env])
    return Judgement(
        float(info["success_probability"][env]) if known else None,
        _number(terms["progress"][env]) if known and "progress" in terms else None,
        bool(outcome.terminated[env]),
        float(info["hallucination"][env]) if checked else None,
        bool(outcome.believable[env]),
    )


def known_already(judgement: Judgement) -> Future[Judgement]:
    """A judgement that is at hand."""
    out: Future[Judgement] = Future()
    out.set_result(judgement)
    return out


def later(verdict: Future[Verdict], limit: float | None) -> Future[Judgement]:
    """What a verdict on one clip will say; nothing is believable whose inverse error is above ``limit``."""
    out: Future[Judgement] = Future()

    def done(found: Future[Verdict]) -> None:
        if (error := found.exception()) is not None:
            out.set_exception(error)
            return
        score, off = found.result().score, found.result().inverse_error
        known, progress = bool(score.valid[0]), score.terms.get("progress")
        out.set_result(
            Judgement(
                float(score.success[0]) if known else None,
                None if progress is None or not known else _number(progress[0]),
                bool(score.terminated[0]),
                off,
                off is None or limit is None or off <= limit,
            )
        )

    verdict.add_done_callback(done)
    return out


def _number(x: Any) -> float | None:
    return None if np.isnan(float(x)) else float(x)
