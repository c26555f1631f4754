"""Pictures of the table: a ray caster that needs no graphics driver, and MuJoCo's own renderer over EGL.

The ray caster is deterministic and identical on every machine with the same MuJoCo; shading is flat Lambert from one
lamp, without shadows. Pixels at edges are cast twice as finely and averaged, or a block would have ragged outlines.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from imagine.extras import lazy_module
from imagine.types import ImagineError

if TYPE_CHECKING:
    import mujoco

    from imagine.policy.robots.g1_table.world import G1Table
else:
    mujoco = lazy_module("mujoco", "sim")

SUPERSAMPLE = 2
EDGE = 0.04  # of full brightness, between neighbouring pixels
SKY = np.array([0.70, 0.76, 0.82], np.float32)
NOTHING, ROBOT, BOWL, TABLE = -1, 10, 11, 12  # what ``visible`` calls everything but blocks, which count from 0
_GEOM_GROUPS = np.array([1, 1, 1, 0, 0, 0], np.uint8)


@dataclass(frozen=True)
class Light:
    """One lamp: unit direction (3,) towards it, and the strengths of its ambient and direct light."""

    towards: tuple[float, float, float] = (0.25, 0.15, 0.95)
    ambient: float = 0.45
    direct: float = 0.60

    def dimmed(self, share: float) -> Light:
        """The same lamp with this share of its light."""
        return replace(self, ambient=self.ambient * share, direct=self.direct * share)


class Renderer(Protocol):
    """Takes pictures of a simulation."""

    def image(self, data: mujoco.MjData, camera: str, height: int, width: int, light: Light) -> np.ndarray:
        """One camera's picture, (height, width, 3) uint8."""
        ...


class RayRenderer:
    """Casts a ray per pixel, and more at edges, with ``mj_multiRay``; about 4 ms for 64x64 and two 32x32 views."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model

    def image(self, data: mujoco.MjData, camera: str, height: int, width: int, light: Light) -> np.ndarray:
        """One camera's picture, (height, width, 3) uint8."""
        cam = self.model.camera(camera)
        fovy = float(cam.fovy[0])
        rgb = self._shaded(data, cam.id, _directions(fovy, height, width), light)
        edge = _edges(rgb.reshape(height, width, 3)).ravel()
        fine = _fine_directions(fovy, height, width)[edge]
        rgb[edge] = self._shaded(data, cam.id, fine.reshape(-1, 3), light).reshape(*fine.shape).mean(1)
        return (rgb * 255.0 + 0.5).astype(np.uint8).reshape(height, width, 3)

    def _shaded(self, data: mujoco.MjData, camera: int, directions: np.ndarray, light: Light) -> np.ndarray:
        """(N, 3) float32 RGB in 0..1 of what N directions (N, 3) in the camera's frame hit."""
        geom, normal = _cast(self.model, data, camera, directions)
        towards = np.asarray(light.towards, np.float64)
        facing = normal @ (towards / np.linalg.norm(towards))
        shade = light.ambient + light.direct * np.maximum(facing, 0.0)
        colours = np.vstack([self._colours(), SKY])  # geom -1 (nothing hit) picks the last row
        shade[geom < 0] = 1.0
        return np.minimum(colours[geom] * shade[:, None].astype(np.float32), 1.0)

    def _colours(self) -> np.ndarray:
        """(geoms, 3) float32 RGB; read every time, as the world recolours its blocks."""
        m = self.model
        own = m.geom_rgba[:, :3].astype(np.float32)
        with_material = m.geom_matid >= 0
        own[with_material] = m.mat_rgba[m.geom_matid[with_material], :3]
        return own


def visible(world: G1Table, camera: str, height: int, width: int) -> np.ndarray:
    """What a camera sees at the centre of each of its pixels now.

    Args:
        world: read, never changed.
        camera: ``top_head``, ``hand_left`` or ``hand_right``.
        height: pixels.
        width: pixels.

    Returns:
        (height, width) int8: 0 to N - 1 for the blocks in block order (that of ``world.colours``), else ``NOTHING``
        (the floor too), ``ROBOT``, ``BOWL`` or ``TABLE``.
    """
    cam = world.model.camera(camera)
    geom, _ = _cast(world.model, world.data, cam.id, _directions(float(cam.fovy[0]), height, width))
    return _names(world.model)[geom].reshape(height, width)


def _names(model: mujoco.MjModel) -> np.ndarray:
    """(geoms + 1,) int8, the code of each geometry as :func:`visible` has it; the last row is for none."""
    codes = np.full(model.ngeom + 1, ROBOT, np.int8)
    for geom in range(model.ngeom):
        body = model.body(model.geom_bodyid[geom]).name
        if body.startswith("block"):
            codes[geom] = int(body.removeprefix("block"))
        elif body == "bowl":
            codes[geom] = BOWL
    codes[model.geom("table").id], codes[model.geom("floor").id], codes[-1] = TABLE, NOTHING, NOTHING
    return codes


def _cast(
    model: mujoco.MjModel, data: mujoco.MjData, camera: int, directions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What rays along N unit vectors (N, 3) hit: geometry numbers (N,), -1 for none, and surface normals (N, 3)."""
    pose, n = data.cam_xmat[camera].reshape(3, 3), len(directions)
    rays = np.ascontiguousarray(directions @ pose.T)
    geom, dist, normal = np.empty(n, np.int32), np.empty(n), np.empty(n * 3)
    mujoco.mj_multiRay(
        m=model,
        d=data,
        pnt=data.cam_xpos[camera],
        vec=rays.ravel(),
        geomgroup=_GEOM_GROUPS,
        flg_static=1,
        bodyexclude=-1,
        geomid=geom,
        dist=dist,
        normal=normal,
        nray=n,
        cutoff=10.0,
    )
    return geom, normal.reshape(n, 3)


@cache
def _directions(fovy: float, h: int, w: int) -> np.ndarray:
    """Unit rays (h * w, 3) float64 in the frame of a camera of this opening, in degrees."""
    top = np.tan(np.radians(fovy) / 2)
    y = (1 - (np.arange(h) + 0.5) / h * 2) * top
    x = ((np.arange(w) + 0.5) / w * 2 - 1) * top * w / h
    grid = np.stack([*np.meshgrid(x, y), np.full((h, w), -1.0)], -1).reshape(-1, 3)
    return np.asarray(grid / np.linalg.norm(grid, axis=1, keepdims=True))


@cache
def _fine_directions(fovy: float, h: int, w: int) -> np.ndarray:
    """As :func:`_directions`, several to a pixel: (h * w, SUPERSAMPLE ** 2, 3)."""
    fine = _directions(fovy, h * SUPERSAMPLE, w * SUPERSAMPLE).reshape(h, SUPERSAMPLE, w, SUPERSAMPLE, 3)
    return np.ascontiguousarray(fine.swapaxes(1, 2).reshape(h * w, SUPERSAMPLE**2, 3))


def _edges(rgb: np.ndarray) -> np.ndarray:
    """(h, w) bool: does a pixel of (h, w, 3) differ from one of its four neighbours?"""
    edge = np.zeros(rgb.shape[:2], bool)
    for across, image in ((edge, rgb), (edge.T, rgb.swapaxes(0, 1))):
        jump = (np.abs(np.diff(image, axis=0)) > EDGE).any(-1)
        across[:-1] |= jump
        across[1:] |= jump
    return edge


class EglRenderer:
    """MuJoCo's OpenGL renderer without shadows; its pixels depend on the driver, and its lamp sits on the camera.

    Python must be started with ``MUJOCO_GL=egl``, which MuJoCo reads only once, when it is imported.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        if os.environ.get("MUJOCO_GL") != "egl":
            raise ImagineError("renderer 'egl' needs MUJOCO_GL=egl set before Python starts; or use renderer='ray'.")
        self.model = model
        self._sized: dict[tuple[int, int], mujoco.Renderer] = {}

    def image(self, data: mujoco.MjData, camera: str, height: int, width: int, light: Light) -> np.ndarray:
        """One camera's picture, (height, width, 3) uint8."""
        h, w = height * SUPERSAMPLE, width * SUPERSAMPLE
        if (h, w) not in self._sized:
            self._sized[h, w] = mujoco.Renderer(self.model, h, w)
        renderer = self._sized[h, w]
        self.model.vis.headlight.ambient[:] = light.ambient
        self.model.vis.headlight.diffuse[:] = light.direct
        renderer.update_scene(data, camera)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        fine = renderer.render().reshape(height, SUPERSAMPLE, width, SUPERSAMPLE, 3)
        return (fine.astype(np.float32).mean((1, 3)) + 0.5).astype(np.uint8)


def make_renderer(name: str, model: mujoco.MjModel) -> Renderer:
    """A renderer by name, ``ray`` or ``egl``.

    Raises:
        ImagineError: another name.
    """
    if name == "ray":
        return RayRenderer(model)
    if name == "egl":
        return EglRenderer(model)
    raise ImagineError(f"renderer {name!r} is unknown, expected 'ray' or 'egl'.")
