"""WAMProbe's counterfactual profile of a dream: from one start, does it matter what is done, and is it the right thing?

From every start the table's expert is told four things in turn: nothing, to push a block to the left, to push it to the
right, to pick it up. The same chunks are dreamt, and the state is where the block is *seen*: the middle of its colour
in the picture of the camera that stays, in whole pixels; where it is not seen, where it was seen last. The score of an
action is how far to the left the block went. Beside the dream stand the controls of ``imagine evaluate
world-model --objects``.

WAMProbe (PyPI ``wamprobe`` 0.1.0) has no dependencies and no place in our environment; give it one of its own:

    pip install --target runs/wamprobe wamprobe==0.1.0
    PYTHONPATH=runs/wamprobe python benchmarks/wam_probe.py --contexts 24

What it measures: action dependence (predicted endpoints spread as true ones do, at most 1), the permutation effect and
its p-value, direction accuracy (cosine), no-op stability, errors of places in pixels, and ranks and regret of actions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.same_actions import SameActions
from imagine.agents.scripted import ExpertPolicy
from imagine.agents.true_rollouts import TrueRollouts, WholeEpisodes, simulated
from imagine.configs import build
from imagine.types import pack_instruction
from imagine.world.objects import Scene

ROOT = Path(__file__).parent.parent
MODEL, CHUNKS, FEWEST = "g1-table-tiny", 3, 3
BRANCHES = {"noop": "", "left": "push the {} block to the left", "right": "push the {} block to the right",
            "up": "pick up the {} block"}  # fmt: skip


def branches(loaded: build.Loaded, seeds: range) -> dict[str, TrueRollouts]:
    """Every branch from every start; the scene of a start is the same in all of them.

    Args:
        loaded: the table.
        seeds: of the starts.
    """
    body, robot = loaded.model.body, loaded.robot
    envs = WholeEpisodes(robot, lambda: loaded.sim_env(CHUNKS), 1, body, CHUNKS)
    made: dict[str, list[TrueRollouts]] = {name: [] for name in BRANCHES}
    for seed in seeds:
        envs.reset([seed])
        objects = envs.told[0].masks[0]
        colour = objects.names[objects.targets[0]].split()[0]
        for name, text in BRANCHES.items():
            asked = (text or BRANCHES["left"]).format(colour)
            policy = Told(envs, asked) if text else Still(envs, asked)
            made[name].append(simulated(policy.envs, name, policy, [seed]))
    found = {name: TrueRollouts.cat(parts) for name, parts in made.items()}
    first = [r.frames[:, 0] for r in found.values()]
    assert all(np.array_equal(first[0], x) for x in first), "branches must begin alike"
    return found


class Told(ExpertPolicy):
    """The expert, in environments whose episodes begin with another instruction than their own."""

    def __init__(self, envs: WholeEpisodes, instruction: str) -> None:
        """``envs`` are reset with ``instruction``."""
        super().__init__(_Asked(envs, instruction))  # type: ignore[arg-type]


class Still(Told):
    """Does nothing."""

    def act(self, observation: dict[str, np.ndarray], seeds: Any = None, episodes: Any = None) -> np.ndarray:
        """See :class:`imagine.types.Policy`."""
        return self.envs.body.hold(observation["proprio"])


class _Asked:
    """Environments that are asked for something else."""

    def __init__(self, envs: WholeEpisodes, instruction: str) -> None:
        self._envs, self._asked = envs, instruction
        pack_instruction(instruction)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._envs, name)

    def reset(self, seeds: Any, instruction: str | None = None) -> dict[str, np.ndarray]:
        return self._envs.reset(seeds, self._asked)


def seen_at(scene: Scene, thing: int, pictures: np.ndarray | None) -> np.ndarray:
    """(T, 2) whole pixels, x to the right and y down: where a thing is seen in pictures, or truly if None."""
    k = scene.objects.things.index(thing)
    shown = scene.own[:, k] if pictures is None else scene.palette(pictures[:, *scene.window]) == k
    places: list[np.ndarray] = []
    for mask in shown:
        y, x = np.nonzero(mask)
        seen = len(x) >= FEWEST
        places.append(np.round([x.mean(), y.mean()]) if seen else places[-1] if places else np.zeros(2))
    return np.stack(places)


@dataclass
class Probe:
    """What WAMProbe asks of a benchmark and of a model, looked up in what was dreamt.

    Attributes:
        name: of the kind of picture.
        truth: (context, branch) to (T, 2).
        shown: the same of the pictures.
    """

    name: str
    truth: dict[tuple[str, str], np.ndarray]
    shown: dict[tuple[str, str], np.ndarray]
    benchmark_id: str = "g1-table"
    horizon: int = 0

    def rollout(self, context: Any, action: Any) -> Any:
        """What truly happened."""
        return self._trajectory(self.truth, context, action)

    def predict_future(self, context: Any, action: Any, *, horizon: int, seed: int) -> Any:
        """What the pictures show."""
        return self._trajectory(self.shown, context, action)

    def _trajectory(self, places: dict[tuple[str, str], np.ndarray], context: Any, action: Any) -> Any:
        from wamprobe.api.types import Trajectory2D, Vec2

        rows = places[context.context_id, action.name][1:]
        return Trajectory2D(context.context_id, action.name, tuple(Vec2(float(x), float(y)) for x, y in rows))

    def score(self, context: Any, trajectory: Any) -> float:
        """How far to the left of where it was the thing ended, pixels; the robot's left is the picture's left."""
        return float(context.position.x - trajectory.final_state.x)

    @property
    def capabilities(self) -> Any:
        """See WAMProbe."""
        from wamprobe.api.capabilities import FutureRepresentation, ModelCapabilities

        return ModelCapabilities(f"{MODEL}-{self.name}", FutureRepresentation.PIXELS)

    def close(self) -> None:
        """Nothing is held."""


def profile(loaded: build.Loaded, seeds: range) -> dict[str, dict[str, float]]:
    """WAMProbe's metrics by kind of picture."""
    from wamprobe.api.types import Action2D, Context2D, InterventionGroup, InterventionSuite, Vec2
    from wamprobe.evaluation import evaluate

    cfg = build.dream_config(loaded.folder)
    found, view = branches(loaded, seeds), loaded.model.body.views[0]
    window = slice(view.top, view.top + view.height), slice(view.left, view.left + view.width)
    truth: dict[tuple[str, str], np.ndarray] = {}
    shown: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    for branch, rollouts in found.items():
        same = SameActions(build.dreamer(loaded.model, loaded.folder, cfg), rollouts, cfg)
        pictures = {kind: same.pictures(kind, np.arange(len(rollouts))) for kind in same.kinds if kind != "shuffled"}
        for i, seed in enumerate(seeds):
            objects = rollouts.objects[i]
            assert objects.view == view.name
            scene = Scene(rollouts.frames[i], objects, window, pictures["codec"][i], 1)
            truth[str(seed), branch] = seen_at(scene, objects.targets[0], None)
            for kind, frames in pictures.items():
                shown.setdefault(kind, {})[str(seed), branch] = seen_at(scene, objects.targets[0], frames[i])
    actions = tuple(Action2D(name, Vec2(0.0, 0.0)) for name in BRANCHES)
    groups = []
    for seed in seeds:
        at = Vec2(*map(float, truth[str(seed), "noop"][0]))
        groups.append(InterventionGroup(Context2D(str(seed), at, at), actions))
    suite = InterventionSuite("g1-table", tuple(groups))
    probes = {kind: Probe(kind, truth, places, horizon=len(rollouts.frames[0]) - 1) for kind, places in shown.items()}
    return {kind: dict(evaluate(probe, probe, suite).metrics) for kind, probe in probes.items()}  # type: ignore[arg-type]


def main() -> None:
    """Measure, print and write ``docs/wam_probe.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--contexts", type=int, default=24)
    parser.add_argument("--seed", type=int, default=900_000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "wam_probe.json")
    args = parser.parse_args()
    found = profile(build.load(args.model), range(args.seed, args.seed + args.contexts))
    for metric in next(iter(found.values())):
        print(f"{metric:42s}" + "".join(f"{kind} {values[metric]:7.3f}   " for kind, values in found.items()))
    args.out.write_text(json.dumps({"contexts": args.contexts, "seed": args.seed, "metrics": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
