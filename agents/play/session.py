"""A session of play: moments of a dream as a tree, each of which can be returned to, and gone on from in many ways.

No clock and no page are known here. The dream answers at once; its judge and the simulator beside it answer later, so
a moment holds promises of what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from typing import Any

import numpy as np
import torch

from imagine.agents.play.controls import Controls
from imagine.agents.play.late import Check, LateJudge
from imagine.agents.play.moments import Candidate, Chunk, Judgement, Moment, judged, known_already, later
from imagine.agents.play.twin import Twin
from imagine.policy.policy import candidate_seed
from imagine.seeds import Stream, derive
from imagine.types import ImagineError, Policy
from imagine.world.dream import Dream
from imagine.world.fork import repeated, row_of

MOST_MOMENTS = 2000
"""Moments that a session keeps."""
MOST_FUTURES, MOST_DEPTH = 16, 8
"""Futures that are imagined side by side, and chunks of each."""
PATIENCE = 10.0
"""Seconds that a session that is closed waits for what is under way."""


class PlaySession:
    """One person's play in one dream.

    Attributes:
        moments: all there are, by number.
        now: the moment that is gone on from.
        futures: those that were last imagined, of :attr:`now`.
    """

    def __init__(
        self, dream: Dream, several: Dream, policy: Policy, controls: Controls, judging: Executor,
        twin: Twin | None = None,
    ) -> None:  # fmt: skip
        """Begin nothing yet.

        Args:
            dream: imagines what is played; not shared.
            several: the same again, for futures side by side; with ``tile=1``, as the first, futures are to the bit
                what playing them gives. Where it checks whether dreams follow the actions and the first does not
                (``inverse_steps``), that is done while what is played is shown.
            policy: at the wheel on demand.
            controls: what hands command.
            judging: where the judge of what is played is asked.
            twin: the simulator beside the dream; its starts are the dream's.
        """
        self.dream, self.several, self.policy, self.controls, self.twin = dream, several, policy, controls, twin
        self.judge = LateJudge(dream.judge, judging)
        dream.judge = self.judge
        self.moments: dict[int, Moment] = {}
        self.futures: tuple[Candidate, ...] = ()
        self._now: Moment | None = None
        dream.allocate(1)

    @property
    def now(self) -> Moment:
        """The moment that is gone on from.

        Raises:
            ImagineError: nothing was begun.
        """
        if self._now is None:
            raise ImagineError("nothing was begun; start first.")
        return self._now

    @property
    def limit(self) -> float | None:
        """Hallucination above which nothing is believed, normalised action units."""
        return self.several.cfg.hallucination_limit

    def start(self, seed: int, instruction: str | None = None) -> Moment:
        """Begin elsewhere; what was played before stays, and can be returned to.

        Raises:
            ImagineError: the seed or the instruction cannot be had; nothing has changed then.
        """
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ImagineError(f"seed is {seed!r}, expected a whole number in [0, 2^63).")
        options = {} if instruction is None else {"instruction": instruction}
        self._require_room(1)
        self.dream.reset(np.arange(1), [seed], options)
        self.policy.reset()
        seen = self.dream.observe()
        target = self.controls.target(seen["proprio"][0])
        frames, silent = self.dream.canvas.cpu().numpy().copy(), Judgement(None, None, False)
        chunk = Chunk(
            None, frames, seen["proprio"], self.dream.instruction[0], "start", known_already(silent),
            self.dream.snapshot(), target,
        )  # fmt: skip
        return self._add(chunk, None, seed, instruction)

    def act(self, action: np.ndarray, by: str = "hands") -> Moment:
        """Imagine what a chunk (K, A) float32 in robot units leads to, and go on from there.

        Raises:
            ShapeError: it is misshapen, not finite or in wrong units.
            ImagineError: nothing was begun, or no more moments can be kept.
        """
        now = self.now
        self._require_room(1)
        action = self.controls.body.check_action(np.asarray(action)[None])[0]
        self.judge.check = self._check(action)
        self.dream.step(action[None])
        judgement = later(self.judge.newest, self.limit)
        chunk = self._chunk(self.dream, 0, action, by, judgement, now.target)
        return self._add(chunk, now)

    def steer(self, deflection: Sequence[float] | np.ndarray) -> Moment:
        """Act as hands command: how far each control is pushed, (A,) in [-1, 1]."""
        return self.act(self.controls.chunk(deflection, self.now.target))

    def switch(self, index: int) -> None:
        """Turn a switch, as a gripper's, to its other end; the next chunk does it.

        Raises:
            ShapeError: there is no such switch.
        """
        self.now.target = self.controls.switched(self.now.target, index)

    def drive(self) -> Moment:
        """Let the policy act once."""
        return self.act(self.proposed(1)[0], "policy")

    def proposed(self, n: int) -> np.ndarray:
        """(n, K, A) float32, what the policy would do now; the first is what :meth:`drive` does."""
        now, seen = self.now, self.dream.observe()
        seed = derive(now.seed, now.depth, Stream.POLICY)
        rows = {k: np.repeat(v, n, 0) for k, v in seen.items()}
        return self.policy.act(rows, [candidate_seed(seed, k) for k in range(n)])

    def go(self, number: int) -> Moment:
        """Return to a moment; what follows it stays, as another branch of what is played next.

        Raises:
            ImagineError: there is no such moment.
        """
        if number not in self.moments:
            raise ImagineError(f"there is no moment {number!r}, expected one of {len(self.moments)}.")
        self._now, self.futures = self.moments[number], ()
        self.dream.restore(self.now.state)
        return self.now

    def instruct(self, instruction: str) -> Moment:
        """Ask for something else from now on, of the policy and of the judge.

        Raises:
            ImagineError: it is empty, or the model does not understand it; nothing has changed then.
        """
        now = self.now
        self.dream.instruct([instruction])
        now.instruction, now.state, self.futures = instruction, self.dream.snapshot(), ()
        return now

    def imagine(
        self, n: int, depth: int = 1, deflection: Sequence[float] | np.ndarray | None = None
    ) -> tuple[Candidate, ...]:
        """Several futures of this moment, side by side; nothing is played.

        Args:
            n: how many.
            depth: chunks of each.
            deflection: (A,) held all the time, while the dream's noise differs; None: the policy's own candidates,
                under the same noise of the dream, and what the policy would go on with.

        Raises:
            ImagineError: there are too many, or none.
        """
        if not 1 <= n <= MOST_FUTURES or not 1 <= depth <= MOST_DEPTH:
            raise ImagineError(f"asked for {n} futures of {depth} chunks, expected 1-{MOST_FUTURES} of 1-{MOST_DEPTH}.")
        now, wide = self.now, self.several
        wide.allocate(n)
        state = repeated(now.state, n)
        wide.restore(state)
        if deflection is not None:
            own = int(state["seeds"][0])
            wide.seeds = np.array([own, *(derive(own, k, Stream.CANDIDATE) for k in range(1, n))])
        targets, lines = [now.target] * n, [list[Chunk]() for _ in range(n)]
        for k in range(depth):
            if deflection is not None:
                actions, by = np.stack([self.controls.chunk(deflection, t) for t in targets]), "hands"
            else:
                seed = derive(now.seed, now.depth + k, Stream.POLICY)
                actions, by = self.policy.act(wide.observe(), [candidate_seed(seed, i) for i in range(n)]), "policy"
            actions = self.controls.body.check_action(actions)
            outcome = wide.step(actions)
            verdicts = [judged(outcome, i, checked=bool(wide.cfg.inverse_steps)) for i in range(n)]
            whole = wide.snapshot()
            for i, line in enumerate(lines):
                line.append(self._chunk(wide, i, actions[i], by, known_already(verdicts[i]), targets[i], whole))
                targets[i] = line[-1].target
        self.futures = tuple(Candidate(tuple(line)) for line in lines)
        return self.futures

    @property
    def best(self) -> int:
        """Which of the futures has the highest value, among those that are believable if any is."""
        values = [(f.believable, f.judgement.value) for f in self.futures]
        return max(range(len(values)), key=values.__getitem__)

    def take(self, which: int) -> Moment:
        """Play one of the futures that were imagined; to the bit, it becomes what was shown.

        Raises:
            ImagineError: there is no such future of this moment.
        """
        if not 0 <= which < len(self.futures):
            raise ImagineError(f"there is no future {which!r} of this moment, expected one of {len(self.futures)}.")
        chunks, moment = self.futures[which].chunks, self.now
        self._require_room(len(chunks))
        for chunk in chunks:
            moment = self._add(chunk, moment)
        self.dream.restore(moment.state)
        return moment

    def close(self) -> None:
        """Wait for judge and simulator, and let the simulator go."""
        waiting = [self.judge.executor.submit(lambda: None)]
        if self.twin is not None:
            waiting.append(self.twin.close())
        wait(waiting, timeout=PATIENCE)

    def line(self, moment: Moment | None = None) -> list[Moment]:
        """The moments from a start to this one."""
        found = [self.now if moment is None else moment]
        while (parent := found[-1].parent) is not None:
            found.append(self.moments[parent])
        return found[::-1]

    def _check(self, action: np.ndarray) -> Check | None:
        """What tells whether the next chunk follows its action, while it is shown; None: its dream tells, or nobody."""
        dream, steps = self.dream, self.several.cfg.inverse_steps
        if dream.cfg.inverse_steps or not steps:
            return None
        seed = derive(int(dream.seeds[0]), int(dream.steps[0]), Stream.WORLD)
        return Check(dream.model, dream.context(), torch.from_numpy(action[None]).to(dream.model.device), steps, seed)

    def _chunk(
        self, dream: Dream, env: int, action: np.ndarray, by: str, judgement: Future[Judgement], target: np.ndarray,
        whole: dict[str, Any] | None = None,
    ) -> Chunk:  # fmt: skip
        state = dream.snapshot() if whole is None else row_of(whole, env)
        return Chunk(
            action, dream.frames(env), dream.motion(env), dream.instruction[env], by, judgement, state,
            self.controls.after(target, action),
        )  # fmt: skip

    def _add(self, chunk: Chunk, parent: Moment | None, seed: int = 0, asked: str | None = None) -> Moment:
        number, ends = len(self.moments), (chunk.instruction, chunk.state, chunk.target)
        if parent is None:
            moment = Moment(number, None, 0, chunk, seed, asked, *ends)
        else:
            moment = Moment(number, parent.number, parent.depth + 1, chunk, parent.seed, parent.asked, *ends)
        if self.twin is not None:  # not while the dream imagines, which would only slow both down
            actions = [m.chunk.action for m in self.line(moment) if m.chunk.action is not None]
            moment.true = self.twin.follow(moment.seed, moment.asked, actions, moment.instruction)
        self.moments[number], self._now, self.futures = moment, moment, ()
        return moment

    def _require_room(self, n: int) -> None:
        if len(self.moments) + n > MOST_MOMENTS:
            raise ImagineError(f"a session keeps {MOST_MOMENTS} moments; save what is worth it, and begin another one.")
