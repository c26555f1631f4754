"""Drives a robot tick by tick while a policy thinks: the control loop never waits for the model.

What is planned lies in a queue stamped in control ticks. The next chunk is asked for while the last one is still being
carried out; what the robot will have done by the time the answer comes is given along (``committed``), so that the
answer goes on from there instead of contradicting it. Where no answer has come in time the robot brakes and holds.
Where a question fails it does so at once, and asks again, less and less often, until its patience is over.

Source: real-time chunking, Black et al. (2025), arXiv:2506.07339; here the prefix is inpainted, see
:class:`imagine.sampler.Inpaint`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from imagine.embodiment import Embodiment
from imagine.policy.clock import Clock, Pending
from imagine.policy.guard import Event, Guard
from imagine.seeds import Stream, derive
from imagine.types import TickRobot, takes_committed

Execution = Literal["overlap", "restart", "wait"]
SOONEST, LATEST = 0.25, 2.0
"""Seconds from a failed question to the next one; twice as long after every further failure, LATEST at most."""
_log = logging.getLogger(__name__)


class DriveConfig(BaseModel):
    """How a robot is driven.

    Attributes:
        seconds: longest episode.
        every: ticks of a chunk that are carried out before the next one is asked for.
        execution: ``overlap``: think while moving, and go on from what is committed. ``restart``: think while moving,
            knowing nothing of it. ``wait``: hold until the answer is there, then carry it out.
        stop_on_success: end the episode as soon as the instruction has been carried out.
        patience: seconds without any answer, after which whoever thinks is lost and the episode ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Annotated[float, Field(gt=0)] = 8.0
    every: Annotated[int, Field(gt=0)] = 12
    execution: Execution = "overlap"
    stop_on_success: bool = True
    patience: Annotated[float, Field(gt=0)] = 5.0


@dataclass(frozen=True)
class Answer:
    """A chunk (K, A) float32, robot units, and what is known of it; None where nothing is.

    Attributes:
        actions: relative ones are measured from where the robot was when it was asked.
        hallucination: of its dream, normalised action units.
        success: judged probability.
        expected: (F, H, W, 3) uint8, the canvases that are to come.
        note: what was not done in time and why, a few words; empty where all was.
    """

    actions: np.ndarray
    hallucination: float | None = None
    success: float | None = None
    expected: np.ndarray | None = None
    note: str = ""


Think = Callable[[dict[str, np.ndarray], np.ndarray, int], Answer]
"""(an observation without batch axis, what is committed (D, A) in robot units, number of the request) to an answer."""


@dataclass
class Drive:
    """One episode as it was driven; T ticks.

    Attributes:
        success: the instruction was carried out.
        commands: (T, A) float32, absolute, as sent to the robot.
        late: (T,) seconds by which ticks began too late.
        latencies: ticks from each question to its answer.
        held: ticks for which nothing was planned in time.
        events: of the guard.
        refused: the guard stopped the robot for good.
        notes: of the answers, and why there was none.
        hallucination: of the newest plan, normalised action units; None where nobody knows.
        lost: why the episode was ended without whoever thinks; empty where it was not.
    """

    success: bool = False
    commands: list[np.ndarray] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    latencies: list[int] = field(default_factory=list)
    held: int = 0
    events: list[Event] = field(default_factory=list)
    refused: bool = False
    notes: Counter[str] = field(default_factory=Counter)
    hallucination: float | None = None
    lost: str = ""


class Driver:
    """Drives episodes of one robot."""

    def __init__(
        self,
        robot: TickRobot,
        body: Embodiment,
        guard: Guard,
        clock: Clock,
        cfg: DriveConfig | None = None,
        on_tick: Callable[[Drive, int], None] | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            robot: what is driven.
            body: what its actions are.
            guard: stands between it and whoever thinks.
            clock: when ticks are.
            cfg: how it is driven.
            on_tick: is told after every tick what was driven so far, and for how many ticks there is a plan; must be
                quick.
        """
        self.robot, self.body, self.guard, self.clock = robot, body, guard, clock
        self.cfg, self.on_tick = cfg or DriveConfig(), on_tick
        self._answered = False

    def episode(self, think: Think, seed: int, instruction: str | None = None) -> Drive:
        """Drive until success, the end of the time, the guard's refusal, or the loss of whoever thinks.

        Args:
            think: the policy, here or at the other end of a wire; see :func:`thinker`.
            seed: of the start.
            instruction: in place of the start's own.

        Raises:
            Exception: what the very first question to whoever thinks failed with: nothing has moved yet.
        """
        robot, body, guard, out = self.robot, self.body, self.guard, Drive()
        robot.reset(seed, instruction)
        first = robot.observe()
        guard.reset(body.absolute_action(body.hold(first["proprio"])[0], robot.anchor()))
        plan, asked, out.events = _Plan(), _Asked(think), guard.events
        self.clock.start()
        for tick in range(round(self.cfg.seconds * body.control_hz)):
            out.late.append(self.clock.wait(tick))
            if asked.pending is None and tick >= asked.again and self._due(plan, tick):
                self._ask(plan, asked, out, tick)
            if asked.pending is not None and asked.pending.ready(tick):
                self._take(plan, asked, out, tick)
            move = plan.at(tick)
            out.held += move is None
            asked.held += move is None
            out.commands.append(guard.check(move))
            robot.tick(out.commands[-1])
            out.success = out.success or robot.success
            if self.on_tick is not None:
                self.on_tick(out, max(0, plan.end - tick - 1))
            if tick - asked.answered >= self.cfg.patience * body.control_hz:
                out.lost = asked.failure or f"no answer in {self.cfg.patience:g} s"
                _log.warning("the episode ends: %s", out.lost)
            if out.lost or guard.refused or (out.success and self.cfg.stop_on_success):
                break
        out.refused = guard.refused
        return out

    def _due(self, plan: _Plan, tick: int) -> bool:
        if self.cfg.execution == "wait":
            return tick >= min(plan.end, plan.begin + self.cfg.every)
        return tick >= plan.begin + self.cfg.every or tick >= plan.end

    def _ask(self, plan: _Plan, asked: _Asked, out: Drive, tick: int) -> None:
        body, seen = self.body, self.robot.observe()
        if (expected := asked.expected(tick, body.frame_stride)) is not None:
            canvas = body.tile({v.name: seen[v.name] for v in body.views})
            if not self.guard.compare(expected, canvas):
                plan.clear(tick)
        anchor, number, think = self.robot.anchor(), asked.number, asked.think
        committed = np.zeros((0, body.action_dim), np.float32)
        if self.cfg.execution == "wait":
            plan.clear(tick)
        elif self.cfg.execution == "overlap":
            committed = plan.ahead(tick, asked.usual(out.latencies), body, anchor)
        asked.begin(tick, anchor, self.clock.submit(lambda: think(seen, committed, number), tick))

    def _take(self, plan: _Plan, asked: _Asked, out: Drive, tick: int) -> None:
        assert asked.pending is not None
        pending, asked.pending = asked.pending, None
        try:
            answer = pending.result()
        except Exception as error:
            if not self._answered:
                raise
            plan.clear(tick)
            asked.fail(tick, error, self.body.control_hz)
            out.notes[f"failed: {asked.failure}"] += 1
            return
        self._answered, asked.answered, asked.failures, asked.failure = True, tick, 0, ""
        out.latencies.append(tick - asked.tick)
        out.hallucination = answer.hallucination
        if answer.note:
            out.notes[answer.note] += 1
        if not self.guard.admit(hallucination=answer.hallucination, success=answer.success):
            return
        asked.frames = answer.expected
        moves = self.body.absolute_action(answer.actions, asked.anchor)
        asked.tick += asked.held  # what the robot stood still for is still to be done
        plan.replace(asked.tick, moves)


class _Plan:
    """Absolute moves by tick: those of one chunk, from the tick of its first."""

    def __init__(self) -> None:
        self.begin, self._moves = 0, np.zeros((0, 0), np.float32)

    @property
    def end(self) -> int:
        return self.begin + len(self._moves)

    def at(self, tick: int) -> np.ndarray | None:
        return self._moves[tick - self.begin] if self.begin <= tick < self.end else None

    def replace(self, begin: int, moves: np.ndarray) -> None:
        self.begin, self._moves = begin, moves

    def clear(self, tick: int) -> None:
        self.replace(tick, self._moves[:0])

    def ahead(self, tick: int, ticks: int, body: Embodiment, anchor: np.ndarray) -> np.ndarray:
        """(D, A) robot units: the next moves, measured from where the robot is now; D at most ``ticks``."""
        moves = self._moves[max(0, tick - self.begin) :][:ticks]
        if not len(moves):
            return np.zeros((0, body.action_dim), np.float32)
        return np.clip(body.relative_action(moves, anchor), body.action_low, body.action_high)


class _Asked:
    """The question under way, and what the last answer expected."""

    def __init__(self, think: Think) -> None:
        self.think, self.pending = think, cast("Pending[Answer] | None", None)
        self.tick, self.number, self.answered, self.held = 0, 0, 0, 0
        self.again, self.failures, self.failure = 0, 0, ""
        self.anchor: np.ndarray = np.zeros(0)
        self.frames: np.ndarray | None = None

    def begin(self, tick: int, anchor: np.ndarray, pending: Pending) -> None:
        self.tick, self.anchor, self.pending = tick, anchor, pending
        self.number, self.frames, self.held = self.number + 1, None, 0

    def fail(self, tick: int, error: Exception, hz: float) -> None:
        """Note why there is no answer, and when to ask again."""
        wait = min(LATEST, SOONEST * 2**self.failures)
        self.again, self.failures = tick + math.ceil(wait * hz), self.failures + 1
        self.failure = f"{error}".strip().partition("\n")[0] or type(error).__name__
        _log.warning("the robot holds, and asks again in %g s: %s", wait, self.failure)

    def expected(self, tick: int, stride: int) -> np.ndarray | None:
        """The canvas that should be seen now; None where none was imagined for this tick."""
        if self.frames is None:
            return None
        whole, over = divmod(tick - self.tick, stride)
        return self.frames[whole - 1] if not over and 0 < whole <= len(self.frames) else None

    def usual(self, latencies: Sequence[int]) -> int:
        """Ticks that the next answer will take, no fewer than the last few did."""
        return max(latencies[-5:], default=0)


def thinker(policy: Any, seed: int, episode: int) -> Think:
    """Ask an ``imagine.types.Policy`` or a remote one; what is committed is passed on to those that take it.

    Args:
        policy: acts on batches of observations.
        seed: a decision's noise is derived from it and the number of the request.
        episode: what the policy knows the episode by.
    """
    takes = takes_committed(policy)

    def think(observation: dict[str, np.ndarray], committed: np.ndarray, number: int) -> Answer:
        batch = {name: value[None] for name, value in observation.items()}
        more = {"committed": committed[None]} if takes and len(committed) else {}
        return Answer(policy.act(batch, [derive(seed, number, Stream.POLICY)], [episode], **more)[0])

    return think
