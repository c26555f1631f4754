"""``real/G1Table-v0``: the simulated robot as a Gymnasium environment, one chunk of actions per step.

It shares its spaces with the dream, so an agent moves from one to the other unchanged. Unlike the dream it knows the
truth: the reward is 1 on the first success and 0 otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from imagine.embodiment import Embodiment
from imagine.policy.robots.g1_table.scene import COLOURS
from imagine.policy.robots.g1_table.starts import FAMILIES
from imagine.policy.robots.g1_table.tasks import Task
from imagine.policy.robots.g1_table.world import VIEWS, G1Table, Snapshot
from imagine.types import ImagineError, ShapeError, pack_instruction
from imagine.world.spaces import action_space, observation_space

FOLDER = Path(__file__).parent
_HAND_TARGETS = range(22, 28)  # where a recorded action holds hand positions
_OPTIONS = ("instruction", "families", "colours", "blocks", "home", "look", "site")


class TableRobot:
    """The simulator behind ``imagine.types.Robot``: chunks in, observations out.

    Attributes:
        world: the simulation.
        body: which slices are used, and their units.
        instruction: what it was last asked to do.
        succeeded: (F,) bools of the last chunk, True from the frame by which the task had been done at any tick.
        moments: the world at each of the newest observations: one after a reset, F after a chunk.
    """

    def __init__(self, body: Embodiment | None = None, renderer: str = "ray") -> None:
        self.body = body or Embodiment.load(FOLDER / "g1_eef.yaml")
        self.world = G1Table(renderer)
        self.instruction = ""
        self.succeeded: list[bool] = []
        self.moments: list[Snapshot] = []
        bad = [v.name for v in self.body.views if VIEWS.get(v.name) is None]
        if bad:
            raise ImagineError(f"embodiment {self.body.name!r} wants views {bad}, the table has {', '.join(VIEWS)}.")
        self._by_hand = any(a.start in _HAND_TARGETS for a in self.body.action)

    def reset(
        self,
        seed: int,
        instruction: str | None = None,
        *,
        families: Sequence[str] = FAMILIES,
        colours: Sequence[str] = tuple(COLOURS),
        blocks: int | Sequence[int] = 2,
        home: bool = False,
        look: str = "seen",
        site: str = "usual",
    ) -> dict[str, np.ndarray]:
        """Start an episode, a function of the arguments alone; returns one unbatched observation.

        Raises:
            ImagineError: the instruction is not understood, or another argument is out of range.
        """
        wanted = Task.parse(instruction) if instruction else None
        task = self.world.reset(
            seed, wanted, families=families, colours=colours, blocks=blocks, home=home, look=look, site=site
        )
        self.instruction, self.succeeded, self.moments = task.instruction, [], [self.world.snapshot()]
        return self.observe()

    def observe(self) -> dict[str, np.ndarray]:
        """What the robot sees and feels now: views, ``proprio`` (P,) and the packed instruction."""
        views = {v.name: self.world.view(v.name, v.height, v.width) for v in self.body.views}
        proprio = self.body.proprio_of({self.body.state[0].key: self.world.state()})
        return {**views, "proprio": proprio, "instruction": pack_instruction(self.instruction)}

    def execute(self, chunk: np.ndarray, *, look: bool = True) -> list[dict[str, np.ndarray]]:
        """Carry out (K, A) actions in robot units; returns the F observations seen on the way, newest last.

        With ``look`` False nothing is rendered and the list is empty; the motion is the same.

        Raises:
            ShapeError: wrong shape, NaN, or far out of bounds.
        """
        chunk = np.asarray(chunk)
        if chunk.ndim != 2:
            raise ShapeError(f"action chunk has shape {chunk.shape}, expected two axes (actions, dimensions).")
        body = self.body
        moves = body.absolute_action(body.check_action(chunk[None])[0], self.anchor())
        seen, done = [], False
        self.succeeded, self.moments = [], []
        for k, move in enumerate(moves, 1):
            self.tick(move)
            done = done or self.world.success()
            if k % body.frame_stride == 0:
                if look:
                    seen.append(self.observe())
                    self.moments.append(self.world.snapshot())
                self.succeeded.append(done)
        return seen

    def anchor(self) -> np.ndarray:
        """(A,) float32, what relative actions that begin now are measured from."""
        return self.body.anchor_of({self.body.state[0].key: self.world.state()})

    def tick(self, move: np.ndarray) -> None:
        """One tick; ``move`` (A,) is absolute. What the embodiment does not command keeps its last target."""
        row = self.world.command()
        at = 0
        for a in self.body.action:
            row[a.start : a.stop] = move[at : at + a.size]
            at += a.size
        if self._by_hand:
            self.world.tick(np.array([*row[22:25], row[14], *row[25:28], row[15]]))
        else:
            self.world.tick_joints(row[:14], row[14:16])


class TableTicks(TableRobot):
    """An ``imagine.types.TickRobot``.

    Attributes:
        success: the instruction has been carried out at any tick since the reset.
    """

    def __init__(self, body: Embodiment, renderer: str = "ray", **options: Any) -> None:
        """``options`` as of :meth:`TableRobot.reset`."""
        super().__init__(body, renderer)
        self.success, self._options = False, options

    def reset(self, seed: int, instruction: str | None = None, **options: Any) -> dict[str, np.ndarray]:
        """Begin an episode, a function of the arguments alone."""
        self.success = False
        return super().reset(seed, instruction, **{**self._options, **options})

    def tick(self, move: np.ndarray) -> None:
        """One tick; ``move`` (A,) is absolute."""
        super().tick(move)
        self.success = self.success or self.world.success()

    def features(self) -> dict[str, np.ndarray]:
        """The state (26,) now and the whole last command (28,), float32."""
        return {"observation.state": self.world.state(), "action": self.world.command()}

    def close(self) -> None:
        """Nothing is held open."""


class G1TableEnv(gym.Env[dict[str, np.ndarray], np.ndarray]):
    """One robot, one lane. A step carries out a whole chunk; relative actions are measured from its first state.

    ``info`` holds ``instruction``, ``task_family``, ``is_success`` (so far), ``state`` (26,) float32, and after a step
    the frames seen: ``frames`` (F, H, W, 3) uint8 canvases and ``proprio_frames`` (F, P) float32.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012  (Gymnasium declares it so)

    def __init__(
        self,
        embodiment: str | Path | Embodiment = FOLDER / "g1_eef.yaml",
        *,
        max_chunks: int = 8,
        renderer: str = "ray",
        render_mode: str | None = None,
        families: Sequence[str] = FAMILIES,
        colours: Sequence[str] = tuple(COLOURS),
        blocks: int | Sequence[int] = 2,
        look: str = "seen",
        site: str = "usual",
    ) -> None:
        self.body = embodiment if isinstance(embodiment, Embodiment) else Embodiment.load(embodiment)
        self.robot = TableRobot(self.body, renderer)
        self.observation_space = observation_space(self.body)
        self.action_space = action_space(self.body)
        self.render_mode = render_mode
        self.max_chunks = max_chunks
        self._defaults: dict[str, Any] = {
            "families": families, "colours": colours, "blocks": blocks, "look": look, "site": site,
        }  # fmt: skip
        self._chunks, self._success = 0, False
        self._newest: dict[str, np.ndarray] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; equal seeds and options give equal episodes.

        Args:
            seed: without it the environment's own generator draws one.
            options: ``instruction``, ``families``, ``colours``, ``blocks``, ``home``, ``look``, ``site``.

        Raises:
            ImagineError: an unknown option, or one that the table does not understand.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        unknown = set(options) - set(_OPTIONS)
        if unknown:
            raise ImagineError(f"reset options {sorted(unknown)} are unknown, expected some of {', '.join(_OPTIONS)}.")
        start = seed if seed is not None else int(self.np_random.integers(2**31))
        self._newest = self.robot.reset(start, options.pop("instruction", None), **{**self._defaults, **options})
        self._chunks, self._success = 0, False
        return self._newest, self._info()

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Carry out one chunk (K, A) in robot units.

        Raises:
            ShapeError: wrong shape, NaN, or far out of bounds.
        """
        seen = self.robot.execute(action)
        first = self.robot.succeeded[-1] and not self._success
        self._success = self._success or first
        self._chunks += 1
        self._newest = seen[-1]
        info = self._info()
        info["frames"] = self.body.tile({v.name: np.stack([o[v.name] for o in seen]) for v in self.body.views})
        info["proprio_frames"] = np.stack([o["proprio"] for o in seen])
        return self._newest, float(first), self._success, self._chunks >= self.max_chunks, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The newest canvas (H, W, 3) uint8, when ``render_mode`` is ``rgb_array``."""
        return self.body.tile(self._newest) if self.render_mode == "rgb_array" and self._newest else None

    def _info(self) -> dict[str, Any]:
        return {
            "instruction": self.robot.instruction,
            "task_family": self.robot.world.task.family,
            "is_success": self._success,
            "state": self.robot.world.state(),
        }
