"""Do stable-worldmodel's solvers run on our dream, unchanged? They must lower the cost of the policy's own chunk.

Needs that package, which pulls torchvision and a column store that nothing else here wants; so a separate environment:

    python -m venv ../solvers
    ../solvers/bin/pip install -e . --no-deps
    ../solvers/bin/pip install "torch>=2.8,<2.14" "gymnasium>=1.2,<1.3" "numpy>=2,<3" "pydantic>=2.9,<3"
    ../solvers/bin/pip install "mujoco>=3.8,<5" "av>=15" "pyarrow>=17" safetensors pyyaml scipy pillow loguru
    ../solvers/bin/pip install --no-deps stable-worldmodel
    ../solvers/bin/python benchmarks/costable.py

(or the whole of it: ``pip install -e . stable-worldmodel``). Where its top module cannot be imported, for want of
torchvision, lancedb or the like, its solvers are imported from their own files, which need none of them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import sys
import time
import types
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import gymnasium as gym
import numpy as np
from dream_cost import DreamCost, SolverPolicy
from torch import Tensor

from imagine.agents.dream_scorer import DreamScorer
from imagine.agents.scorer import PlanningState
from imagine.model.model import WorldActionModel, resolve
from imagine.policy.policy import JointPolicy
from imagine.policy.robots.g1_table.env import G1TableEnv
from imagine.rewards.latent import LatentJudge
from imagine.types import unpack_instruction


@dataclass(frozen=True)
class PlanConfig:
    """The fields that a solver reads of ``stable_worldmodel.PlanConfig``, which lives in a module we may not have."""

    horizon: int
    receding_horizon: int
    history_len: int = 1
    action_block: int = 1
    warm_start: bool = True


def solvers() -> types.ModuleType:
    """``stable_worldmodel.solver``, as installed.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        import stable_worldmodel.solver as found
    except ImportError as error:
        spec = None
        with contextlib.suppress(ImportError):
            spec = importlib.util.find_spec("stable_worldmodel")
        if spec is None or spec.submodule_search_locations is None:
            raise SystemExit("stable-worldmodel is not installed; see the head of this file.") from None
        print(f"its top module cannot be imported ({error}); importing its solvers alone", file=sys.stderr)
        for name in [k for k in sys.modules if k.split(".")[0] == "stable_worldmodel"]:
            del sys.modules[name]
        package = types.ModuleType("stable_worldmodel")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["stable_worldmodel"] = package
        import stable_worldmodel.solver as found
    return found


def observations(model: WorldActionModel, lanes: int, seed: int) -> dict[str, np.ndarray]:
    """What the robot at the table sees at its first moment, batched."""
    env = G1TableEnv(model.body, max_chunks=8, families=("push_left", "push_right"))
    seen = [env.reset(seed=seed + i)[0] for i in range(lanes)]
    return {k: np.stack([s[k] for s in seen]) for k in seen[0]}


def cost_of(cost: DreamCost, scene: PlanningState, chunks: Tensor) -> Tensor:
    """(B,) cost of one chunk (B, K, A), normalised, per lane."""
    info = {k: v.unsqueeze(1) for k, v in cost.info(scene).items()}
    return cost.get_cost(info, chunks[:, None])[:, 0]


def main() -> None:
    """Plan for a few starts with each solver, and print what the chunks cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="g1-table-tiny")
    parser.add_argument("--lanes", type=int, default=2)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--seed", type=int, default=900_000)
    args = parser.parse_args()
    swm = solvers()
    model = WorldActionModel.from_pretrained(args.model)
    policy = JointPolicy(model)
    cost = DreamCost(model, DreamScorer(model, LatentJudge.load(resolve(args.model))), policy)
    obs = observations(model, args.lanes, args.seed)
    now = policy.context(obs)
    told = tuple(unpack_instruction(row) for row in obs["instruction"])
    scene = PlanningState(now, now, told, tuple(range(args.seed, args.seed + args.lanes)))
    ticks, joints = model.chunk_shapes["action"]
    own = cost_of(cost, scene, cost.get_action(cost.info(scene), ticks))
    how: dict[str, Any] = {"num_samples": args.samples, "batch_size": args.lanes}
    search = {**how, "n_steps": args.iterations, "topk": max(2, args.samples // 4), "var_scale": 0.3}
    made = {
        "CEMSolver": search,
        "ICEMSolver": search,
        "MPPISolver": {**search, "temperature": 0.1},
        "PredictiveSamplingSolver": {**how, "noise_scale": 0.1},
    }
    rows = {}
    for name, options in made.items():
        solver = getattr(swm, name)(cost, **options)
        box: gym.spaces.Box = cost.action_space(args.lanes)
        solver.configure(action_space=box, n_envs=args.lanes, config=PlanConfig(ticks, ticks))
        assert isinstance(solver, swm.Solver)
        acts, begin = SolverPolicy(solver, cost, policy), time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # solvers print
            found = acts.search(scene)
        seconds = time.perf_counter() - begin
        with contextlib.redirect_stdout(io.StringIO()):
            chunk = acts.act(obs, scene.seeds)
        assert tuple(found.shape) == (args.lanes, ticks, joints)
        assert model.body.check_action(chunk).tobytes() == chunk.tobytes()
        after = cost_of(cost, scene, found)
        assert name != "PredictiveSamplingSolver" or (after <= own).all(), (
            "it keeps the policy's own chunk as a candidate"
        )
        rows[name] = {
            "cost": round(float(after.mean()), 4),
            "lowered_in": int((after < own).sum()),
            "seconds": round(seconds, 2),
        }
    numbers = {"policy_cost": round(float(own.mean()), 4), "lanes": args.lanes, "samples": args.samples}
    print(json.dumps({"stable_worldmodel": version("stable-worldmodel"), **numbers, "solvers": rows}))


if __name__ == "__main__":
    main()
