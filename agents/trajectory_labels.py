"""What a judge of trajectories is asked about imagined episodes, with the truth, and what it must know of a robot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from imagine.embodiment import Embodiment
from imagine.labels import Questions
from imagine.model.model import WorldActionModel
from imagine.model.text import split_words
from imagine.policy.robots.plugin import RobotPlugin
from imagine.types import ShapeError
from imagine.world.trajectory import initial, interpolate

ASKED = 6  # questions about each episode at most


def hands_of(body: Embodiment) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which numbers of proprioception are places of hands, x, y and z in turn, and which of an action lead there.

    Raises:
        ShapeError: none are.
    """
    state, anchors = {part.name: part for part in body.state}, body.anchors_in_proprio()
    begin = dict(zip(body.proprio, np.cumsum([0, *(state[n].size for n in body.proprio)]).tolist(), strict=False))
    hands = [name for name in body.proprio if state[name].kind == "position"]
    places = [begin[hand] + axis for hand in hands for axis in range(3)]
    if not hands or not set(places) <= set(anchors):
        raise ShapeError(
            f"embodiment {body.name!r} does not command hands by position: its proprioception is {body.proprio}; use "
            "--judge latent."
        )
    return tuple(places), tuple(anchors.index(i) for i in places)


def near_of(model: WorldActionModel, places: Sequence[int], metres: float) -> tuple[float, ...]:
    """Per place number, how many normalised units so many metres are."""
    unit = torch.full((model.body.proprio_dim,), metres)
    near = model.normalise_proprio(unit) - model.normalise_proprio(torch.zeros_like(unit))
    return tuple(near[list(places)].tolist())


def questions_about(
    robot: RobotPlugin,
    model: WorldActionModel,
    instruction: Sequence[str],
    states: np.ndarray,
    done: np.ndarray,
    places: Sequence[int],
) -> Questions:
    """Each episode's own instruction, and others that were possible from its start where the true state answers them.

    Args:
        robot: knows the answers, if anybody does.
        model: knows words and units.
        instruction: N texts.
        states: (N, 1 + T, S) true states, S = 0 where nobody knows.
        done: (N, T) bool, had its own instruction been carried out by the end of each chunk?
        places: numbers of proprioception that are positions of hands.
    """
    known = set(model.text.cfg.words)
    others = [text for text in robot.instructions() if set(split_words(text)) <= known] if states.shape[2] else []
    asked = [
        _texts(robot, text, row[0], others, i) for i, (text, row) in enumerate(zip(instruction, states, strict=True))
    ]
    n, q, t = len(done), len(asked[0]), done.shape[1]
    truth = np.zeros((n, q, t), bool)
    at, moved = np.full((n, q, 3), np.nan, np.float32), np.full((n, q, t, 3), np.nan, np.float32)
    for i, texts in enumerate(asked):
        for j, text in enumerate(texts):
            row = states[i]
            own = done[i] if not others else robot.answers(row[:1], row[1:], text)["success"]
            truth[i, j] = np.logical_or.accumulate(own)
            where = robot.position(row, text) if others else None
            if where is not None:
                at[i, j], moved[i, j] = where[0], where[1:] - where[0]
    return Questions(asked, truth, _normalised(model, at, places), moved)


def _texts(robot: RobotPlugin, own: str, start: np.ndarray, others: Sequence[str], seed: int) -> list[str]:
    """Its own instruction and up to ``ASKED`` - 1 others; if the start allows no more, some are asked again."""
    if not others:
        return [own]
    possible = [text for text in others if text != own and robot.answers(start, start, text)["possible"]]
    dealt = np.random.default_rng(seed).permutation(len(possible))
    return ([own, *(possible[k] for k in dealt)] * ASKED)[:ASKED]


def _normalised(model: WorldActionModel, at: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """(N, Q, 3) m to the normalised place (N, Q, H) of hands that are there."""
    state = np.zeros((*at.shape[:2], model.body.proprio_dim), np.float32)
    state[..., list(places)] = np.tile(at, len(places) // 3)
    return model.normalise_proprio(torch.from_numpy(state))[..., list(places)].numpy()


def loosened(model: WorldActionModel, path: Tensor) -> Tensor:
    """Windows (n, 1 + C F, P + S A) as a planner on a robot knows them, which looks at the ends of chunks only.

    Chunks but the newest are straight, and reckoning starts anew at the newest one.
    """
    frames, p = model.chunk_shapes["video"][0], model.body.proprio_dim
    ends = path[:, :-frames:frames, :p]
    known = initial(model, ends[:, 0])
    for k in range(1, ends.shape[1]):
        known = interpolate(model, known, ends[:, k])
    newest = path[:, -frames:].clone()
    off = (known[:, -1:, p:] - path[:, -frames - 1 : -frames, p:])[..., -len(model.anchored) :] * model.anchored
    newest[..., p:] += off.repeat(1, 1, newest[..., p:].shape[2] // len(model.anchored))
    return torch.cat([known[:, -(path.shape[1] - frames) :], newest], 1)
