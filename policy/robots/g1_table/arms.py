"""Inverse kinematics of both arms: position first, hand direction in what freedom is left, posture last.

The elbow bends by 1.48 rad only, so the wrist lives in a thin shell around the shoulder and the hand must lean forward
for far points. Position has strict priority; the hand's lean follows a preferred angle as well as it can.

Departs from textbook damped least squares in: joints at their limits are frozen and the step is solved once more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from imagine.extras import lazy_module
from imagine.policy.robots.g1_table.scene import SIDES

if TYPE_CHECKING:
    import mujoco
else:
    mujoco = lazy_module("mujoco", "sim")

POSTURE = np.array([[0.45, -0.40, -1.5, 1.20, 0.80, 1.20, 0.90], [0.45, 0.40, 1.5, 1.20, -0.80, 1.20, -0.90]])
MAX_STEP = 3.14 / 30  # rad per tick, the published joint speed limit
_EYE3, _EYE7 = np.eye(3), np.eye(7)


def lean(x: float) -> float:
    """Preferred forward lean of a hand at ``x`` (m), rad: upright near the body, leaning far from it."""
    return float(np.clip((x - 0.38) * 2.8, -0.1, 0.75))


class Arms:
    """Solves for joint targets on a scratch copy of the model; keeps the last solution as warm start.

    Attributes:
        q: (2, 7) float64, last solution, left then right, rad.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self.model = model
        self.data = mujoco.MjData(model)
        names = [[f"{s}_j{i}" for i in range(1, 8)] for s in SIDES]
        self.qpos = np.array([[model.joint(n).qposadr[0] for n in side] for side in names])
        self.dof = np.array([[model.joint(n).dofadr[0] for n in side] for side in names])
        limits = np.array([[model.joint(n).range for n in side] for side in names])
        self.low, self.high = limits[..., 0], limits[..., 1]
        self.site = [model.site(f"{s}_tcp").id for s in SIDES]
        self.q = POSTURE.copy()
        self._jp, self._jr = np.zeros((3, model.nv)), np.zeros((3, model.nv))

    def solve(self, targets: np.ndarray, *, iterations: int = 2, max_step: float = MAX_STEP) -> np.ndarray:
        """Move the warm start towards the targets.

        Args:
            targets: (2, 3) float, positions of the gripper centres, m.
            iterations: Newton steps.
            max_step: how far a joint may move in total, rad.

        Returns:
            (2, 7) float64 joint targets, also kept in ``q``.
        """
        low = np.maximum(self.low, self.q - max_step)
        high = np.minimum(self.high, self.q + max_step)
        k = self.data
        for _ in range(iterations):
            k.qpos[self.qpos] = self.q
            mujoco.mj_kinematics(self.model, k)
            mujoco.mj_comPos(self.model, k)
            for arm in (0, 1):
                self.q[arm] = self._newton(arm, targets[arm], low[arm], high[arm])
        return self.q

    def positions(self, q: np.ndarray) -> np.ndarray:
        """Gripper centres (2, 3) in m of joint angles (2, 7) in rad."""
        self.data.qpos[self.qpos] = q
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[self.site].copy()

    def _newton(self, arm: int, target: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        k, q, site = self.data, self.q[arm], self.site[arm]
        mujoco.mj_jacSite(self.model, k, self._jp, self._jr, site)
        jp, jr = self._jp[:, self.dof[arm]], self._jr[:, self.dof[arm]]
        error = target - k.site_xpos[site]
        error *= min(1.0, 0.08 / (float(np.sqrt(error @ error)) + 1e-9))
        turn = self._turn(k.site_xmat[site].reshape(3, 3), float(target[0]))
        step = self._prioritised(jp, jr, error, turn, POSTURE[arm] - q)
        new = q + step
        stuck = (new < low) | (new > high)
        if stuck.any():
            edge = np.where(stuck, np.clip(new, low, high) - q, 0.0)
            free = ~stuck
            step = self._prioritised(
                jp * free, jr * free, error - jp @ edge, turn - jr @ edge, (POSTURE[arm] - q) * free
            )
            new = q + edge + step * free
        return np.clip(new, low, high)

    @staticmethod
    def _turn(pose: np.ndarray, x: float) -> np.ndarray:
        """Rotation (3,) in rad that brings the fingers' axis to y and the hand to its preferred lean.

        Cross products with the wanted axes, by hand: ``np.cross`` costs more than the rest of a step.
        """
        a = lean(x)
        (x1, _, z1), (x2, y2, z2) = pose[:, 1], pose[:, 2]
        ux, uz = -np.sin(a), np.cos(a)
        return np.array([-z1 + 0.5 * y2 * uz, 0.5 * (z2 * ux - x2 * uz), x1 - 0.5 * y2 * ux])

    @staticmethod
    def _prioritised(
        jp: np.ndarray, jr: np.ndarray, error: np.ndarray, turn: np.ndarray, rest: np.ndarray
    ) -> np.ndarray:
        inverse = jp.T @ np.linalg.inv(jp @ jp.T + 1e-4 * _EYE3)
        null = _EYE7 - inverse @ jp
        first = inverse @ error
        jn = jr @ null
        second = jn.T @ np.linalg.solve(jn @ jn.T + 0.02 * _EYE3, 0.5 * (turn - jr @ first))
        return first + second + null @ (0.02 * rest)
