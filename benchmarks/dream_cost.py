"""Our scorer behind stable-worldmodel's ``Costable``, so that its solvers search in our dream unchanged.

What this is: the three methods that ``CEMSolver``, ``ICEMSolver``, ``MPPISolver`` and ``PredictiveSamplingSolver`` of
stable-worldmodel 0.1 call on their model, and a policy that asks such a solver. That package is never imported here.
What this is not: differentiable; ``GradientSolver``, ``PGDSolver`` and ``LagrangianSolver`` need a gradient, and
``CategoricalCEMSolver`` discrete actions.

A solver slices every entry of its ``info`` by lane, repeats it per candidate, and hands it back with candidates (B, S,
horizon, action_dim). So the whole scene travels in it as tensors, and nothing is kept between calls. Candidates are in
normalised action units, where a solver's standard normal is the spread of the recorded data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from imagine.agents.memory import EpisodeContext
from imagine.agents.scorer import PlanningState, Scorer
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.seeds import FreshSeeds
from imagine.types import Context, ShapeError, pack_instruction, unpack_instruction

WORST = 1e6
"""Cost of a candidate that could not be judged; infinity would make NaN of a solver's weights."""
_PARTS = ("video", "proprio", "text")


class Solver(Protocol):
    """What we need of a solver."""

    @property
    def horizon(self) -> int:
        """Steps of a plan."""
        ...

    def solve(self, info_dict: dict[str, Any], init_action: Tensor | None = None) -> dict[str, Any]:
        """``actions`` (B, horizon, action_dim) that cost least."""
        ...


class DreamCost:
    """``Costable`` and ``Actionable``: what candidates cost in a scene, and where a search may begin.

    >>> cost = DreamCost(model, DreamScorer(model, judge), JointPolicy(model))
    >>> solver = CEMSolver(cost, num_samples=32, n_steps=3, topk=8)
    >>> plan = PlanConfig(horizon=24, receding_horizon=24)
    >>> solver.configure(action_space=cost.action_space(1), n_envs=1, config=plan)
    >>> chunk = cost.chunks(solver.solve(cost.info(scene))["actions"])  # or SolverPolicy
    """

    def __init__(
        self, model: WorldActionModel, score: Scorer, policy: JointPolicy | None = None, *, pessimism: float = 0.5
    ) -> None:
        """Expose a scorer.

        Args:
            model: gives the units of actions.
            score: what candidates are worth; they cost minus that.
            policy: where a search begins; None begins at the mean chunk.
            pessimism: lambda; a candidate costs ``pessimism * spread - value``.
        """
        self.model, self.score, self.policy, self.pessimism = model, score, policy, pessimism

    def action_space(self, n_envs: int) -> gym.spaces.Box:
        """(n_envs, A) box in normalised action units, for ``solver.configure``; some solvers clip to it."""
        low, high = (
            self.model.normalise_action(torch.from_numpy(x).to(self.model.device)).cpu().numpy()
            for x in (self.model.body.action_low, self.model.body.action_high)
        )
        each = (n_envs, 1)
        return gym.spaces.Box(np.tile(low, each), np.tile(high, each), dtype=np.float32)

    def info(self, scene: PlanningState) -> dict[str, Tensor]:
        """A scene as a solver's ``info``: tensors with one row per lane."""
        told = np.stack([pack_instruction(text) for text in scene.instruction])
        return {
            **{f"now_{k}": getattr(scene.context, k) for k in _PARTS},
            **{f"start_{k}": getattr(scene.start, k) for k in _PARTS},
            "told": torch.from_numpy(told),
            "seed": torch.tensor(scene.seeds, dtype=torch.long),
        }

    def get_cost(self, info_dict: Mapping[str, Any], action_candidates: Tensor) -> Tensor:
        """What candidates cost.

        Args:
            info_dict: what :meth:`info` gave, every entry repeated per candidate: (B, S, ...).
            action_candidates: (B, S, horizon, action_dim), normalised; horizon * action_dim is one chunk, tick by tick
                or in blocks of ticks (``action_block``).

        Returns:
            (B, S) float32 on the candidates' device, lower is better.

        Raises:
            ShapeError: a candidate is not one chunk, or the info is not ours.
        """
        b, s = action_candidates.shape[:2]
        chunks = self.chunks(action_candidates.flatten(0, 1)).unflatten(0, (b, s))
        scene = self._scene({k: v[:, 0] for k, v in info_dict.items() if torch.is_tensor(v) and v.ndim > 1})
        low = self.score(scene, chunks).lower(self.pessimism)
        return (-low).nan_to_num(posinf=WORST).clamp(max=WORST).to(action_candidates.device)

    criterion = get_cost

    def get_action(
        self, info: Mapping[str, Any], horizon: int = 1, prefix_actions: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """The policy's own chunk (B, horizon, action_dim), normalised, or what of it comes after ``prefix_actions``."""
        scene = self._scene(info)
        done = 0 if prefix_actions is None else prefix_actions.shape[1]
        ticks, joints = self.model.chunk_shapes["action"]
        if self.policy is None:
            whole = torch.zeros(len(scene), ticks, joints)
        else:
            acted = torch.from_numpy(self.policy.act_on(scene.context, scene.seeds))
            whole = self.model.normalise_action(acted.to(self.model.device)).cpu()
        if ticks % (done + horizon):
            raise ShapeError(f"a plan has {done + horizon} steps, expected a divisor of the chunk's {ticks} ticks.")
        return whole.reshape(len(scene), done + horizon, -1)[:, done:]

    def chunks(self, actions: Tensor) -> Tensor:
        """A solver's actions (B, horizon, action_dim), normalised, to chunks (B, K, A) in robot units, within bounds.

        Raises:
            ShapeError: they are not one chunk.
        """
        ticks, joints = self.model.chunk_shapes["action"]
        got = tuple(actions.shape)
        if len(got) != 3 or got[1] * got[2] != ticks * joints or got[2] % joints:
            raise ShapeError(
                f"a candidate has {got[1:]} (horizon, action_dim), expected ({ticks}, {joints}) or blocks of ticks as "
                f"(1, {ticks * joints}); set horizon * action_block of the solver's PlanConfig to {ticks}."
            )
        return self.model.restore_action(actions.reshape(-1, ticks, joints).to(self.model.device).float())

    def _scene(self, rows: Mapping[str, Any]) -> PlanningState:
        """The scene that travelled in an info, one row per lane."""
        wanted = [f"{when}_{k}" for when in ("now", "start") for k in _PARTS] + ["told", "seed"]
        if missing := [k for k in wanted if k not in rows]:
            raise ShapeError(
                f"the solver's info has no {missing[0]!r}, got {sorted(rows)}; make it with DreamCost.info."
            )
        device = self.model.device
        now, start = (Context(**{k: rows[f"{when}_{k}"].to(device) for k in _PARTS}) for when in ("now", "start"))
        told = tuple(unpack_instruction(row.cpu().numpy()) for row in rows["told"])
        return PlanningState(now, start, told, tuple(int(x) for x in rows["seed"]))


class SolverPolicy:
    """A ``Policy`` that does what a solver finds; the solver is configured by the caller."""

    def __init__(self, solver: Solver, cost: DreamCost, eyes: JointPolicy) -> None:
        """Act by a solver.

        Args:
            solver: searches.
            cost: what it was made with.
            eyes: encodes observations as the dreaming model reads them.
        """
        self.solver, self.cost, self.eyes = solver, cost, eyes
        self._episodes, self._fresh = EpisodeContext(), FreshSeeds()

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(B, K, A) float32 in robot units. A solver draws from its own generator, so calls in a row differ."""
        now = self.eyes.context(observation)
        told = tuple(unpack_instruction(row) for row in observation["instruction"])
        each = tuple(self._fresh(len(now)) if seeds is None else [int(s) for s in seeds])
        scene = PlanningState(now, self._episodes(now, episodes), told, each)
        return self.cost.chunks(self.search(scene)).cpu().numpy()

    def search(self, scene: PlanningState) -> Tensor:
        """What the solver finds, (B, horizon, action_dim), normalised; it begins at the policy's own chunk."""
        info = self.cost.info(scene)
        begin = self.cost.get_action(info, self.solver.horizon)  # not every solver asks for it
        return self.solver.solve(info, init_action=begin)["actions"]

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Forget how these episodes began, or all."""
        self._episodes.forget(episodes)
