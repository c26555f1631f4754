"""Where imagined episodes begin: always a real observation, of a robot at rest or from a recorded episode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.embodiment import Embodiment
from imagine.types import DatasetError, ImagineError, Robot, unpack_instruction


@dataclass(frozen=True)
class Start:
    """One real observation to dream on from.

    Attributes:
        canvas: (H, W, 3) uint8.
        proprio: (P,) float32, robot units.
        instruction: what to do.
        start_id: says which start this is; the same id is the same start in the dream and on the robot.
    """

    canvas: np.ndarray
    proprio: np.ndarray
    instruction: str
    start_id: str


class Starts(Protocol):
    """Gives a start for a seed; the same seed gives the same start."""

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """The start of an episode; ``options`` may hold an ``instruction`` to use instead of the start's own."""
        ...


class RobotStarts:
    """Starts are what a robot sees right after ``reset(seed)``: dream and robot then begin alike."""

    def __init__(self, robot: Robot, body: Embodiment, **options: Any):
        """``options`` go to every ``robot.reset``, so that dream and robot draw from the same starts."""
        self.robot, self.body, self.options = robot, body, options

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """Reset the robot and look."""
        seen = self.robot.reset(seed, options.get("instruction"), **self.options)
        canvas = self.body.tile({v.name: seen[v.name] for v in self.body.views})
        return Start(canvas, seen["proprio"], unpack_instruction(seen["instruction"]), f"seed-{seed}")


class EnvStarts:
    """Starts are what an environment shows right after ``reset(seed=...)``: dream and simulator then begin alike."""

    def __init__(self, env: Any, body: Embodiment):
        """``env`` is one of ``RobotPlugin.make_env``, made with the options that its episodes shall have."""
        self.env, self.body = env, body

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """Reset the environment and look."""
        text = options.get("instruction")
        seen, _ = self.env.reset(seed=seed, options=None if text is None else {"instruction": text})
        canvas = self.body.tile({v.name: seen[v.name] for v in self.body.views})
        return Start(canvas, seen["proprio"], unpack_instruction(seen["instruction"]), f"seed-{seed}")


class MixedStarts:
    """A share of the seeds starts elsewhere; which seeds do is a function of the seed alone."""

    def __init__(self, usual: Starts, other: Starts, share: float):
        """``share`` in [0, 1] of the seeds go to ``other``."""
        self.usual, self.other, self.share = usual, other, share

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """The start of one or the other."""
        elsewhere = np.random.default_rng([seed, 5]).uniform() < self.share
        return (self.other if elsewhere else self.usual)(seed, options)


class FewStarts:
    """Every episode starts at one of a few scenes: to practise what is in front of the robot. Only what the seed does
    beyond the start, a dream's noise and a policy's draws, is new each time.
    """

    def __init__(self, usual: Starts, scenes: Sequence[int]):
        """``scenes``: seeds of ``usual``.

        Raises:
            ImagineError: there is no scene.
        """
        if not scenes:
            raise ImagineError("got no scene to start at, expected at least 1 start seed.")
        self.usual, self.scenes = usual, tuple(scenes)

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """The seed's scene; seeds take turns."""
        return self.usual(self.scenes[seed % len(self.scenes)], options)


class DatasetStarts:
    """Starts are frames of recorded episodes: their first ones, or with ``anywhere`` any frame from which the task is
    still to be done and that has a successor.
    """

    def __init__(
        self, dataset: LeRobotDataset, body: Embodiment, cache: str | Path, *, anywhere: bool = False,
        in_order: bool = False,
    ):  # fmt: skip
        """Decode the dataset's canvases into ``cache`` once.

        With ``in_order`` the seed counts the starts instead of drawing one of them.

        Raises:
            DatasetError: the dataset is unusable or of another embodiment, or has no episode of two frames.
        """
        self.windows = Windows(build_cache(dataset, body, None, cache), body, context_frames=1, in_memory=False)
        self.rows, self.in_order = self.windows.rows("all"), in_order
        if anywhere:
            self.rows = self.rows[~self.windows.succeeded(self.rows)]
        else:
            self.rows = np.unique(self.windows.episode_rows(self.rows)[0])
        if not len(self.rows):
            raise DatasetError(
                f"dataset {dataset.root} has no frame to start from: each lacks a successor or shows the task done."
            )

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """Pick a row by seed."""
        n = len(self.rows)
        row = int(self.rows[seed % n if self.in_order else np.random.default_rng(seed).integers(n)])
        batch = self.windows.batch(np.array([row]))
        instruction = options.get("instruction") or self.windows.instructions[int(batch.instruction_id[0])]
        return Start(batch.video[0, 0].numpy(), batch.proprio[0, 0].numpy(), instruction, f"row-{row}")
