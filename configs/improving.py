"""Improvement put together: the dream that a policy learns in, who rewards, who watches, and the proof afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from imagine.agents.envs import DreamEnvs
from imagine.agents.finetune.improve import ImproveConfig, Trainer
from imagine.agents.finetune.survey import Survey, survey
from imagine.agents.monitor import Monitor, MonitorConfig
from imagine.agents.paired import Paired, compare
from imagine.agents.rollout import rollout
from imagine.configs import build
from imagine.configs.commands.common import console
from imagine.configs.judges import judge_name, second_judge
from imagine.configs.loaded import Loaded
from imagine.configs.paid import Payer, note, warning
from imagine.configs.policies import adapter_of, load_policy
from imagine.configs.practice import Practice
from imagine.data.read import LeRobotDataset
from imagine.files import write_json
from imagine.intact import intact
from imagine.policy.adapter import weights_hash
from imagine.progress import Progress
from imagine.types import ImagineError
from imagine.world.dream import Dream
from imagine.world.starts import DatasetStarts, MixedStarts

P = TypeVar("P", bound=Practice)

SURVEYED, LONGEST = 880_000, 4
"""First start seed of the survey, and the chunks of its episodes."""
SHOWN = (
    "return", "success", "second_judge", "inverse_error", "step_kl", "kl", "held_out_success", "floor", "judge_gap"
)  # fmt: skip
"""What is printed after every update."""


def resolved(practice: P, loaded: Loaded) -> P:
    """The same with the defaults that depend on the model folder.

    Raises:
        ImagineError: judge and second judge are the same, or the policy is no adapter.
    """
    judge = judge_name(practice.judge, loaded.folder)
    policy = practice.policy or "base"
    adapter_of(policy, loaded.folder)  # refuses what cannot be had
    watched_by = practice.watched_by or second_judge(judge, loaded.folder) or "none"
    if watched_by == judge:
        raise ImagineError(f"--watched-by is {judge} like --judge; a judge cannot watch itself, name another.")
    return replace(practice, judge=judge, policy=policy, watched_by=watched_by)


def improve(practice: Practice, cfg: ImproveConfig, loaded: Loaded, folder: Path) -> dict[str, Any]:
    """Dream and learn; returns what it came to, with the curve of every update.

    Args:
        practice: who learns, and from whom; see :func:`resolved`.
        cfg: the algorithm.
        loaded: the model and its robot.
        folder: the adapter is written to ``adapter/`` of it; what it already holds is taken up.
    """
    begin, dream, checks = time.time(), _dream(practice, loaded, folder), MonitorConfig(starts=practice.watch_starts)
    frozen = weights_hash(dream.model)
    found = surveyed(practice, loaded, dream, folder)
    console.print(str(found))

    def wanted(seed: int) -> bool:
        return loaded.robot.task_of(dream.starts(seed, {}).instruction) in found.practised

    envs, monitor = DreamEnvs(dream, practice.num_envs, horizon=found.horizon), None
    if not practice.unguarded:
        held_out = DreamEnvs(Dream(dream.model, dream.judge, build.starts_of(loaded), dream.cfg), checks.starts)
        monitor = Monitor(held_out, loaded.distractor, checks)
    start = adapter_of(practice.policy, loaded.folder)
    run = Trainer(loaded.model, envs, cfg, folder, monitor=monitor, start=start, wanted=wanted)
    note(folder / "adapter", start, Payer.of(practice.judge, loaded.folder))
    with Progress("improve", cfg.updates, run.update) as on_progress:
        adapter = run.run(lambda done, row: on_progress.report(done, {k: row[k] for k in SHOWN if k in row}))
    if weights_hash(dream.model) != frozen:
        raise AssertionError("the weights of the dream moved while the policy learnt")
    if run.alarm:
        console.print(f"[yellow]{run.alarm}[/yellow]")
    if monitor is not None and not run.kept:
        console.print("[yellow]every update was worse, on held-out starts, than the policy it began with[/yellow]")
    return {
        "adapter": str(adapter),
        "algorithm": cfg.algorithm,
        "horizon": run.horizon,
        "practised": list(found.practised),
        "updates": run.update,
        "imagined_episodes": run.update * cfg.groups * cfg.members,
        "imagined_chunks": int(sum(row.get("chunks", 0) for row in run.curve)),
        "alarm": run.alarm,
        "kept_update": run.kept if monitor is not None else run.update,
        "seconds": round(time.time() - begin, 1),
        "curve": run.curve,
    }


def surveyed(practice: Practice, loaded: Loaded, dream: Dream, folder: Path) -> Survey:
    """What the policy achieves in the dream before it learns; kept in ``survey.json`` of the run folder."""
    kept = folder / "survey.json"
    if kept.is_file():
        with intact(kept, "delete the run folder and start again"):
            return Survey(**json.loads(kept.read_bytes()))
    seeds = range(SURVEYED, SURVEYED + 2 * practice.watch_starts)
    policy = load_policy(practice.policy, loaded.model, loaded.folder)
    envs = DreamEnvs(dream, min(len(seeds), practice.num_envs), horizon=LONGEST)
    with Progress("survey") as on_progress:
        found = survey(rollout(envs, policy, seeds, on_progress=on_progress), loaded.robot.task_of)
    write_json(kept, asdict(found))
    return found


def _dream(practice: Practice, loaded: Loaded, folder: Path) -> Dream:
    starts: Any = build.starts_of(loaded)
    if practice.starts:
        recorded = LeRobotDataset.open(Path(practice.starts))
        anywhere = DatasetStarts(recorded, loaded.model.body, folder / "starts", anywhere=True)
        starts = MixedStarts(starts, anywhere, practice.midway)
    how: dict[str, Any] = {"inverse_error_cost": practice.inverse_error_cost, "tile": 0, "autocast": True}
    if practice.unguarded:
        how |= {"inverse_error_cost": 0.0, "hallucination_limit": None}
    cfg = build.dream_config(loaded.folder).model_copy(update=how)
    second = None if practice.watched_by == "none" else practice.watched_by
    return build.dream(
        loaded, cfg, judge=practice.judge, guarded=not practice.unguarded, watched_by=second, starts=starts
    )


def proofs_of(practice: Practice, loaded: Loaded) -> dict[str, tuple[str, str]]:
    """World and judge of every proof that can be had; the first one counts most, that of who paid least."""
    found = {"sim": ("sim", "")} if loaded.robot.has_env else {}
    if practice.watched_by != "none":
        found["second_judge"] = ("imagined", practice.watched_by)
    return found | {"imagined": ("imagined", practice.judge)}


def prove(
    practice: Practice, loaded: Loaded, names: Mapping[str, str], seeds: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Paired], dict[str, Any]]:
    """Success before and after from the same starts, on the simulator if there is one and in the dream.

    Args:
        practice: see :func:`improve`.
        loaded: the model and its robot.
        names: of the policies ``before`` and ``after``.
        seeds: start seeds.

    Returns:
        ``before``, ``after``, ``gain``, ``gain_per_task`` on the simulator and ``imagined_before`` and so on in the
        dream, by the judge that paid; under ``second_judge`` what another one says, and a ``warning``; the episodes by
        proof; and the policies.
    """
    policies = {name: load_policy(policy, loaded.model, loaded.folder) for name, policy in names.items()}
    found: dict[str, Paired] = {}
    for proof, (world, judge) in proofs_of(practice, loaded).items():
        envs = build.parallel_envs(loaded, world, 16 if world == "sim" else practice.num_envs, judge=judge)
        with Progress(f"{proof.replace('_', ' ')}, before and after") as on_progress:
            found[proof] = compare(envs, policies, seeds, task_of=loaded.robot.task_of, on_progress=on_progress)
    numbers = _numbers(found["sim"]) if "sim" in found else {}
    numbers |= {f"imagined_{k}": v for k, v in _numbers(found["imagined"]).items()}
    second = practice.watched_by if "second_judge" in found else None
    if second is not None:
        numbers["second_judge"] = {"name": second, **_numbers(found["second_judge"])}
    numbers["warning"] = warning(practice.judge, ["after"], second)
    if "gain" in numbers:
        simulated, imagined = (numbers[k]["value"] for k in ("gain", "imagined_gain"))
        numbers["imagined_over_sim_gain"] = round(imagined / simulated, 3) if simulated else None
    return numbers, found, policies


def _numbers(found: Paired) -> dict[str, Any]:
    return {
        **found.results,
        "gain": found.gain("after", "before"),
        "gain_per_task": found.gain_per_task("after", "before"),
    }
