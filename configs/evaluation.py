"""Who carries out the parts of an evaluation: policies, worlds and recorded episodes by name, in any process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.evaluate import Part, row
from imagine.agents.rollout import DreamLanes, EpisodeRecord, Lanes, rollout
from imagine.configs import build
from imagine.configs.told import Told
from imagine.data.read import LeRobotDataset
from imagine.model.model import WorldActionModel, resolve
from imagine.rewards.vlm import judge_folder
from imagine.types import ImagineError, Policy
from imagine.world.dream import Dream
from imagine.world.starts import DatasetStarts

ZOO = (
    "base",
    "base+delay=6",
    "base+delay=12",
    "base+noise=0.02",
    "base+noise=0.04",
    "base+noise=0.08",
    "base+idle=0.7",
    "base+grip=0.5",
    "base+bias=0.04",
    "improved",
    "improved+noise=0.03",
    "novice",
    "novice+noise=0.03",
    "random",
)
"""Policies with known truth, from hopeless to perfect: ``imagine evaluate --zoo``."""


@dataclass(frozen=True)
class Setup:
    """What every part of an evaluation shares; crosses process borders.

    Attributes:
        model: a shipped model's name, a folder, or a hub id.
        judge: who scores a dream, see :func:`imagine.configs.build.judge`.
        lanes: episodes run side by side.
        steps: denoising steps of the policy.
        told: see :class:`imagine.configs.told.Told`.
        go_on: act on after what was told is done.
        horizon: chunks per episode at most.
        blocks: on the table.
        guarded: a judged success needs what the gym's guards ask as well, and what cannot be believed ends.
        dataset: folder of a LeRobot dataset whose episodes are dreamt again under their recorded actions; "" for none.
        cache: folder for what is decoded of it.
    """

    model: str
    judge: str
    lanes: int = 16
    steps: int = 4
    told: str = "right"
    go_on: bool = False
    horizon: int = build.HORIZON
    blocks: int = 2
    guarded: bool = True
    dataset: str = ""
    cache: str = ""


def stamp(setup: Setup, policies: Sequence[str]) -> str:
    """Twelve digits that stand for all weights and settings of an evaluation.

    What answers behind ``ws://`` or ``module:name`` is not known; evaluate a changed one in another folder.
    """
    folders = [resolve(setup.model)]
    names = [p.partition("+")[0] for p in policies]
    folders += [resolve(setup.model) / n if n in build.ADAPTERS else Path(n) for n in names]
    if (dreams := build.dream_config(setup.model).adapter) is not None:
        folders.append(resolve(setup.model) / dreams)
    if not setup.judge.startswith(("http://", "https://")) and setup.judge not in ("latent", "path"):
        folders.append(Path(judge_folder(setup.judge)))
    rules = setup.steps, setup.told, setup.go_on, setup.horizon, setup.blocks, setup.guarded, setup.judge
    digest = hashlib.sha256(repr(rules).encode())
    for folder in sorted({f for f in folders if f.is_dir()}):
        for file in sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".json")):
            if "metrics" not in file.name:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


class Worker:
    """Carries out parts; keeps what they share."""

    def __init__(self, setup: Setup):
        """Load the model."""
        self.setup = setup
        self.model = WorldActionModel.from_pretrained(setup.model)
        self._policies: dict[str, Policy] = {}
        self._lanes: dict[tuple[str, bool], Lanes] = {}

    def __call__(self, part: Part) -> list[dict[str, Any]]:
        """A row per episode of the part."""
        return [
            row(part, r, build.task_of(r.instruction), f"{'episode' if self.setup.dataset else 'seed'}-{r.seed}")
            for r in self.episodes(part)
        ]

    def episodes(self, part: Part, *, film: bool = False) -> list[EpisodeRecord]:
        """Run them; filmed on demand."""
        if part.world == "recorded":
            return [self.recorded.happened(seed) for seed in part.seeds]
        policy = self.policy(part.policy)
        seen = (lambda o: self.model.body.tile({v.name: o[v.name] for v in self.model.body.views})) if film else None
        return rollout(self.lanes(part, policy, film), policy, part.seeds, film=film, canvas=seen)

    def policy(self, name: str) -> Policy:
        """By name; the recorded actions where a dataset is evaluated."""
        if name not in self._policies:
            if self.setup.dataset:
                self._policies[name] = self.recorded
            else:
                found = build.policy(name, self.model, self.setup.model, steps=self.setup.steps)
                self._policies[name] = Told(found, self.setup.told, build.families_of(self.model))
        return self._policies[name]

    def lanes(self, part: Part, policy: Policy, film: bool) -> Lanes:
        """Of the part's world; kept, as making a dream takes a second."""
        expert, world = part.policy == "expert", part.world
        ends = policy if isinstance(policy, Told) and self.setup.told != "right" and not self.setup.go_on else None
        if ends is not None and world == "real":  # such lanes belong to one policy
            return build.lanes(
                world, self.model, self.setup.model, self.setup.lanes, until_told=ends, horizon=self.setup.horizon,
                blocks=self.setup.blocks,
            )  # fmt: skip
        key = (f"{world}{'-expert' if expert else ''}", film)
        if key not in self._lanes:
            if self.setup.dataset and world == "imagined":
                dream = build.dream(
                    self.model, self.setup.model, judged_by=self.setup.judge, guarded=self.setup.guarded,
                    starts=self.recorded.starts,
                )  # fmt: skip
                self._lanes[key] = RecordedLanes(
                    dream, self.setup.lanes, self.recorded, film=film, break_off=self.setup.guarded
                )
            else:
                self._lanes[key] = build.lanes(
                    world, self.model, self.setup.model, self.setup.lanes, expert=expert, film=film,
                    judged_by=self.setup.judge, horizon=self.setup.horizon, blocks=self.setup.blocks,
                    guarded=self.setup.guarded,
                )  # fmt: skip
        return self._lanes[key]

    @cached_property
    def recorded(self) -> Recorded:
        """The dataset under evaluation."""
        return Recorded(self.model, self.setup.dataset, Path(self.setup.cache))


class Recorded:
    """Recorded episodes, to be dreamt again: a ``Policy`` that does what was done, and what came of it.

    An episode's number in the dataset is its start seed. Where the instruction changes on the way, the episode ends.
    """

    def __init__(self, model: WorldActionModel, dataset: str, cache: Path):
        """Decode the dataset once.

        Raises:
            DatasetError: it is unusable or of another embodiment.
        """
        self.starts = DatasetStarts(LeRobotDataset.open(Path(dataset)), model.body, cache, in_order=True)
        self.windows, self.body = self.starts.windows, model.body
        first, last = self.windows.episode_rows(self.starts.rows)
        self.chains: list[np.ndarray] = []
        for begin, end in zip(first, last, strict=True):
            chain = np.arange(begin, end + 1, self.body.chunk_frames)
            told = self.windows.instruction_ids(chain)
            whole = self.windows.actions(chain)[1].all(1) & (np.cumsum(told != told[0]) == 0)
            self.chains.append(chain[: int(whole.argmin()) if not whole.all() else len(chain)])
        self.longest = max(1, max(len(c) for c in self.chains))

    def usable(self) -> list[int]:
        """Numbers of the episodes that hold a whole chunk of actions for one instruction."""
        return [i for i, chain in enumerate(self.chains) if len(chain)]

    def happened(self, seed: int) -> EpisodeRecord:
        """What the recording says of an episode.

        Raises:
            ImagineError: the dataset does not tell success.
        """
        chain = self.chains[seed]
        batch = self.windows.batch(chain)
        if not bool(batch.success_valid.all()):
            raise ImagineError("the dataset has no `success` feature; evaluate it in the imagined world alone.")
        told = self.windows.instructions[int(batch.instruction_id[0])]
        # Success as the dream is judged: at the end of a chunk at the earliest.
        won = bool(batch.success_future.any()) if len(chain) else False
        return EpisodeRecord(seed, told, success=won, rewards=[0.0] * len(chain))

    def act(self, observation: dict[str, np.ndarray], seeds: Sequence[int] | None = None) -> np.ndarray:
        """The recorded chunks; after an episode's last one, nothing moves."""
        assert seeds is not None
        out = np.zeros((len(seeds), self.body.chunk_actions, self.body.action_dim), np.float32)
        for i, seed in enumerate(seeds):
            episode, chunk = divmod(int(seed), 1_009)  # imagine.agents.rollout: seed of a draw = episode * 1009 + chunk
            chain = self.chains[episode]
            out[i] = self.windows.actions(chain[[min(chunk, len(chain) - 1)]])[0][0]
        return np.clip(out, self.body.action_low, self.body.action_high)

    def reset(self, lanes: np.ndarray | None = None) -> None:
        """Nothing to forget."""


class RecordedLanes(DreamLanes):
    """Lanes of a dream in which every episode is as long as the one that was recorded."""

    def __init__(
        self, dream: Dream, num_lanes: int, recorded: Recorded, *, film: bool = False, break_off: bool = True
    ) -> None:
        """Take possession of a dream whose starts are those of ``recorded``."""
        super().__init__(dream, num_lanes, horizon=recorded.longest, film=film, break_off=break_off)
        self.recorded = recorded

    def reset(self, seeds: Sequence[int], instruction: str | None) -> dict[str, np.ndarray]:
        """See :class:`imagine.agents.rollout.Lanes`."""
        self.lengths = [len(self.recorded.chains[int(s)]) for s in seeds]
        return super().reset(seeds, instruction)

    def step(self, lanes: Sequence[int], actions: np.ndarray) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """See :class:`imagine.agents.rollout.Lanes`."""
        seen, told = super().step(lanes, actions)
        for lane, result in zip(lanes, told, strict=True):
            result["done"] = result["done"] or self.chunks >= self.lengths[lane]
        return seen, told
