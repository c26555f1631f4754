"""The stages of ``imagine train`` that teach judges; what they do is in ``agents/labelled_*`` and ``rewards/train``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.labelled_frames import ImaginedPairs, RecordedPairs, imagine_again
from imagine.agents.labelled_recordings import recorded_rollouts
from imagine.agents.labelled_rollouts import RolloutConfig, labelled_rollouts
from imagine.configs.labelling import dreaming, rollout_maker
from imagine.labels import LabelledRollouts, RolloutPairs
from imagine.model.model import WorldActionModel, resolve
from imagine.model.text import vocabulary
from imagine.policy.robots.registry import robot_of
from imagine.progress import Progress
from imagine.rewards.latent import JudgeConfig, LatentJudge
from imagine.types import DatasetError, ImagineError

REPLAY_CHUNKS = 8  # as long as an evaluated episode


def judge(run: Any) -> None:
    """Train the success heads on recorded frames and on what is imagined in their place; ``judge.*`` in the model.

    Args:
        run: :class:`imagine.configs.commands.train_stages.Training`.
    """
    from imagine.rewards.train.head import train_head

    model, windows, recipe = WorldActionModel.from_pretrained(run.out), run.windows, run.recipe
    rows, held = windows.rows("train"), windows.rows("held_out")
    held = np.random.default_rng(0).permutation(held if len(held) else rows)[:2000]  # one episode holds none out
    chosen = np.random.default_rng(recipe.judge_fit.seed).permutation(rows)[: recipe.judge_dreams]
    recorded = [RecordedPairs(model, windows, part) for part in (rows, held)]
    imagined = [_imagined(model, windows, part) for part in (chosen, held[:600])]
    chains = windows.chains(1, "held_out")[:, 0]
    replays = _imagined(model, windows, chains, chunks=REPLAY_CHUNKS) if len(chains) else None
    channels, height, width = model.chunk_shapes["video"][1:]
    head = LatentJudge(
        JudgeConfig(
            head=recipe.head, channels=channels, height=height, width=width, proprio=model.body.proprio_dim,
            words=vocabulary(windows.instructions),
        )
    )  # fmt: skip
    where = run.folder / "judge_fit"
    taught = train_head(
        head, [recorded[0], imagined[0]], {"": recorded[1], "imagined_": imagined[1]}, recipe.judge_fit, where,
        replays=replays, trace=recipe.head.trace,
    )  # fmt: skip
    taught.save(run.out)
    run.keep("judge", where, run.out / "judge_metrics.json")


def rollouts(run: Any) -> None:
    """Go on with the success heads on whole labelled dreams of many policies; ``judge.*`` in the model."""
    from imagine.rewards.train.head import train_head

    dreamer, where = run.dreamer("rollouts"), run.folder / "rollouts_fit"
    head, made = LatentJudge.load(resolve(dreamer)), _labelled(run, dreamer, run.recipe.rollouts, where)
    train, held = made.pick(~made.held), made.pick(made.held)
    taught = train_head(
        head, [RolloutPairs(train)], {"": RolloutPairs(held)}, run.recipe.rollouts_fit, where,
        replays=RolloutPairs(held, whole=True), kinds=held.kind, name="rollouts",
    )  # fmt: skip
    run.out.mkdir(parents=True, exist_ok=True)
    taught.save(run.out)
    run.keep("rollouts", where, run.out / "judge_metrics.json")


def vlm(run: Any) -> None:
    """Train a vision-language judge on recorded canvases and on what the model imagines; ``OUT/judge-tiny``.

    Raises:
        DatasetError: the dataset does not record the true state.
    """
    from imagine.rewards.tiny import save_tiny
    from imagine.rewards.train.vlm import train_vlm

    dreamer, cfg, windows = run.dreamer("vlm"), run.recipe.vlm, run.canvases
    model, where, out = WorldActionModel.from_pretrained(dreamer), run.folder / "vlm_fit", run.folder / "judge-tiny"
    robot = robot_of(resolve(dreamer), model.body)
    if not windows.newest(windows.rows()[:1])[1].shape[-1] or not robot.instructions():
        raise DatasetError(
            "the judge's labels are read from observation.environment_state by the robot's `answers`, but the dataset "
            f"does not record it or robot {robot.name!r} has none; record it with `imagine record`, or use "
            "--stages judge."
        )
    sources, measured = _sources(run, model, dreamer, windows)
    save_tiny(train_vlm(robot, sources, measured, cfg, run.recipe.vlm_fit, where), out)
    run.keep("vlm", where, out / "training.json")


def _sources(run: Any, model: WorldActionModel, dreamer: str, windows: Any) -> tuple[list[Any], dict[str, Any]]:
    """Clips to learn from, and held-out ones by kind, as the recipe asks for.

    Raises:
        ImagineError: the recipe asks for no imagined clips.
    """
    from imagine.agents.labelled_clips import ImaginedClips, RecordedClips, RolloutClips

    cfg, train, held = run.recipe.vlm, windows.rows("train"), windows.rows("held_out")
    both = (train, held if len(held) else train)  # a dataset of one episode holds nothing out
    clips: list[list[Any]] = [
        [RecordedClips(windows, rows, backwards=cfg.backwards, frozen=cfg.frozen)] for rows in both
    ]
    names, rng = ["real"], np.random.default_rng(run.recipe.vlm_fit.seed)
    if cfg.dreams:
        names.append("imagined")
        for kept, rows, n in zip(clips, both, (cfg.dreams, max(64, cfg.dreams // 10)), strict=True):
            begin = rng.permutation(rows)[:n]
            begin = np.where(rng.uniform(size=len(begin)) < 0.3, windows.episode_rows(begin)[0], begin)
            with Progress("dreaming for the judge") as on_progress:
                kept.append(ImaginedClips(model, windows, begin, cfg.chunks, on_progress))
    if cfg.rollouts:
        names.append("rollout")
        make, seeds = (
            rollout_maker(dreamer, fast=False, frames=True),
            range(cfg.first_seed, cfg.first_seed + cfg.rollouts),
        )
        with Progress("rolling out for the judge") as on_progress:
            made = make(seeds, ("base", "clumsy", "clumsy", "misled"), REPLAY_CHUNKS, on_progress=on_progress)
        for kept, rows in zip(clips, (~made.held, made.held), strict=True):
            kept.append(RolloutClips(made.pick(rows), backwards=cfg.backwards))
    if len(names) == 1:
        raise ImagineError("vlm.dreams and vlm.rollouts are both 0, expected one of them; a judge must know dreams.")
    return clips[0], dict(zip(names, clips[1], strict=True))


def _imagined(model: WorldActionModel, windows: Any, rows: np.ndarray, **how: Any) -> ImaginedPairs:
    with Progress("dreaming for the judge") as on_progress:
        return ImaginedPairs(model, windows, imagine_again(model, windows, rows, on_progress=on_progress, **how))


def _labelled(run: Any, dreamer: str, cfg: RolloutConfig, where: Path) -> LabelledRollouts:
    """Rollouts on the robot's simulator, or its recordings dreamt again where it has none."""
    model = WorldActionModel.from_pretrained(dreamer)
    with Progress("dreaming for the judge") as on_progress:
        if robot_of(resolve(dreamer), model.body).has_env:
            return labelled_rollouts(partial(rollout_maker, dreamer), cfg, where, on_progress)
        dream = partial(dreaming, model, dreamer, fast=True)
        return recorded_rollouts(dream, run.canvases, cfg.chunks, on_progress=on_progress)
