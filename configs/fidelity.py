"""From the options of ``imagine evaluate world-model`` to its answer: windows, or every object."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imagine.agents.fidelity import measure
from imagine.agents.foreign_fidelity import ForeignActions, measure_foreign
from imagine.agents.judges_compared import compare_judges
from imagine.agents.object_fidelity import AWAY, measure_objects
from imagine.agents.same_actions import SameActions
from imagine.agents.scripted import ExpertPolicy, HidingPolicy
from imagine.agents.true_rollouts import Job, TrueRollouts, WholeEpisodes, in_order, simulated, turns
from imagine.agents.zoo import Flaw, Flawed
from imagine.configs import build, heldout
from imagine.configs.commands.common import console
from imagine.configs.foreign import load_foreign
from imagine.configs.judges import default_judge, load_judge, second_judge
from imagine.configs.loaded import Loaded
from imagine.configs.pages.fidelity import save_dreams
from imagine.configs.pages.objects import Sheet, tables
from imagine.configs.policies import EXPERT, load_policy
from imagine.configs.runfolder import RunFolder
from imagine.data.processes import process_pool
from imagine.files import write_json
from imagine.progress import Progress
from imagine.types import ImagineError, Policy, RewardModel

HIDE = "hide"
"""The policy that hides things for a while; see :class:`imagine.agents.scripted.HidingPolicy`."""
SCRIPTED = (EXPERT, "expert+noise=0.06", "expert+bias=0.04", "expert+grip=0.5", "random", HIDE)
"""Whose actions a dream is tried with, where the simulator has an expert: those of every model are the same then."""
LEARNT = ("base", "base+noise=0.08", "base+bias=0.04", "random")
"""The same where it has none."""
CHUNKS, WINDOW_CHUNKS = 8, 4
"""Horizons where none is given: of the objects, and of recorded windows."""
TOGETHER = 8
FILE = "rollouts.npz"


def fidelity_of_windows(args: Any) -> dict[str, Any]:
    """Measure dreams against recorded episodes; writes ``metrics.json`` and ``horizon.png`` to the run folder.

    Args:
        args: :class:`imagine.configs.commands.evaluate_world_model.Args`.

    Raises:
        ImagineError: the datasets do not fit the model.
    """
    loaded = args.load()
    home, model = loaded.folder, loaded.model
    folder = RunFolder.of("evaluate-world-model", args)
    datasets = [Path(d) for d in args.dataset] or [heldout.record(loaded, args.seed, args.episodes, folder.path)]
    windows = heldout.windows(model, datasets, folder.path)
    if args.foreign:
        foreign = load_foreign(args.foreign)
        with Progress("one chunk") as on_progress:
            answer = measure_foreign(foreign, windows, n=args.windows, on_progress=on_progress)
        folder.save_metrics(answer)
        return answer
    dreamer, cfg = build.dreamer(model, home), build.dream_config(home).model_copy(update={"steps": args.steps})
    chunks = args.chunks or WINDOW_CHUNKS
    with Progress("one chunk") as on_progress:
        answer, dreams = measure(dreamer, model, windows, cfg, n=args.windows, chunks=chunks, on_progress=on_progress)
    folder.save_metrics(answer)
    _keep(args, "fidelity", answer)
    save_dreams(dreams, folder / "horizon.png")
    console.print(f"dream (above) and truth (below): {folder / 'horizon.png'}")
    return answer


def _keep(args: Any, name: str, answer: dict[str, Any]) -> None:
    """Write an answer into the model folder, if that was asked for."""
    if args.write:
        kept = Path(args.model) / "metrics.json"
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        write_json(kept, {**known, name: answer})


def fidelity_of_objects(args: Any) -> dict[str, Any]:
    """Tell what becomes of every object; writes ``metrics.json``, ``objects.md``, ``objects.png`` and ``objects.mp4``.

    Args:
        args: :class:`imagine.configs.commands.evaluate_world_model.Args`.

    Raises:
        ImagineError: the robot has no simulator, a policy cannot be had, or kept rollouts are of something else.
    """
    loaded = build.load(args.model, args.robot, args.options(), args.device)
    cfg = build.dream_config(loaded.folder).model_copy(update={"steps": args.steps})
    dreamer = build.dreamer(loaded.model, loaded.folder, cfg)
    folder = RunFolder.of("evaluate-world-model", args)
    rollouts = _rollouts(args, loaded, args.kept or folder.path)
    sheet, same = Sheet(rollouts), SameActions(dreamer, rollouts, cfg)
    shows = ForeignActions(load_foreign(args.foreign), rollouts, loaded.model.body) if args.foreign else same
    with Progress("dreams", len(rollouts)) as on_progress:
        answer = measure_objects(shows, on_scene=sheet, on_progress=on_progress)
    judges = {} if args.foreign else _judges(args, loaded)
    if judges:
        with Progress("judges", len(rollouts)) as on_progress:
            answer["judges"] = compare_judges(same, judges, on_progress=on_progress)
    answer |= {"seed": args.seed, "policies": dict(Counter(rollouts.policies.tolist()))}
    if not loaded.robot.tells_objects:
        answer["left_out"] = [f"robot {loaded.robot.name!r} does not tell which object a pixel shows"]
    folder.save_metrics(answer)
    _keep(args, "objects", answer)
    folder.write_text("objects.md", tables(answer))
    console.print(tables(answer), markup=False, highlight=False, soft_wrap=True)
    body = loaded.model.body
    sheet.write(folder.path, body.control_hz / body.frame_stride)
    return headline(answer)


def headline(answer: dict[str, Any]) -> dict[str, Any]:
    """What fits on a screen: over all chunks, or at the last one.

    Args:
        answer: of :func:`imagine.agents.object_fidelity.measure_objects`, with what else is told of it.
    """
    kinds, last = list(answer["db"]), f"db at chunk {answer['chunks']}"
    painted = {c: {k: answer["painted"][k][c]["all"] for k in kinds} for c in answer["painted"]["dream"]}
    db = {g: {k: answer["db"][k][g]["by_chunk"][-1] for k in kinds} for g in answer["db"]["dream"]}
    faults = {w: {k: answer["faults"][k]["any"][w] for k in kinds} for w in answer["faults"]["dream"]["any"]}
    told = {k: answer[k] for k in answer if k not in ("painted", "db", "faults")}
    return {"painted": painted, last: db, "any fault": faults, **told}


def _judges(args: Any, loaded: Loaded) -> dict[str, RewardModel]:
    """Judges by name; where none are named the default one and another kind, as far as the model has any."""
    if args.judge == ("none",):
        return {}
    names: list[str] = list(args.judge)
    if not names:
        try:
            names = [default_judge(loaded.folder)]
        except ImagineError:
            return {}
        names += [name] if (name := second_judge(names[0], loaded.folder)) else []
    return {name: load_judge(name, loaded.folder, args.device) for name in names}


def _rollouts(args: Any, loaded: Loaded, place: Path) -> TrueRollouts:
    """The rollouts, found in a folder or made and left there."""
    chunks = args.chunks or CHUNKS
    key = {
        "robot": loaded.robot.spec, "options": loaded.options, "policies": args.policy or "default", "seed": args.seed,
        "actor": str(args.actor or args.model) if args.policy else "", "rollouts": args.rollouts, "chunks": chunks,
        "body": loaded.model.body.model_dump(),
    }  # fmt: skip
    file = place / FILE
    if file.is_file():
        return TrueRollouts.load(file, key)
    how = args.model, args.actor or args.model, args.robot, args.options(), chunks
    simulator = Simulator(*how)
    seeds = range(args.seed, args.seed + args.rollouts)
    jobs = turns(args.policy or simulator.mixture(args.seed), seeds, TOGETHER)
    for name in {name for name, *_ in jobs}:
        simulator.policy(name)  # what cannot be had is refused here
    done, parts = 0, []
    with Progress("rollouts", len(seeds)) as on_progress, _pool(min(args.workers, len(jobs)), how, simulator) as run:
        for part in run(jobs):
            parts.append(part)
            on_progress(done := done + len(part))
    made = in_order(jobs, parts)
    place.mkdir(parents=True, exist_ok=True)
    made.save(file, key)
    return made


class Simulator:
    """Simulators of a robot, and policies that act in them, in any process."""

    def __init__(self, model: str, actor: str, robot: str, options: dict[str, str], chunks: int) -> None:
        """See :class:`imagine.configs.commands.evaluate_world_model.Args`.

        Raises:
            ImagineError: the robot has no simulator, or ``actor`` is of another embodiment than ``model``.
        """
        loaded = build.load(model, robot, options)
        self.acting = loaded if actor == model else build.load(actor, robot, options)
        self.body = loaded.model.body
        if self.acting.model.body != self.body:
            raise ImagineError(f"{actor} is for embodiment {self.acting.model.body.name!r}, not that of {model}.")
        self.envs = WholeEpisodes(loaded.robot, lambda: loaded.sim_env(chunks), TOGETHER, self.body, chunks)

    def __call__(self, job: Job) -> TrueRollouts:
        """Carry out some rollouts."""
        name, _, seeds = job
        return simulated(self.envs, name, self.policy(name), seeds)

    def policy(self, name: str) -> Policy:
        """A policy by name, also those that only a simulator has."""
        own, _, flaws = name.partition("+")
        if own not in (EXPERT, HIDE):
            return load_policy(name, self.acting.model, self.acting.folder)
        policy = ExpertPolicy(self.envs) if own == EXPERT else HidingPolicy(self.envs, AWAY)
        return Flawed(policy, Flaw.parse(flaws), self.body) if flaws else policy

    def mixture(self, seed: int) -> tuple[str, ...]:
        """Whose actions are taken where nobody is named: as much as the robot can do."""
        self.envs.reset([seed])
        env, robot, things = self.envs.envs[0], self.envs.robot, self.envs.told[0].masks[0].things
        if robot.expert(env) is None:
            return LEARNT
        hides = bool(things) and robot.hide(env, things[0]) is not None
        return tuple(name for name in SCRIPTED if name != HIDE or hides)


_simulator: Simulator


def _start(*how: Any) -> None:
    """Runs once in each process."""
    global _simulator
    _simulator = Simulator(*how)


def _simulate(job: Job) -> TrueRollouts:
    return _simulator(job)


@contextmanager
def _pool(
    workers: int, how: tuple[Any, ...], here: Simulator
) -> Iterator[Callable[[list[Job]], Iterable[TrueRollouts]]]:
    """Carries out jobs in processes, or in this one if one is enough; answers come in their order."""
    if workers <= 1:
        yield lambda jobs: map(here, jobs)
        return
    with process_pool(workers, _start, how) as pool:
        yield lambda jobs: pool.map(_simulate, jobs)
