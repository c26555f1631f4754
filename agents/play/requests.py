"""What a page may ask of a session of play, checked, and what it is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np

from imagine.agents.play.moments import Candidate, Judgement, Moment
from imagine.agents.play.record import PlayRecorder
from imagine.agents.play.session import PlaySession
from imagine.agents.play.twin import TrueChunk
from imagine.types import ImagineError, ShapeError

Told = tuple[dict[str, Any], np.ndarray | None, list[tuple[Future[Any], Callable[[Any], Any]]]]
"""An answer, frames that go with it, and what will be told later: (when it is known, how it is told)."""
LONGEST_TEXT = 500
"""Characters of an instruction."""


class Requests:
    """Answers the requests of a page; not for several threads at once."""

    def __init__(self, session: PlaySession, recorder: PlayRecorder | None, facts: Mapping[str, Any]) -> None:
        """Answer for a session that has begun.

        Args:
            session: is played.
            recorder: saves what was played; None: nothing can be saved.
            facts: what the page shows of model, robot, judge and policy, by name.
        """
        self.session, self.recorder, self.facts = session, recorder, dict(facts)

    def hello(self) -> Told:
        """What a page must know first, and all that was played before it came."""
        session, body = self.session, self.session.controls.body
        views = [v.model_dump(include={"name", "height", "width", "top", "left"}) for v in body.views]
        first = [session.moments[n] for n in sorted(session.moments)]
        about = {
            "hello": self.facts,
            "controls": [vars(c) for c in session.controls.each],
            "actions": body.action_dim,
            "height": body.canvas_height,
            "width": body.canvas_width,
            "views": views,
            "seconds": body.chunk_actions / body.control_hz,
            "limit": session.limit,
            "simulator": session.twin is not None,
            "saves": self.recorder is not None,
            "moments": [_of(moment) for moment in first],
            "now": session.now.number,
        }
        frames = np.concatenate([moment.chunk.frames for moment in first])
        return about, frames, [promise for moment in first for promise in _promises(moment)]

    def answer(self, asked: Mapping[str, Any]) -> Told:
        """Answer one request.

        Raises:
            ImagineError: it cannot be understood, or not be granted.
        """
        known: dict[str, Callable[[Mapping[str, Any]], Told]] = {
            "steer": lambda a: self._moved(self.session.steer(self._deflection(a))),
            "drive": lambda a: self._moved(self.session.drive()),
            "switch": self._switch,
            "go": lambda a: self._moved(self.session.go(_number(a, "moment")), shown=False),
            "start": self._start,
            "instruct": lambda a: self._moved(self.session.instruct(_text(a)), shown=False),
            "imagine": self._imagine,
            "take": self._take,
            "save": self._save,
        }
        if asked.get("do") not in known:
            raise ImagineError(f"cannot do {str(asked.get('do'))[:40]!r}, expected one of {', '.join(known)}.")
        return known[asked["do"]](asked)

    def _moved(self, moment: Moment, *, shown: bool = True) -> Told:
        """The session is at ``moment``, which is shown unless the page knows it."""
        answer = {"moments": [_of(moment)], "now": moment.number}
        if not shown:
            return {**answer, "known": True}, None, []
        return answer, moment.chunk.frames, _promises(moment)

    def _start(self, asked: Mapping[str, Any]) -> Told:
        text = _text(asked) if asked.get("text") else None
        return self._moved(self.session.start(_number(asked, "seed"), text))

    def _switch(self, asked: Mapping[str, Any]) -> Told:
        self.session.switch(_number(asked, "index"))
        return self._moved(self.session.now, shown=False)

    def _imagine(self, asked: Mapping[str, Any]) -> Told:
        push = None if asked.get("push") is None else self._deflection(asked)
        found = self.session.imagine(_number(asked, "n"), _number(asked, "depth"), push)
        frames = np.concatenate([chunk.frames for one in found for chunk in one.chunks])
        futures = [_candidate(one) for one in found]
        return {"futures": futures, "best": self.session.best, "by": "policy" if push is None else "hands"}, frames, []

    def _take(self, asked: Mapping[str, Any]) -> Told:
        before = self.session.now.depth
        self.session.take(_number(asked, "which"))
        new = self.session.line()[before + 1 :]
        frames = np.concatenate([moment.chunk.frames for moment in new])
        answer = {"moments": [_of(moment) for moment in new], "now": new[-1].number}
        return answer, frames, [promise for moment in new for promise in _promises(moment)]

    def _save(self, asked: Mapping[str, Any]) -> Told:
        if self.recorder is None:
            raise ImagineError("what is played here cannot be saved; see the message at the start.")
        ticks = self.recorder.add(self.session.line())
        hz = self.session.controls.body.control_hz
        saved = {"folder": str(self.recorder.folder), "episode": self.recorder.count - 1, "seconds": ticks / hz}
        return {"saved": saved}, None, []

    def _deflection(self, asked: Mapping[str, Any]) -> np.ndarray:
        push = asked.get("push")
        size = self.session.controls.body.action_dim
        if not isinstance(push, list) or len(push) != size or not all(isinstance(x, int | float) for x in push):
            raise ShapeError(f"push is {str(push)[:60]}, expected {size} numbers in [-1, 1].")
        return np.array(push, np.float32)


def _of(moment: Moment) -> dict[str, Any]:
    """A moment as the page knows it."""
    chunk = moment.chunk
    return {
        "number": moment.number,
        "parent": moment.parent,
        "depth": moment.depth,
        "by": chunk.by,
        "frames": len(chunk.frames),
        "instruction": moment.instruction,
        "seed": moment.seed,
        "target": moment.target.tolist(),
    }


def _promises(moment: Moment) -> list[tuple[Future[Any], Callable[[Any], Any]]]:
    def judged(said: Judgement) -> tuple[dict[str, Any], None]:
        return {"judged": moment.number, **_judgement(said)}, None

    def shown(true: TrueChunk) -> tuple[dict[str, Any], np.ndarray]:
        return {"true": moment.number, "frames": len(true.frames), "success": true.success}, true.frames

    out: list[tuple[Future[Any], Callable[[Any], Any]]] = [(moment.chunk.judgement, judged)]
    return out if moment.true is None else [*out, (moment.true, shown)]


def _judgement(said: Judgement) -> dict[str, Any]:
    return {
        "probability": _finite(said.probability),
        "progress": _finite(said.progress),
        "success": said.success,
        "hallucination": _finite(said.hallucination),
        "believable": said.believable,
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    return {
        "frames": sum(len(chunk.frames) for chunk in one.chunks),
        **_judgement(one.judgement),
        "hallucination": _finite(one.hallucination),
        "believable": one.believable,
    }


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def _number(asked: Mapping[str, Any], name: str) -> int:
    value = asked.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ImagineError(f"{name} is {str(value)[:40]!r}, expected a whole number.")
    return value


def _text(asked: Mapping[str, Any]) -> str:
    text = asked.get("text")
    if not isinstance(text, str) or not text.strip() or len(text) > LONGEST_TEXT:
        raise ImagineError(f"the instruction is {str(text)[:40]!r}, expected a text of 1-{LONGEST_TEXT} characters.")
    return text.strip()
