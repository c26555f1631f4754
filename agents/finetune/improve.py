"""The loop that every algorithm shares: dream in groups, learn an adapter, look for exploitation, save, go on.

The dream's own weights never move. An update is a function of the state before it, its number and the seed, and the
state is written by rename after each one, so a run killed at any moment continues to the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from imagine.agents.envs import DreamEnvs
from imagine.agents.finetune.algorithms import ALGORITHMS, Algorithm
from imagine.agents.finetune.awr import AWR
from imagine.agents.finetune.experience import Decisions, Experience, Wanted, chosen, gather, velocity
from imagine.agents.finetune.filtered_bc import FilteredBC
from imagine.agents.finetune.grpo import FlowGRPO
from imagine.agents.finetune.kernel import FlowKernel
from imagine.agents.finetune.nft import DiffusionNFT
from imagine.extras import extra
from imagine.files import atomic_path
from imagine.intact import intact
from imagine.model.checkpoint import misfits
from imagine.model.model import WorldActionModel
from imagine.noise import schedule
from imagine.policy.adapter import Learner, merged
from imagine.seeds import Stream, derive
from imagine.train.fit import step_generator
from imagine.types import ImagineError

CHOICE = 8
"""Start seeds per start that an update needs; those of tasks that are not practised are passed over."""
RULER = FlowKernel(kind="cps", noise=0.5)
"""The kernel by which every algorithm's divergence from the base is measured, whatever it explores with."""


class ImproveConfig(BaseModel):
    """How a policy is improved; one section per algorithm, of which ``algorithm`` names the one in use.

    Attributes:
        algorithm: filtered_bc, awr, nft or grpo.
        updates: rounds of dreaming and learning.
        groups: starts per update.
        members: episodes per start.
        first_seed: of the starts.
        steps: denoising steps of the policy.
        discount: of rewards, per chunk.
        horizon: chunks per imagined episode; None leaves the environments' own.
        rank: of a new adapter.
        lr: learning rate.
        epochs: passes over an update's decisions.
        minibatch: decisions per gradient step.
        clip: gradient norm.
        target_kl: an update is shortened until the learner's divergence from the policy that acted is at most this,
            nats per decision.
        look_every: updates between two looks for exploitation.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    algorithm: Literal["filtered_bc", "awr", "nft", "grpo"] = "nft"
    filtered_bc: FilteredBC = FilteredBC()
    awr: AWR = AWR()
    nft: DiffusionNFT = DiffusionNFT()
    grpo: FlowGRPO = FlowGRPO()
    updates: int = Field(default=6, ge=1)
    groups: int = Field(default=16, ge=1)
    members: int = Field(default=8, ge=1)
    first_seed: int = Field(default=800_000, ge=0)
    steps: int = Field(default=4, ge=1)
    discount: float = Field(default=0.9, gt=0, le=1)
    horizon: int | None = Field(default=None, ge=1)
    rank: int = Field(default=16, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    epochs: int = Field(default=6, ge=1)
    minibatch: int = Field(default=256, ge=1)
    clip: float = 1.0
    target_kl: float = Field(default=0.5, gt=0)
    seed: int = 0
    look_every: int = Field(default=4, ge=1)

    @property
    def chosen(self) -> Algorithm:
        """The algorithm in use."""
        assert set(ALGORITHMS) <= set(type(self).model_fields)
        return getattr(self, self.algorithm)  # type: ignore[no-any-return]

    def start_seeds(self, update: int | None = None) -> range:
        """The start seeds that an update, or all of them, may choose its starts from."""
        # Runs of other seeds begin elsewhere in a band of 40,000 starts.
        offset = int(np.random.default_rng(derive(self.seed, Stream.START)).integers(20_000)) if self.seed else 0
        each = CHOICE * self.groups
        first = self.first_seed + offset + (update or 0) * each
        return range(first, first + each * (self.updates if update is None else 1))


@dataclass(frozen=True)
class Check:
    """What one check of a policy found.

    Attributes:
        numbers: for the curves.
        alarm: why training should stop; None if it need not.
        error: by how much ``held_out_success`` differs between two checks of one policy, a standard error.
    """

    numbers: dict[str, float]
    alarm: str | None
    error: float = 0.0


class Watcher(Protocol):
    """Looks for exploitation every few updates."""

    def check(self, model: WorldActionModel, horizon: int) -> Check:
        """Check a policy over episodes of at most ``horizon`` chunks."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON takes it."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Take over :meth:`state`."""
        ...


OnUpdate = Callable[[int, dict[str, float]], None]
"""Called with (updates done, the newest numbers)."""


class Trainer:
    """One run."""

    def __init__(
        self,
        base: WorldActionModel,
        envs: DreamEnvs,
        cfg: ImproveConfig,
        folder: Path,
        *,
        monitor: Watcher | None,
        start: str | Path | None = None,
        wanted: Wanted = lambda seed: True,
    ) -> None:
        """Prepare, and take up whatever ``folder`` already holds.

        Args:
            base: the joint model; never changed.
            envs: dreams to learn in.
            cfg: how.
            folder: run folder.
            monitor: watches; None trains unwatched.
            start: adapter of the policy to improve; None improves the base.
            wanted: whether to practise from a start seed.

        Raises:
            CheckpointMismatch: ``start`` or the folder's state was made for another network.
            ImagineError: the algorithm needs random moves and its kernel makes none, or groups to compare and has none.
        """
        self.base, self.envs, self.cfg, self.folder = base, envs, cfg, Path(folder)
        self.monitor, self.wanted = monitor, wanted
        self.algorithm, self.horizon = cfg.chosen, cfg.horizon or envs.horizon
        if cfg.algorithm == "grpo" and not cfg.grpo.noisy_steps(cfg.steps, base.schedule_shift):
            raise ImagineError(
                f"grpo.kernel {cfg.grpo.kernel.kind} with noise {cfg.grpo.kernel.noise} in {cfg.steps} steps makes no "
                "random move, so there is no gradient; choose cps or sde with noise above 0 and 2 steps or more."
            )
        if cfg.algorithm != "filtered_bc" and cfg.members < 2:
            raise ImagineError(
                f"{cfg.algorithm} compares members of a group and got {cfg.members}, expected 2 or more."
            )
        self.learner = Learner(base, rank=cfg.rank, start=start, seed=cfg.seed)
        self.behaviour = Learner(base, rank=cfg.rank, start=start, seed=cfg.seed)
        self.began = merged(base, start) if start is not None else base
        self.optimiser = torch.optim.AdamW(
            list(self.learner.parameters().values()), lr=cfg.lr, betas=(0.9, 0.95), weight_decay=0.0
        )
        self.update, self.curve, self.alarm = 0, list[dict[str, float]](), ""
        self.best, self.kept = 0.0, 0
        self._resume()

    def run(self, on_update: OnUpdate | None = None) -> Path:
        """Train until all updates are done or an alarm stops it; returns the folder of the adapter."""
        with extra("train"):
            from torch.utils.tensorboard import SummaryWriter

        log = SummaryWriter(str(self.folder / "log"), purge_step=self.update)
        while self.update < self.cfg.updates and not self.alarm:
            numbers = self._check() | self._improve()
            self.update += 1
            if self.update == self.cfg.updates and not self.alarm:
                numbers |= {f"final_{k}": v for k, v in self._check(always=True).items()}
            self.curve.append({"update": self.update, **numbers})
            for key, value in numbers.items():
                log.add_scalar(f"improve/{key}", value, self.update)
            self._save()
            if on_update is not None:
                on_update(self.update, numbers)
        log.close()
        return self.folder / "adapter"

    # ------------------------------------------------------------------ one update
    def _improve(self) -> dict[str, float]:
        """Dream, then learn; the numbers are the acting policy's."""
        cfg, u = self.cfg, self.update
        if self.alarm:
            return {}
        self.envs.horizon = self.horizon
        seeds = chosen(cfg.start_seeds(u), self.wanted, cfg.groups)
        how: dict[str, Any] = {"draw": derive(cfg.seed, u), "steps": cfg.steps, "discount": cfg.discount}
        gathered = gather(self.envs, self.behaviour.model, self.algorithm.kernel, seeds, cfg.members, **how)
        numbers = gathered.numbers() | self._learn(gathered, step_generator(derive(cfg.seed, Stream.POLICY), u))
        numbers |= self._bound(gathered.decisions)
        self.behaviour.load(self.learner.state())
        return numbers | {"kl": self._divergence(gathered.decisions, self.began)}

    def _bound(self, rows: Decisions) -> dict[str, float]:
        """Step back towards the policy that acted until the update is no longer than ``target_kl``.

        The divergence grows with the square of a small step, so one step back is nearly always enough.
        """
        share, acted = 1.0, self.behaviour.state()
        while (kl := self._divergence(rows, self.behaviour.model)) > 1.1 * self.cfg.target_kl:
            back = (self.cfg.target_kl / kl) ** 0.5
            share *= back
            self.learner.load({k: acted[k] + back * (v - acted[k]) for k, v in self.learner.state().items()})
        return {"step_kl": kl, "step_share": share}

    def _learn(self, gathered: Experience, generator: torch.Generator) -> dict[str, float]:
        cfg, algorithm = self.cfg, self.algorithm
        rows = gathered.decisions.index(algorithm.usable(gathered.decisions))
        if not len(rows):
            return {"usable": 0.0}
        sums: dict[str, list[float]] = {"usable": [len(rows) / len(gathered.decisions)]}
        prepared = algorithm.prepare(rows, self.behaviour.model)
        models = (self.learner.model, self.behaviour.model, self.began)
        for _ in range(cfg.epochs):
            for some in torch.randperm(len(rows), generator=generator).split(cfg.minibatch):
                loss, numbers = algorithm.loss(*models, rows.index(some), prepared[some], generator)
                if not torch.isfinite(loss):
                    raise ImagineError(f"the loss is {loss.item()} at update {self.update}; lower lr (now {cfg.lr}).")
                self.optimiser.zero_grad()
                # A short last minibatch counts less, so that every decision counts alike.
                (loss * min(1.0, len(some) / cfg.minibatch)).backward()
                norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters().values(), cfg.clip)
                self.optimiser.step()
                for key, value in {"loss": loss.item(), "gradient": norm.item(), **numbers}.items():
                    sums.setdefault(key, []).append(value)
        return {k: float(np.mean(v)) for k, v in sums.items()}

    @torch.no_grad()
    def _divergence(self, rows: Decisions, other: WorldActionModel, most: int = 96) -> float:
        """Mean KL of the learner from another policy, nats per decision, on the chains of this update."""
        rows = rows.index(torch.linspace(0, len(rows) - 1, min(most, len(rows))).long())
        levels = schedule(self.cfg.steps, self.base.schedule_shift).tolist()
        total, both = torch.zeros(len(rows)), [(m, m.prefill(rows.context)) for m in (self.learner.model, other)]
        for k in range(self.cfg.steps):
            x = rows.chain[:, k]
            ours, theirs = (velocity(m, rows.context, x, levels[k], cache) for m, cache in both)
            total += RULER.kl(x, ours, theirs, levels[k], levels[k + 1]).cpu()
        return float(total.mean())

    def _check(self, always: bool = False) -> dict[str, float]:
        """Ask the monitor when it is time; kept is the newest adapter that is not worse than the best by an error."""
        if not always and self.update % self.cfg.look_every and self.monitor is not None:
            return {}
        if self.monitor is not None:
            found = self.monitor.check(self.learner.model, self.horizon)
            if found.alarm:
                self.alarm = (
                    f"training stopped after {self.update} updates: {found.alarm}; the best adapter before is kept"
                )
                return found.numbers
            if (success := found.numbers.get("held_out_success", self.best)) < self.best - found.error:
                return found.numbers
            self.best, self.kept = max(self.best, success), self.update
        self.learner.save(self.folder / "adapter")
        return found.numbers if self.monitor is not None else {}

    # ------------------------------------------------------------------ state
    def _save(self) -> None:
        state = {
            "update": self.update,
            "learner": self.learner.state(),
            "optimiser": self.optimiser.state_dict(),
            "told": json.dumps({"curve": self.curve, "alarm": self.alarm, "best": self.best, "kept": self.kept}),
            "monitor": json.dumps(self.monitor.state() if self.monitor else {}),
        }
        with atomic_path(self.folder / "state.pt") as temporary:
            torch.save(state, temporary)

    def _resume(self) -> None:
        path = self.folder / "state.pt"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        with intact(path, "delete the run folder and start again"):
            self._take(torch.load(path, map_location=self.base.device, weights_only=True))

    def _take(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`_save` wrote."""
        if wrong := misfits(self.learner.parameters(), state["learner"]):
            raise ValueError(f"learner: {wrong[0]}")
        for learner in (self.learner, self.behaviour):
            learner.load(state["learner"])
        self.optimiser.load_state_dict(state["optimiser"])
        progress = json.loads(state["told"])
        self.update, self.curve, self.alarm = int(state["update"]), progress["curve"], progress["alarm"]
        self.best, self.kept = progress.get("best", 0.0), progress.get("kept", 0)
        if self.monitor is not None and (watched := json.loads(state["monitor"])):
            self.monitor.load(watched)
