"""Success rates, imagined or simulated, with intervals; large evaluations go in parts that can be resumed and shared.

A part is one policy on a few starts in one world. What it finds depends on the part alone, never on who carries it out
or on its neighbours, so one process, two Ray workers and a resumed run give the same table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imagine.agents.envs import ParallelEnvs
from imagine.agents.recorded import RecordedEpisodes
from imagine.agents.rollout import EpisodeRecord, Instruct, OnProgress, rollout
from imagine.agents.statistics import success_rate
from imagine.embodiment import Embodiment
from imagine.extras import extra
from imagine.files import atomic_path
from imagine.types import ImagineError, Policy

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Part:
    """One policy on a few starts in one world.

    Attributes:
        policy: its name, as the composition root knows it.
        world: ``sim``, ``imagined``, or ``recorded`` where the episodes of a dataset are evaluated.
        seeds: start seeds.
    """

    policy: str
    world: str
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """A file name that no other part has."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]
        return f"{self.world}-{self.seeds[0]}-{digest}"


Work = Callable[[Part], list[dict[str, Any]]]
"""Carries out a part; returns a row per episode, see :func:`row`."""


def parts(policies: Sequence[str], worlds: Sequence[str], seeds: Sequence[int], size: int) -> list[Part]:
    """Every policy on every start in every world, ``size`` starts to a part.

    Raises:
        ImagineError: there is no policy, world or start, or one of them is named twice.
    """
    for name, given in (("policies", policies), ("worlds", worlds), ("start seeds", seeds)):
        if not len(given) or len(set(given)) < len(given):
            twice = sorted({str(g) for g in given if list(given).count(g) > 1})
            raise ImagineError(
                f"got {len(given)} {name}, {', '.join(twice) or 'none'} named twice or nothing at all; expected one or "
                "more, each once."
            )
    cut = [tuple(int(s) for s in seeds[i : i + size]) for i in range(0, len(seeds), size)]
    return [Part(p, w, c) for p in policies for w in worlds for c in cut]


def row(part: Part, record: EpisodeRecord, task: str, start_id: str) -> dict[str, Any]:
    """One episode as a row of the table: what, where, how it ended and how far it can be believed."""
    judged = [t["success"] for t in record.terms if "success" in t]
    return {
        "policy": part.policy,
        "world": part.world,
        "start_id": start_id,
        "seed": record.seed,
        "task": task,
        "instruction": record.instruction,
        "success": record.success,
        "unbelievable": record.unbelievable,
        "chunks": len(record.rewards),
        "judged": max(judged) if judged else None,
        "hallucination": max(record.hallucination) if record.hallucination else None,
    }


def carry_out(
    wanted: Sequence[Part], make: Callable[[], Work], folder: Path, *, ray: str | None = None, workers: int = 1,
    stamp: str = "", on_progress: OnProgress | None = None,
) -> pa.Table:  # fmt: skip
    """Carry out all parts that ``folder`` does not hold yet; each is written whole, so a kill loses one at most.

    Args:
        wanted: parts.
        make: makes a worker; pickled to Ray's processes.
        folder: holds ``parts/`` and, at the end, ``episodes.parquet``.
        ray: address of a Ray cluster, or "local" for one on this machine; None works in this process.
        workers: Ray actors, one CPU each.
        stamp: stands for the weights behind the names; parts of other weights are not taken for these.
        on_progress: called with (episodes done, episodes) after every part.

    Returns:
        All rows, in the order of ``wanted``.

    Raises:
        ImagineError: ``workers`` is not positive, no cluster answers, or a worker failed.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if workers < 1:
        raise ImagineError(f"asked for {workers} workers, expected at least 1.")
    place = folder / "parts" / stamp
    place.mkdir(parents=True, exist_ok=True)
    files = {part: place / f"{part.name}.parquet" for part in wanted}
    missing = [part for part in wanted if not _is_whole(files[part])]
    done, total = sum(len(p.seeds) for p in wanted if p not in missing), sum(len(p.seeds) for p in wanted)
    for part, rows in _answers(missing, make, ray, workers):
        with atomic_path(files[part]) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema()), temporary)
        done += len(part.seeds)
        if on_progress is not None:
            on_progress(done, total)
    table = pa.concat_tables([pq.read_table(files[part]) for part in wanted])
    with atomic_path(folder / "episodes.parquet") as temporary:
        pq.write_table(table, temporary)
    return table


def _is_whole(file: Path) -> bool:
    """Whether a part is there and can be read; one that cannot is made again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return bool(pq.read_table(file).schema.equals(schema()))
    except (OSError, pa.ArrowException):
        return False


def _answers(
    wanted: Sequence[Part], make: Callable[[], Work], address: str | None, workers: int
) -> Iterator[tuple[Part, list[dict[str, Any]]]]:
    if not wanted:
        return
    if address is None:
        work = make()
        for part in wanted:
            yield part, work(part)
        return
    with extra("rl"):
        import ray
        from ray.util import ActorPool

    from imagine.agents.cluster import connected, errors_as_ours, local_cluster

    class Worker:
        def __init__(self) -> None:
            self.work = make()

        def run(self, part: Part) -> tuple[Part, list[dict[str, Any]]]:
            return part, self.work(part)

    cluster = local_cluster(1, workers) if address == "local" else connected(address)
    with cluster, errors_as_ours():
        actors = [ray.remote(num_cpus=1)(Worker).remote() for _ in range(min(workers, len(wanted)))]  # type: ignore[attr-defined]
        yield from ActorPool(actors).map_unordered(lambda actor, part: actor.run.remote(part), list(wanted))


def schema() -> pa.Schema:
    """Columns of the table of episodes; see :func:`row`."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    columns = dict.fromkeys(("policy", "world", "start_id", "task", "instruction"), text)
    columns |= {"seed": pa.int64(), "success": pa.bool_(), "unbelievable": pa.bool_(), "chunks": pa.int64()}
    return pa.schema(columns | {"judged": number, "hallucination": number})


def outcomes(table: pa.Table, policies: Sequence[str], world: str, seeds: Sequence[int]) -> np.ndarray:
    """Successes (policies, starts) bool in one world, so that the same column is the same start.

    Raises:
        ImagineError: the table lacks an episode.
    """
    data: Mapping[str, list[Any]] = table.select(["policy", "world", "seed", "success"]).to_pydict()
    known = {
        (p, s): ok for p, w, s, ok in zip(*(data[c] for c in ("policy", "world", "seed", "success")), strict=True)
        if w == world
    }  # fmt: skip
    try:
        return np.array([[known[p, int(s)] for s in seeds] for p in policies])
    except KeyError as error:
        raise ImagineError(
            f"the table holds no {world} episode of (policy, seed) {error}; evaluate it first."
        ) from None


EXPERT = "expert"
"""The policy that a simulator's scripted expert is known by."""


class Worker:
    """Carries out parts; keeps what they share."""

    def __init__(
        self,
        policy: Callable[[str], Policy],
        envs: Callable[[str], ParallelEnvs],
        task_of: Callable[[str], str],
        body: Embodiment,
        *,
        instruct: Instruct | None = None,
        recorded: RecordedEpisodes | None = None,
    ) -> None:
        """Say what names mean.

        Args:
            policy: makes a policy of its name; never asked for the expert, whom environments bring along.
            envs: makes the environments of a world of its name.
            task_of: names the task of an instruction.
            body: of the robot; says how fast frames follow each other.
            instruct: overrides what policies are told; see :func:`imagine.agents.rollout.rollout`.
            recorded: episodes of a dataset, whose actions are carried out whatever the policy's name.
        """
        self.policy, self.envs, self.task_of = cache(policy), cache(envs), task_of
        self.body, self.instruct, self.recorded = body, instruct, recorded

    def __call__(self, part: Part) -> list[dict[str, Any]]:
        """A row per episode of the part."""
        kind = "seed" if self.recorded is None else "episode"
        return [row(part, r, self.task_of(r.instruction), f"{kind}-{r.seed}") for r in self.episodes(part)]

    def episodes(self, part: Part, *, frames: bool = False) -> list[EpisodeRecord]:
        """Run them; with their frames on demand."""
        if self.recorded is not None and part.world == "recorded":
            return [self.recorded.happened(seed) for seed in part.seeds]
        alone = self.recorded is not None or part.policy == EXPERT
        policy = None if alone else self.policy(part.policy)
        return rollout(self.envs(part.world), policy, part.seeds, instruct=self.instruct, frames=frames)


def evaluate(
    envs: ParallelEnvs,
    policy: Policy,
    seeds: Sequence[int],
    *,
    task_of: Callable[[str], str],
    policy_seed: int = 0,
    on_progress: OnProgress | None = None,
) -> tuple[dict[str, Any], list[EpisodeRecord]]:
    """Run one episode per seed and summarise.

    Args:
        envs: the world.
        policy: what is evaluated.
        seeds: start seeds; the same seeds in two worlds are paired starts.
        task_of: names the task of an instruction, for the breakdown.
        policy_seed: draws of the policy.
        on_progress: called after every group of episodes.

    Returns:
        ``success_rate``, ``ci_low``, ``ci_high`` (95 %, Wilson), ``n``, ``per_task``; and the episodes.
    """
    records = rollout(envs, policy, seeds, policy_seed=policy_seed, on_progress=on_progress)
    return summarise([r.success for r in records], [task_of(r.instruction) for r in records]), records


def summarise(success: Sequence[bool] | np.ndarray, tasks: Sequence[str]) -> dict[str, Any]:
    """Success rate with its interval, overall and per task."""
    won, task = np.asarray(success, bool), np.asarray(tasks)
    per_task = {t: _numbers(won[task == t]) for t in sorted(set(task.tolist()))}
    return {**_numbers(won), "per_task": per_task}


def _numbers(success: np.ndarray) -> dict[str, Any]:
    rate = success_rate(success)
    return {"success_rate": rate.value, "ci_low": rate.low, "ci_high": rate.high, "n": rate.n}
