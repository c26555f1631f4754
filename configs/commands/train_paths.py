"""Teaches a judge where things are and what paths of the hands came to, on whole dreams of many policies.

The twin, which carried out the same actions, tells where each block really was and how far it went: for every dream
several questions that its blocks allow are asked.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imagine.configs.build import families_of
from imagine.configs.commands.train_rollouts import RolloutConfig, dreams, nearness, verdicts
from imagine.embodiment import Embodiment
from imagine.files import write_json
from imagine.model.model import WorldActionModel
from imagine.policy.robots.g1_table.mirror import Mirror
from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.policy.robots.g1_table.tasks import Task
from imagine.policy.robots.g1_table.truth import accomplished, is_there, place
from imagine.rewards.calibrate import auroc
from imagine.rewards.trajectory import TrajectoryConfig, TrajectoryJudge
from imagine.train.fit import FitConfig, fit
from imagine.types import ShapeError
from imagine.world.trajectory import TRAJECTORY_CHUNKS, initial, interpolate

NEAR = 0.1  # m
TOLD = 0.65  # share of a batch that is judged by what the policy was told, rather than by another question
LOOSE = 0.3  # share of a batch whose past chunks are known at their ends only, as a planner on a robot knows them
LATENT_NOISE = 0.1
ASKED = 6  # questions about each dream: all that two blocks allow
BETA = 0.05, 0.3  # of the smooth L1 losses of places and of movements, in units of NEAR


def hands_of(body: Embodiment) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which numbers of proprioception are places of hands, x, y and z in turn, and which of an action lead there.

    Raises:
        ShapeError: none are.
    """
    size = {part.name: part.stop - part.start for part in body.state}
    begin = dict(zip(body.proprio, np.cumsum([0, *(size[name] for name in body.proprio)]).tolist(), strict=False))
    hands = [name for name in body.proprio if name.endswith("eef_position")]
    anchors = body.anchors_in_proprio()
    places = [begin[hand] + axis for hand in hands for axis in range(3)]
    if not hands or not set(places) <= set(anchors):
        raise ShapeError(
            f"embodiment {body.name!r} does not command hands by position: its proprioception is {body.proprio}; use "
            "--judge latent."
        )
    return tuple(places), tuple(anchors.index(i) for i in places)


class Questions:
    """All that can be asked about N dreams of T chunks, told instruction first, with the truth.

    Attributes:
        words: (N, Q, W) float.
        done: (N, Q, T) bool, by the end of each chunk.
        near: (N, Q, T) float32, see :func:`nearness`.
        place: (N, Q, H) float32, normalised: hands where the thing was at the start.
        moved: (N, Q, T, 3) float32, how far it had gone, in units of ``NEAR``.
    """

    def __init__(self, model: WorldActionModel, judge: TrajectoryJudge, told: list[str], truths: np.ndarray):
        """Ask them."""
        tasks = [_tasks(Task.parse(t), row[0], families_of(model)) for t, row in zip(told, truths, strict=True)]
        n, t = len(tasks), truths.shape[1] - 1
        self.words = judge.word_counts([q.instruction for each in tasks for q in each]).unflatten(0, (n, -1))
        count = self.words.shape[1]
        done, moved = np.zeros((n, count, t), bool), np.zeros((n, count, t, 3), np.float32)
        at = np.zeros((n, count, 3), np.float32)
        for i, (each, row) in enumerate(zip(tasks, truths, strict=True)):
            for j, task in enumerate(each):
                at[i, j] = place(row[0], task.colour)
                moved[i, j] = (place(row[1:], task.colour) - at[i, j]) / NEAR
                done[i, j] = np.logical_or.accumulate(accomplished(row[:1], row[1:], task))
        state = np.zeros((n, count, judge.cfg.proprio), np.float32)
        state[..., judge.cfg.places] = np.tile(at, len(judge.cfg.places) // 3)
        self.done, self.moved = torch.from_numpy(done), torch.from_numpy(moved.clip(-3, 3))
        self.near = torch.from_numpy(np.stack([nearness(done[:, j], judge.cfg.discount) for j in range(count)], 1))
        self.place = model.normalise_proprio(torch.from_numpy(state))[..., list(judge.cfg.places)]


def _tasks(told: Task, row: np.ndarray, families: tuple[str, ...]) -> list[Task]:
    """What was told and what else might be, ``ASKED`` in all; if the blocks allow no more, some are asked again."""
    colours = [c for c in COLOURS if is_there(row, c)]
    at = colours.index(told.colour)
    others = [Task(f, c) for c in colours[at:] + colours[:at] for f in families]
    return ([told, *(t for t in others if t != told)] * ASKED)[:ASKED]


def train_paths(
    model: WorldActionModel, dreamer: str | Path, cfg: RolloutConfig, run: FitConfig, folder: Path
) -> TrajectoryJudge:
    """Fit a TrajectoryJudge to dreams; its threshold makes held-out dreams succeed as often as the twin.

    Held-out numbers go to ``metrics.json``, what was dreamt to ``dreams-*.npz``.

    Args:
        model: dreams.
        dreamer: its folder.
        cfg: whose dreams; those whose seed 5 divides are held out.
        run: how long and how fast.
        folder: resumes what it holds.
    """
    channels, height, width = model.chunk_shapes["video"][1:]
    hands, targets = hands_of(model.body)
    unit = torch.full((model.body.proprio_dim,), NEAR)
    near = model.normalise_proprio(unit) - model.normalise_proprio(torch.zeros_like(unit))
    torch.manual_seed(run.seed)  # weights, and dropout later
    judge = TrajectoryJudge(
        TrajectoryConfig(
            channels=channels, height=height, width=width, proprio=model.body.proprio_dim,
            actions=model.body.action_dim, ticks=model.body.frame_stride, places=hands, targets=targets,
            near=tuple(near[list(hands)].tolist()), words=tuple(sorted(model.text.cfg.words)),
        )
    )  # fmt: skip
    mirror = Mirror(model, judge.cfg.words, hands)
    made = dreams(dreamer, cfg, folder)
    first, path = torch.from_numpy(made["latents"][:, 0]).float(), torch.from_numpy(made["path"])
    asked = Questions(model, judge, made["instruction"].tolist(), made["truths"])
    frames = (path.shape[1] - 1) // asked.done.shape[2]
    held = np.equal(made["seed"] % 5, 0)
    before = F.pad(asked.done, (1, 0))[..., :-1]
    clips = [
        (~before & torch.from_numpy(~held)[:, None, None] & told).nonzero()
        for told in (torch.arange(before.shape[1]).eq(0)[:, None], torch.arange(before.shape[1]).gt(0)[:, None])
    ]

    def window(i: Tensor, t: Tensor) -> Tensor:
        """(n, 1 + TRAJECTORY_CHUNKS F, P + S A), as a judge is shown the path after chunk t."""
        back = torch.arange(-TRAJECTORY_CHUNKS * frames, 1)
        return path[i[:, None], ((t[:, None] + 1) * frames + back).clamp(min=0)]

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        judge.train()
        share = int(run.batch * TOLD)
        rows = [
            torch.randint(len(c), (n,), generator=generator)
            for c, n in zip(clips, (share, run.batch - share), strict=True)
        ]
        i, q, t = torch.cat([c[r] for c, r in zip(clips, rows, strict=True)]).T
        seen, words, way = first[i], asked.words[i, q], window(i, t)
        seen = seen + LATENT_NOISE * torch.randn(seen.shape, generator=generator)
        loose = torch.rand(len(i), generator=generator) < LOOSE
        way = torch.where(loose[:, None, None], loosened(model, way), way)
        here = judge.locate(seen, words)
        at, gone = here.detach(), asked.moved[i, q, t]
        turn = torch.rand(len(i), generator=generator) < 0.5
        at, way, words, gone = (
            torch.where(turn.view(-1, *[1] * (x.dim() - 1)), mirror(x), x)
            for mirror, x in ((mirror.place, at), (mirror.trajectory, way), (mirror.words, words), (mirror.moved, gone))
        )
        answer = judge.logits(at, way, words)
        target = torch.stack([asked.done[i, q, t].float(), asked.near[i, q, t]], -1).expand(len(answer), -1, -1)
        told = F.binary_cross_entropy_with_logits(answer[..., :2], target)
        moved = F.smooth_l1_loss(answer[..., 2:], gone.expand(len(answer), -1, -1), beta=BETA[1])
        off = F.smooth_l1_loss((here - asked.place[i, q]) / judge.near, torch.zeros_like(here), beta=BETA[0])
        return 2 * told + moved / 2 + off, {"told": told.item(), "moved": moved.item(), "off": off.item()}

    @torch.no_grad()
    def said(ema: nn.Module, rows: np.ndarray) -> np.ndarray:
        """(n, T) success probability of what was told, as the judge reports it."""
        assert isinstance(ema, TrajectoryJudge)
        i = torch.from_numpy(rows)
        words = asked.words[i, 0]
        here = torch.cat([ema.locate(*part) for part in zip(first[i].split(256), words.split(256), strict=True)])
        ways = [window(i, torch.full_like(i, t)) for t in range(before.shape[2])]
        each = [torch.sigmoid(ema.logits(here, way, words)[..., 0]).mean(0) for way in ways]
        return torch.stack(each, 1).numpy()

    rows = np.flatnonzero(held)
    truth = asked.done[torch.from_numpy(rows), 0].numpy()

    def evaluate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, TrajectoryJudge)
        p, shown = said(ema, rows), ~before[torch.from_numpy(rows), 0].numpy()
        i = torch.from_numpy(rows)
        with torch.no_grad():
            off = (ema.locate(first[i], asked.words[i, 0]) - asked.place[i, 0]) / ema.near
        return {
            "auroc": auroc(p[shown], truth[shown]),
            "episode_auroc": auroc(p.max(1), truth.max(1)),
            "brier": float(np.square(p - truth)[shown].mean()),
            "off_cm": float(100 * NEAR * off[:, :2].norm(dim=1).median()),
            "n": float(shown.sum()),
        }

    ema = fit(judge, loss, run, folder, evaluate=evaluate, name="paths")
    assert isinstance(ema, TrajectoryJudge)
    threshold, found = verdicts(said(ema, rows), truth, made["kind"][rows])
    ema.cfg = ema.cfg.model_copy(update={"threshold": threshold})
    write_json(folder / "metrics.json", {**evaluate(ema), **found})
    return ema


def loosened(model: WorldActionModel, path: Tensor) -> Tensor:
    """Windows (n, 1 + C F, P + S A) as a planner on a robot knows them, which looks at the ends of chunks only.

    Chunks but the newest are straight, and reckoning starts anew at the newest one.
    """
    frames, p = model.chunk_shapes["video"][0], model.body.proprio_dim
    ends = path[:, :-frames:frames, :p]
    told = initial(model, ends[:, 0])
    for k in range(1, ends.shape[1]):
        told = interpolate(model, told, ends[:, k])
    newest = path[:, -frames:].clone()
    off = (told[:, -1:, p:] - path[:, -frames - 1 : -frames, p:])[..., -len(model.anchored) :] * model.anchored
    newest[..., p:] += off.repeat(1, 1, newest[..., p:].shape[2] // len(model.anchored))
    return torch.cat([told[:, -(path.shape[1] - frames) :], newest], 1)
