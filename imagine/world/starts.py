"""Where imagined episodes begin: always a real observation, of a robot at rest or from a recorded episode."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from imagine.data.episode_cache import held_out_episodes
from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.embodiment import Embodiment
from imagine.files import atomic_write
from imagine.intact import intact
from imagine.memo import Memo
from imagine.seeds import Stream, derive
from imagine.types import (
    CheckpointMismatch,
    DatasetError,
    ImagineError,
    ShapeError,
    pack_instruction,
    unpack_instruction,
)

FILE = "starts.safetensors"
MOST_SAVED = 64
"""Starts that a model folder holds at most."""


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


class SimStarts:
    """Starts are what a simulated robot sees right after ``reset(seed=seed)``: dream and simulator then begin alike."""

    def __init__(self, env: Any, body: Embodiment) -> None:
        """Reset ``env``, of ``imagine.policy.robots.plugin.RobotPlugin.make_env``; ``body`` tiles what it sees."""
        self.env, self.body = env, body

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """Reset the simulator and look; it takes the options that it takes of anybody.

        Raises:
            ImagineError: it does not know one of them.
        """
        seen, _ = self.env.reset(seed=seed, options={k: v for k, v in options.items() if v is not None})
        return start_of(seen, self.body, f"seed-{seed}")


class SavedStarts:
    """Starts out of a list, as a model folder holds it; seeds take turns, so that equal many begin at each."""

    def __init__(self, starts: Sequence[Start]) -> None:
        """``starts``: at least one.

        Raises:
            ImagineError: there is none.
        """
        if not starts:
            raise ImagineError("got no start to begin at, expected at least 1.")
        self.starts = tuple(starts)

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def ids(self) -> list[str]:
        """Their ids, in order."""
        return [start.start_id for start in self.starts]

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """Start number ``seed`` modulo their number."""
        return _told(self.starts[seed % len(self.starts)], options)

    @classmethod
    def is_in(cls, folder: str | Path) -> bool:
        """Whether a model folder holds starts."""
        return (Path(folder) / FILE).is_file()

    @classmethod
    def load(cls, folder: str | Path, body: Embodiment) -> SavedStarts:
        """Read what :func:`save_starts` wrote; their ids are ``saved-0``, ``saved-1`` and so on.

        Raises:
            CheckpointMismatch: missing, damaged, or of another embodiment than ``body``.
        """
        path = Path(folder) / FILE
        remedy = "write it with imagine.world.starts.save_starts, or give starts= a dataset"
        with intact(path, remedy), safe_open(path, "np") as file:
            canvas, proprio = file.get_tensor("canvas"), file.get_tensor("proprio")
            texts = json.loads(file.metadata()["instructions"])
            if canvas.dtype != np.uint8 or not np.isfinite(proprio).all():
                raise ValueError(f"canvases are {canvas.dtype}, or a state is no number")
            for text in texts:
                pack_instruction(text)
        want = (body.canvas_height, body.canvas_width, 3), (body.proprio_dim,)
        if (canvas.shape[1:], proprio.shape[1:]) != want or not len(canvas) == len(proprio) == len(texts):
            raise CheckpointMismatch(
                f"{path} holds canvases {canvas.shape}, proprioception {proprio.shape} and {len(texts)} instructions, "
                f"expected as many of each, of {want[0]} and {want[1]} for embodiment {body.name!r}; write them anew."
            )
        rows = enumerate(zip(canvas, proprio, texts, strict=True))
        return cls([Start(c, p, text, f"saved-{i}") for i, (c, p, text) in rows])


def save_starts(starts: Sequence[Start], folder: str | Path) -> Path:
    """Write starts into a model folder, so that it can dream alone; returns the file.

    Args:
        starts: at least one, all of one embodiment; :data:`MOST_SAVED` are enough for most folders.
        folder: of the model; starts that lie there are replaced.

    Raises:
        ImagineError: there is none.
    """
    if not starts:
        raise ImagineError("got no start to save, expected at least 1.")
    tensors = {
        "canvas": np.stack([s.canvas for s in starts]),
        "proprio": np.stack([s.proprio for s in starts]).astype(np.float32),
    }
    path = Path(folder) / FILE
    atomic_write(path, save(tensors, {"instructions": json.dumps([s.instruction for s in starts])}))
    return path


class EpisodeStarts:
    """Starts are the first observations of recorded episodes, read when they are asked for; seeds take turns."""

    def __init__(self, dataset: LeRobotDataset, body: Embodiment) -> None:
        """Start from ``dataset``, seen as ``body`` says.

        Raises:
            DatasetError: the dataset is of another embodiment.
        """
        dataset.check_embodiment(body)
        self.dataset, self.body = dataset, body
        self._read = Memo(self._first, 256)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def ids(self) -> list[str]:
        """Their ids, in order: the episodes as the dataset numbers them."""
        return [f"episode-{self.dataset[i].index}" for i in range(len(self))]

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """Episode number ``seed`` modulo their number."""
        return _told(self._read(seed % len(self.dataset)), options)

    def _first(self, i: int) -> Start:
        body, data = self.body, self.dataset
        views = {v.name: data.frames(i, v.key, [0], (v.height, v.width))[0] for v in body.views}
        state, _ = data.check_embodiment(body)
        keys = data.keys(body, has_state=state, has_action=False)
        row = {key: value[0] for key, value in data.features(i, keys).items()}
        proprio = body.proprio_of(row) if state else np.zeros(body.proprio_dim, np.float32)
        return Start(body.tile(views), proprio, data.instructions(i)[0], self.ids[i])

    def held_out(self, most: int = MOST_SAVED) -> list[Start]:
        """The starts of episodes that training holds out, evenly chosen where there are more than ``most``.

        Of a dataset without any, the starts of all its episodes.
        """
        held = held_out_episodes([self.dataset[i].seed for i in range(len(self))])
        numbers = np.flatnonzero(held if held.any() else ~held)
        chosen = numbers[np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)]
        return [self._first(int(i)) for i in chosen]


class GivenStarts:
    """Starts are what a function of (seed, options) returns: a :class:`Start`, or an observation.

    An observation is a dict as the environments give it: one (h, w, 3) uint8 image per view, ``proprio`` (P,), and
    ``instruction``, a text.
    """

    def __init__(self, function: Callable[[int, Mapping[str, Any]], Any], body: Embodiment) -> None:
        """``function`` is asked for the start of every episode; ``body`` tiles what it sees."""
        self.function, self.body = function, body

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """What the function says of a seed.

        Raises:
            ShapeError: it returned something else, or of another shape than the embodiment says.
        """
        given = self.function(seed, options)
        if isinstance(given, Start):
            start = given
        elif isinstance(given, Mapping) and {"proprio", "instruction"} <= set(given):
            start = start_of(given, self.body, f"given-{seed}")
        else:
            raise ShapeError(
                f"starts gave a {type(given).__name__} for seed {seed}, expected an imagine.Start, or a dict of views, "
                "proprio and instruction."
            )
        want = (self.body.canvas_height, self.body.canvas_width, 3), (self.body.proprio_dim,)
        got = np.shape(start.canvas), np.shape(start.proprio)
        if got != want or np.asarray(start.canvas).dtype != np.uint8:
            raise ShapeError(
                f"starts gave a canvas {got[0]} {np.asarray(start.canvas).dtype} and proprioception {got[1]} for seed "
                f"{seed}, expected uint8 {want[0]} and {want[1]} for embodiment {self.body.name!r}."
            )
        return replace(start, instruction=options.get("instruction") or start.instruction)


def start_of(observation: Mapping[str, Any], body: Embodiment, start_id: str) -> Start:
    """The start that an unbatched observation of an environment is; its instruction may be packed or a text.

    Raises:
        ShapeError: a view is missing or of another size than ``body`` says.
    """
    text = observation["instruction"]
    canvas = body.tile({v.name: np.asarray(observation[v.name]) for v in body.views if v.name in observation})
    proprio = np.asarray(observation["proprio"], np.float32)
    return Start(canvas, proprio, text if isinstance(text, str) else unpack_instruction(text), start_id)


class MixedStarts:
    """A share of the seeds starts elsewhere; which seeds do is a function of the seed alone."""

    def __init__(self, usual: Starts, other: Starts, share: float):
        """``share`` in [0, 1] of the seeds go to ``other``."""
        self.usual, self.other, self.share = usual, other, share

    def __call__(self, seed: int, options: Mapping[str, Any]) -> Start:
        """The start of one or the other."""
        elsewhere = np.random.default_rng(derive(seed, Stream.START)).uniform() < self.share
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
        instruction = self.windows.instructions[int(batch.instruction_id[0])]
        start = Start(batch.video[0, 0].numpy(), batch.proprio[0, 0].numpy(), instruction, f"row-{row}")
        return _told(start, options)


def _told(start: Start, options: Mapping[str, Any]) -> Start:
    """A recorded start under another instruction; nothing else of it can be varied."""
    if unknown := sorted(set(options) - {"instruction"}):
        raise ImagineError(f"reset option {unknown[0]!r} is unknown, expected instruction; these starts are recorded.")
    return replace(start, instruction=options.get("instruction") or start.instruction)
