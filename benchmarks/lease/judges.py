"""Stages of the second call: policies act in the dream, the simulator repeats it, and the judges learn from both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagine.agents.collect_cache import caches_in
from imagine.agents.labelled_clips import ImaginedClips, RecordedClips, RolloutClips
from imagine.agents.labelled_frames import ImaginedPairs, RecordedPairs, imagine_again
from imagine.agents.labelled_rollouts import labelled_rollouts
from imagine.configs.labelling import rollout_maker
from imagine.configs.policies import adapters_in
from imagine.data.windows import Windows
from imagine.labels import LabelledRollouts, RolloutPairs
from imagine.model.model import WorldActionModel
from imagine.model.text import vocabulary
from imagine.policy.robots.registry import robot_of
from imagine.rewards.latent import JudgeConfig, LatentJudge
from imagine.rewards.tiny import save_tiny
from imagine.rewards.train.head import train_head
from imagine.rewards.train.vlm import train_vlm
from imagine.train.fit import FitConfig
from lease.parts import ROOT, Lease

CACHES = 80  # of the recorded ones, that judges are shown
CHUNKS = 8
ENDING = 12.0  # seconds for what comes after training
SPEED_SECONDS = 70.0  # what the benchmark of Wan needs at least


def train_judges(lease: Lease) -> None:
    """Label, train, ship; the speed of Wan on this GPU if there is time left."""
    folder = (lease.args.model or lease.model).resolve()
    made = _rollouts(lease, folder, 0.45 * lease.left)
    model = WorldActionModel.from_pretrained(folder, device=lease.args.device)
    caches = caches_in(lease.folder / "cache")[:CACHES]
    canvases = Windows(caches, model.body, context_frames=2) if caches else None
    lease.attempt("heads", lambda: _heads(lease, folder, model, canvases, made))
    lease.attempt("judge-tiny", lambda: _vlm(lease, folder, model, canvases, made, lease.left - ENDING))
    if lease.left > SPEED_SECONDS and lease.args.device != "cpu":
        _speed(lease)


def _rollouts(lease: Lease, folder: Path, seconds: float) -> LabelledRollouts:
    """Dreams of good and flawed policies with what the same actions did on the simulator, on all cores."""
    began, cfg = time.monotonic(), lease.recipe.rollouts
    usual = {"base", "random", "misled", "clumsy", *adapters_in(folder)}
    policies = tuple(name for name in cfg.policies if name.partition("+")[0] in usual)
    episodes = lease.args.rollouts or lease.workers * lease.args.together * len(policies)  # one part for each process
    cfg = cfg.model_copy(update={"policies": policies, "episodes": episodes, "chunks": CHUNKS})
    maker = partial(rollout_maker, folder, frames=True, device=lease.args.device, num_envs=lease.args.together)
    made = labelled_rollouts(
        maker, cfg, lease.folder / "rollouts", lambda done, all_of_them: None, workers=lease.workers,
        together=lease.args.together, seconds=seconds,
    )  # fmt: skip
    taken = time.monotonic() - began
    lease.say("rollouts", episodes=len(made), success=float(made.done[:, -1].mean()), seconds=taken)
    return made


def _dreams(lease: Lease, usual: int) -> int:
    return usual if lease.args.dreams < 0 else lease.args.dreams


def _timed(fit: FitConfig, seconds: float) -> FitConfig:
    return fit.model_copy(update={"steps": 10**6, "seconds": seconds, "eval_every": 10**6, "save_every": 10**6})


def _heads(
    lease: Lease,
    folder: Path,
    model: WorldActionModel,
    canvases: Windows | None,
    made: LabelledRollouts,
) -> None:
    """Success heads in latents, on recorded frames, dreams of them, and rollouts; into the model folder."""
    recipe = lease.recipe
    train, held = made.pick(~made.held), made.pick(made.held)
    sources: list[Any] = [RolloutPairs(train)]
    measured: dict[str, Any] = {"": RolloutPairs(held)}
    texts = list(made.instruction)
    if canvases is not None:
        latents = canvases.encoded(model.codec.encode, model.device)
        rows = np.random.default_rng(0).permutation(latents.rows("train"))
        dreams = imagine_again(model, latents, rows[: _dreams(lease, recipe.judge_dreams)])
        sources += [RecordedPairs(model, latents, rows), ImaginedPairs(model, latents, dreams)]
        texts += latents.instructions
    channels, height, width = model.chunk_shapes["video"][1:]
    head = LatentJudge(
        JudgeConfig(
            head=recipe.head, channels=channels, height=height, width=width, proprio=model.body.proprio_dim,
            words=vocabulary(texts),
        )
    )  # fmt: skip
    fit = _timed(recipe.judge_fit, lease.args.head_seconds)
    taught = train_head(
        head, sources, measured, fit, lease.folder / "judge_fit", replays=RolloutPairs(held, whole=True),
        kinds=held.kind, trace=recipe.head.trace,
    )  # fmt: skip
    taught.save(folder)
    numbers = json.loads((lease.folder / "judge_fit/metrics.json").read_text())
    (folder / "judge_metrics.json").write_text(json.dumps(numbers, indent=2))
    lease.say("heads", **{k: v for k, v in numbers.items() if isinstance(v, int | float)})
    lease.ship(folder, "model")


def _vlm(
    lease: Lease,
    folder: Path,
    model: WorldActionModel,
    canvases: Windows | None,
    made: LabelledRollouts,
    seconds: float,
) -> None:
    """judge-tiny, on recorded clips, dreams of them, and rollouts; beside the model folder."""
    began, recipe, where = time.monotonic(), lease.recipe, lease.folder / "vlm_fit"
    cfg, rng, robot = recipe.vlm, np.random.default_rng(recipe.vlm_fit.seed), robot_of(folder, model.body)
    train: list[Any] = []
    held: dict[str, Any] = {}
    if canvases is not None:
        dreams = _dreams(lease, cfg.dreams)
        for split, n in (("train", dreams), ("held_out", max(64, dreams // 10))):
            rows = canvases.rows(split)
            begin = rng.permutation(rows)[:n]
            begin = np.where(rng.uniform(size=len(begin)) < 0.3, canvases.episode_rows(begin)[0], begin)
            recorded = RecordedClips(canvases, rows, backwards=cfg.backwards, frozen=cfg.frozen)
            imagined = ImaginedClips(model, canvases, begin, cfg.chunks)
            if split == "train":
                train += [recorded, imagined]
            else:
                held |= {"real": recorded, "imagined": imagined}
    train.append(RolloutClips(made.pick(~made.held), backwards=cfg.backwards))
    held["rollout"] = RolloutClips(made.pick(made.held))
    lease.say("judge-tiny", clips=sum(map(len, train)), clips_seconds=time.monotonic() - began)
    fit = _timed(recipe.vlm_fit, max(5.0, seconds - (time.monotonic() - began)))
    began = time.monotonic()
    judge = train_vlm(robot, train, held, cfg, fit, where)
    out = lease.folder / "judge-tiny"
    save_tiny(judge, out)
    numbers = json.loads((where / "metrics.json").read_text())
    (out / "training.json").write_text(json.dumps(numbers, indent=2))
    lease.say("judge-tiny", **numbers, clips_per_second=numbers["step"] * fit.batch / (time.monotonic() - began))
    lease.ship(out, "judge")


def _speed(lease: Lease) -> None:
    """``benchmarks/gpu.py`` on the smallest of Wan's models, for as long as there is time."""
    torch.cuda.empty_cache()
    minutes = (lease.left - 15) / 60
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--models", "1.3b", "--minutes", f"{minutes:.2f}"]
    try:
        subprocess.run([*command, "--json", str(lease.out / "speed.json")], timeout=lease.left - 5, check=False)
    except subprocess.TimeoutExpired:
        lease.say("speed", failed="out of time")
