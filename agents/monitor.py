"""Checks for a judge being fooled while a policy trains: negative controls, a second judge and inverse error.

Starts are its own, never trained on. Negative controls are rollouts that cannot have succeeded: hands that hold still,
chunks shuffled among rollouts and moments, and the policy's own rollouts judged by an instruction about something that
is not there. The share of them judged a success is the false-positive rate, ``floor`` in settings and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from imagine.agents.envs import DreamEnvs, RecordedEnvs
from imagine.agents.finetune.experience import second_verdicts
from imagine.agents.finetune.improve import Check
from imagine.agents.rollout import EpisodeRecord, rollout
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.types import ImagineError

Absent = Callable[[str, int], str | None]
"""(instruction, start seed) to an instruction that cannot be carried out from that start; None where none is known."""


class MonitorConfig(BaseModel):
    """How much is checked, and when to stop.

    Attributes:
        starts: held-out starts; each is rolled out by the policy, and once per kind of control.
        first_seed: of these starts.
        floor: a false-positive rate on negative controls up to this never stops training.
        gap: a growth of the gap between the two judges up to this never does.
        sigmas: how many standard errors above its beginning either must be to stop training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    starts: int = Field(default=32, ge=1)
    first_seed: int = 870_000
    floor: float = 0.1
    gap: float = 0.15
    sigmas: float = 3.0


class Monitor:
    """A ``imagine.agents.finetune.improve.Watcher``; remembers rate and gap of the first check."""

    def __init__(self, envs: DreamEnvs, absent: Absent, cfg: MonitorConfig) -> None:
        """Watch.

        Args:
            envs: a dream whose judge reports the second one's verdict as the term ``second``, if there is one.
            absent: see :data:`Absent`.
            cfg: how much, and when to stop.
        """
        self.envs, self.absent, self.cfg = envs, absent, cfg
        self.seeds = list(range(cfg.first_seed, cfg.first_seed + cfg.starts))
        self._gap = GapAlarm(cfg.sigmas, cfg.gap)
        self._floor: tuple[float, int] | None = None

    def check(self, model: WorldActionModel, horizon: int) -> Check:
        """Roll out policy and controls for at most ``horizon`` chunks."""
        self.envs.horizon = horizon
        policy = JointPolicy(model)
        records = rollout(self.envs, policy, self.seeds, keep=True)
        success = np.array([r.success for r in records])
        controls = self._controls(policy, records, horizon)
        every = np.concatenate(list(controls.values()))
        floor = float(every.mean())
        numbers = {
            "held_out_success": float(success.mean()),
            "held_out_inverse_error": float(np.mean([h for r in records for h in r.hallucination])),
            "floor": floor,
            **{f"floor_{kind}": float(judged.mean()) for kind, judged in controls.items()},
        }
        gap, rings = 0.0, False
        if any("second" in terms for r in records for terms in r.terms):
            second = second_verdicts(records)
            gap, rings = self._gap(success, second)
            numbers |= {"held_out_second_judge": float(second.mean()), "judge_gap": gap}
        error = float(np.sqrt(2 * success.var() / len(success)))
        return Check(numbers, self._alarm(floor, len(every), gap, rings), error)

    def _alarm(self, floor: float, n: int, gap: float, rings: bool) -> str | None:
        if self._floor is None:
            self._floor = (floor, n)
        began, first = self._floor
        error = float(np.sqrt((floor * (1 - floor) + 0.25 / n) / n + (began * (1 - began) + 0.25 / first) / first))
        if floor > max(self.cfg.floor, began + self.cfg.sigmas * error):
            return (
                f"{floor:.0%} of {n} negative controls, which cannot have succeeded, are judged successes, {began:.0%} "
                "at the start: the judge is being fooled"
            )
        if rings:
            assert self._gap.baseline is not None
            return (
                f"the judge trained on is {gap:+.0%} kinder than the second one, {self._gap.baseline[0]:+.0%} at the "
                "start: what is learnt pleases one judge only"
            )
        return None

    def _controls(self, policy: JointPolicy, records: list[EpisodeRecord], horizon: int) -> dict[str, np.ndarray]:
        start = np.stack([r.observations[0]["proprio"] for r in records])
        still = np.repeat(policy.model.body.hold(start)[:, None], horizon, 1)
        own = np.stack([[r.actions[t % len(r.actions)] for t in range(horizon)] for r in records])
        shuffled = shuffled_chunks(own, self.cfg.first_seed)
        found = {"still": self._play(still), "shuffled": self._play(shuffled)}
        others = [self.absent(r.instruction, r.seed) for r in records]
        known = [i for i, other in enumerate(others) if other is not None]
        if known:
            found["absent"] = self._play(own[known], [records[i].seed for i in known], self.absent)
        return found

    def _play(
        self, actions: np.ndarray, seeds: Sequence[int] | None = None, judged_by: Absent | None = None
    ) -> np.ndarray:
        """(n,) bool, judged a success at any chunk of those given, (n, T, K, A); by other instructions if given."""
        seeds = self.seeds if seeds is None else seeds
        given = dict(zip(seeds, actions, strict=True))
        envs = DreamEnvs(
            self.envs.dream, self.envs.num_envs, horizon=actions.shape[1], break_off=False, judged_by=judged_by
        )
        return np.array([r.success for r in rollout(RecordedEnvs(envs, given), None, seeds)])

    def state(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"floor": self._floor, "gap": self._gap.baseline}

    def load(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state`."""
        self._floor = None if state["floor"] is None else (float(state["floor"][0]), int(state["floor"][1]))
        self._gap.baseline = None if state["gap"] is None else (float(state["gap"][0]), float(state["gap"][1]))


def shuffled_chunks(actions: np.ndarray, seed: int = 0) -> np.ndarray:
    """Chunks (N, T, K, A) shuffled among rollouts and moments: every chunk is one the policy really chose."""
    n, t = actions.shape[:2]
    order = np.random.default_rng(seed).permutation(n * t)
    return actions.reshape(n * t, *actions.shape[2:])[order].reshape(actions.shape)


class GapAlarm:
    """Watches how many more successes the judge trained on sees than a second judge that is never trained on.

    The gap at the start is the baseline; the alarm rings when a later gap is above it by more than ``sigmas`` standard
    errors of the difference. The second judge should be of another architecture, which is the caller's to see to.
    """

    def __init__(self, sigmas: float = 3.0, least: float = 0.05) -> None:
        """Start without a baseline.

        Args:
            sigmas: how many standard errors.
            least: a growth below this share never rings.
        """
        self.sigmas, self.least = sigmas, least
        self.baseline: tuple[float, float] | None = None

    def __call__(self, first: np.ndarray, second: np.ndarray) -> tuple[float, bool]:
        """The present gap, and whether the alarm rings.

        Args:
            first: (n,) bool, success of n rollouts as the first judge sees it.
            second: (n,) bool, of the same rollouts, the second one.

        Raises:
            ImagineError: no rollouts, or not the same number from both.
        """
        if len(first) != len(second) or not len(first):
            raise ImagineError(f"got verdicts on {len(first)} and {len(second)} rollouts, expected as many of each.")
        difference = np.asarray(first, float) - np.asarray(second, float)
        gap, error = float(difference.mean()), float((difference.var() + 0.25 / len(first)) / len(first))
        if self.baseline is None:
            self.baseline = (gap, error)
            return gap, False
        grown = gap - self.baseline[0]
        return gap, bool(grown > max(self.least, self.sigmas * np.sqrt(error + self.baseline[1])))
