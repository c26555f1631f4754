"""The simulated robot at its table: state in, picture out, one 30 Hz tick at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imagine.extras import lazy_module
from imagine.policy.robots.g1_table.arms import MAX_STEP, POSTURE, Arms
from imagine.policy.robots.g1_table.looks import Look
from imagine.policy.robots.g1_table.render import Light, Renderer, make_renderer
from imagine.policy.robots.g1_table.scene import (
    COLOURS,
    HEAD,
    OPENING,
    REST_Z,
    SIDES,
    SUBSTEPS,
    TABLE_Z,
    WAIST,
    WOOD,
    build,
)
from imagine.policy.robots.g1_table.sites import SITES
from imagine.policy.robots.g1_table.starts import FAMILIES, Start, draw_start
from imagine.policy.robots.g1_table.tasks import Task
from imagine.policy.robots.g1_table.truth import NAMES, accomplished, place, truth
from imagine.types import ImagineError, ShapeError

if TYPE_CHECKING:
    import mujoco
else:
    mujoco = lazy_module("mujoco", "sim")

HAND_LOW = np.array([0.28, -0.40, TABLE_Z + 0.015])
HAND_HIGH = np.array([0.64, 0.40, TABLE_Z + 0.30])
VIEWS = {"top_head": (64, 64), "hand_left": (32, 32), "hand_right": (32, 32)}


@dataclass(frozen=True)
class Snapshot:
    """Everything needed to go on exactly as before."""

    colours: tuple[str, ...]
    physics: np.ndarray
    joints: np.ndarray
    targets: np.ndarray
    start: np.ndarray
    look: Look
    site: str
    task: Task


class G1Table:
    """One robot, one table. Not thread safe; make one per process.

    Attributes:
        task: what the last reset asked for.
        colours: colours of the blocks on the table, in block order.
        site: where it stands, one of ``sites.SITES``.
        start: (40,) float64, the row of ``truth`` when the present task was set; pushes are measured from it.
        targets: (8,) float64, last commanded [left xyz, left grip, right xyz, right grip].
    """

    def __init__(self, renderer: str = "ray") -> None:
        self._renderer_name = renderer
        self._built: dict[tuple[str, tuple[str, ...]], tuple[mujoco.MjModel, mujoco.MjData, Arms, Renderer | None]] = {}
        self.task = Task("pick_up", "red")
        self.targets = np.zeros(8)
        self._load("usual", ("box", "box"))

    def _load(self, site: str, shapes: tuple[str, ...]) -> None:
        """Make the model of such a place and blocks the current one; models are kept, as compiling takes 20 ms."""
        if (site, shapes) not in self._built:
            model = mujoco.MjModel.from_xml_string(build(shapes, SITES[site]))
            self._built[site, shapes] = (model, mujoco.MjData(model), Arms(model), None)
        self.model, self.data, self.arms, self._renderer = self._built[site, shapes]
        self.site = site
        m, blocks = self.model, len(shapes)
        self.colours: tuple[str, ...] = tuple(COLOURS)[:blocks]
        self.look = Look(tuple(COLOURS[c] for c in self.colours), shapes, WOOD, Light())
        self.start = np.zeros(len(NAMES))
        self._block_geoms = np.array([m.geom(f"block{i}").id for i in range(blocks)])
        self._block_bodies = [m.body(f"block{i}").id for i in range(blocks)]
        self._block_qpos = [int(m.joint(f"block{i}").qposadr[0]) for i in range(blocks)]
        self._fingers = np.array([[m.geom(f"{s}_finger{n}").id for n in (1, 2)] for s in SIDES])
        self._finger_qpos = np.array([[m.joint(f"{s}_grip{n}").qposadr[0] for n in (1, 2)] for s in SIDES])
        self._joint_ctrl = np.array([[m.actuator(f"{s}_j{i}").id for i in range(1, 8)] for s in SIDES])
        self._grip_ctrl = np.array([[m.actuator(f"{s}_grip{n}").id for n in (1, 2)] for s in SIDES])
        self._size = mujoco.mj_stateSize(m, int(mujoco.mjtState.mjSTATE_INTEGRATION))

    # ---------------------------------------------------------------- start

    def reset(
        self,
        seed: int,
        task: Task | None = None,
        *,
        families: Sequence[str] = FAMILIES,
        colours: Sequence[str] = tuple(COLOURS),
        blocks: int | Sequence[int] = 2,
        home: bool = False,
        look: str = "seen",
        site: str = "usual",
    ) -> Task:
        """Start an episode; everything follows from the arguments.

        Args:
            seed: of blocks, bowl, light and hands.
            task: what to do, or None to draw it from ``families`` and ``colours``.
            families: families to draw from.
            colours: colours to draw from; others fill in only if there are more blocks than colours.
            blocks: how many, 1 to 4, or several numbers to draw one of.
            home: start both hands at home instead of anywhere, half of the time.
            look: ``seen``, or ``unseen`` for shades, shapes, table and lamp that no training draws.
            site: one of ``sites.SITES``; a seed has the same start at all of them.

        Raises:
            ImagineError: an unknown family, colour, look or site, or a number of blocks out of range.
        """
        _check(families, FAMILIES, "family")
        _check(colours, tuple(COLOURS), "colour")
        _check([site], tuple(SITES), "site")
        rng = np.random.default_rng(seed)
        start = draw_start(rng, task, families=families, colours=colours, blocks=blocks, home=home, look=look)
        self._load(site, start.look.shapes)
        self.task, self.colours, self.look = start.task, start.colours, start.look
        self._place(start)
        return self.task

    def _place(self, start: Start) -> None:
        mujoco.mj_resetData(self.model, self.data)
        self._paint()
        for adr, (x, y, yaw) in zip(self._block_qpos, start.blocks, strict=True):
            self.data.qpos[adr : adr + 7] = [x, y, REST_Z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self.data.mocap_pos[0, :2] = start.bowl
        self.arms.q[:] = POSTURE
        q = self.arms.solve(start.hands, iterations=40, max_step=9.0)
        self.data.qpos[self.arms.qpos] = q
        self.data.qpos[self._finger_qpos] = start.grips[:, None] * OPENING / 2
        self.targets = np.column_stack([start.hands, start.grips]).ravel()
        self._drive(q, start.grips)
        self.rebase()

    def rebase(self) -> None:
        """Measure pushes from here on."""
        self.start = truth(self)

    def _paint(self) -> None:
        self.model.geom_rgba[self._block_geoms, :3] = self.look.shades
        self.model.mat_rgba[self.model.material("wood").id, :3] = self.look.table

    # ---------------------------------------------------------------- motion

    def tick(self, targets: np.ndarray) -> None:
        """Go on for 1/30 s towards absolute targets (8,): [left xyz (m), left grip (0..1), right xyz, right grip].

        Raises:
            ShapeError: wrong shape, or not finite.
        """
        wanted = _finite(targets, (8,)).reshape(2, 4).copy()
        wanted[:, :3] = np.clip(wanted[:, :3], HAND_LOW, HAND_HIGH)
        wanted[:, 3] = np.clip(wanted[:, 3], 0, 1)
        self.targets = wanted.ravel()
        self._drive(self.arms.solve(wanted[:, :3]), wanted[:, 3])

    def tick_joints(self, joints: np.ndarray, grips: np.ndarray) -> None:
        """Go on for 1/30 s towards absolute joint targets (14,) in rad and gripper targets (2,) in 0..1.

        Raises:
            ShapeError: wrong shape, or not finite.
        """
        wanted = _finite(joints, (14,)).reshape(2, 7)
        grip = np.clip(_finite(grips, (2,)), 0, 1)
        arms = self.arms
        step = np.clip(wanted - arms.q, -MAX_STEP, MAX_STEP)
        arms.q[:] = np.clip(arms.q + step, arms.low, arms.high)
        self.targets = np.column_stack([arms.positions(arms.q), grip]).ravel()
        self._drive(arms.q, grip)

    def _drive(self, q: np.ndarray, grips: np.ndarray) -> None:
        d = self.data
        d.ctrl[self._joint_ctrl] = q
        d.ctrl[self._grip_ctrl] = grips[:, None] * OPENING / 2
        mujoco.mj_step(self.model, d, SUBSTEPS)
        self._refresh()

    def _refresh(self) -> None:
        """Bring derived positions and contacts up to date; ``mj_step`` leaves them one substep behind."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        mujoco.mj_collision(self.model, self.data)

    # ---------------------------------------------------------------- senses

    @property
    def hands(self) -> np.ndarray:
        """Measured gripper centres (2, 3) float64, left then right, m."""
        return self.data.site_xpos[self.arms.site]

    @property
    def grips(self) -> np.ndarray:
        """Measured gripper openings (2,) float64, 0 closed to 1 open."""
        return self.data.qpos[self._finger_qpos].mean(1) / (OPENING / 2)

    @property
    def blocks(self) -> np.ndarray:
        """Measured block centres (N, 3) float64, m."""
        return self.data.xpos[self._block_bodies]

    @property
    def block_start(self) -> np.ndarray:
        """Where block centres were when the present task was set, (N, 3) float64, m."""
        return np.stack([place(self.start, colour) for colour in self.colours])

    @property
    def bowl(self) -> np.ndarray:
        """Bowl centre (2,) float64, m."""
        return self.data.mocap_pos[0, :2]

    def block_of(self, colour: str) -> int:
        """Index of the block of a colour.

        Raises:
            ImagineError: there is none on the table.
        """
        if colour not in self.colours:
            raise ImagineError(f"no {colour} block is on the table, which holds {', '.join(self.colours)}.")
        return self.colours.index(colour)

    def touched(self, block: int) -> np.ndarray:
        """(2, 2) bool: which fingers (arm, finger) touch a block."""
        pairs = self.data.contact.geom
        mine = pairs[(pairs == self._block_geoms[block]).any(1)].ravel()
        return np.asarray((self._fingers[..., None] == mine).any(-1))

    def held(self, block: int) -> np.ndarray:
        """(2,) bool: which hands hold a block between both fingers."""
        return np.asarray(self.touched(block).all(1))

    def state(self) -> np.ndarray:
        """(26,) float32, laid out as the embodiment file's state slices."""
        q = self.data.qpos[self.arms.qpos].ravel()
        return np.concatenate([q, self.grips, HEAD, WAIST, self.hands.ravel()]).astype(np.float32)

    def command(self) -> np.ndarray:
        """(28,) float32, the last absolute command, laid out as the embodiment file's action slices."""
        t = self.targets
        still = np.array([*HEAD, *WAIST, 0.0, 0.0])  # the base does not drive
        return np.concatenate([self.arms.q.ravel(), t[[3, 7]], still, t[0:3], t[4:7]]).astype(np.float32)

    def views(self) -> dict[str, np.ndarray]:
        """Pictures of the three cameras, ``{name: (h, w, 3) uint8}``."""
        return {name: self.view(name, *size) for name, size in VIEWS.items()}

    def view(self, camera: str, height: int, width: int) -> np.ndarray:
        """One camera's picture at any size, (height, width, 3) uint8."""
        if self._renderer is None:
            self._renderer = make_renderer(self._renderer_name, self.model)
            self._built[self.site, self.look.shapes] = (self.model, self.data, self.arms, self._renderer)
        light = self.look.light.dimmed(SITES[self.site].brightness)
        return self._renderer.image(self.data, camera, height, width, light)

    def success(self, task: Task | None = None) -> bool:
        """Whether the present state satisfies ``task``, or the task of the last reset."""
        task = task or self.task
        for colour in task.colours:
            self.block_of(colour)  # refuses a colour that is not there
        return bool(accomplished(self.start, truth(self), task))

    # ---------------------------------------------------------------- memory

    def snapshot(self) -> Snapshot:
        """Copy of all that the future depends on."""
        physics = np.empty(self._size)
        mujoco.mj_getState(self.model, self.data, physics, int(mujoco.mjtState.mjSTATE_INTEGRATION))
        return Snapshot(
            self.colours,
            physics,
            self.arms.q.copy(),
            self.targets.copy(),
            self.start.copy(),
            self.look,
            self.site,
            self.task,
        )

    def restore(self, saved: Snapshot) -> None:
        """Go back to a snapshot; what follows is byte for byte what followed it before."""
        self._load(saved.site, saved.look.shapes)
        self.colours, self.look, self.task = saved.colours, saved.look, saved.task
        self.start, self.targets = saved.start.copy(), saved.targets.copy()
        self.arms.q[:] = saved.joints
        self._paint()
        mujoco.mj_setState(self.model, self.data, saved.physics, int(mujoco.mjtState.mjSTATE_INTEGRATION))
        self._refresh()


def _finite(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.shape != shape or not np.isfinite(values).all():
        raise ShapeError(f"command has shape {values.shape} or is not finite, expected {shape} finite numbers.")
    return values


def _check(given: Sequence[str], known: Sequence[str], what: str) -> None:
    bad = [g for g in given if g not in known]
    if bad or not given:
        raise ImagineError(f"{what} {bad or 'list'} is unknown or empty, expected some of {', '.join(known)}.")
