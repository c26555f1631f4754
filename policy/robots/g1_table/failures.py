"""Ways to fail on purpose, so that a model of the world also sees what goes wrong.

``miss``, ``drop``, ``wrong`` and ``wander`` fail clearly; ``clumsy`` almost succeeds: it closes a finger's breadth
beside or above the block, lifts whether it holds something or not, and tries again elsewhere.
"""

from __future__ import annotations

import numpy as np

from imagine.policy.robots.g1_table.expert import choose_arm, expert_target, present_block
from imagine.policy.robots.g1_table.scene import TABLE_Z
from imagine.policy.robots.g1_table.starts import HOME
from imagine.policy.robots.g1_table.tasks import Task
from imagine.policy.robots.g1_table.world import G1Table

MODES = ("miss", "drop", "wrong", "wander")
ALL_MODES = (*MODES, "clumsy")
PATIENCE = {  # ticks until a block in hand is dropped or a push given up, drawn in this range; most before success
    "put_in_bowl": (3, 24),
    "pick_up": (3, 30),
    "push_left": (1, 9),
    "push_right": (1, 9),
    "put_both": (3, 50),
}
SPREAD = 0.025  # m, standard deviation per axis of where a clumsy hand believes the block to be


class Failure:
    """Acts like the expert with one flaw; unlike the expert it remembers when and how to fail."""

    def __init__(self, mode: str, world: G1Table, task: Task, rng: np.random.Generator) -> None:
        self.mode, self._rng, self._tick = mode, rng, 0
        self._arm = choose_arm(world, present_block(world, task))
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.07)
        self._offset = (float(far * np.cos(angle)), float(far * np.sin(angle)), 0.0)
        self._patience = int(rng.integers(*PATIENCE[task.family]))
        self._holding = 0
        others = [c for c in world.colours if c not in task.colours]
        wrong = others[int(rng.integers(len(others)))] if others else task.colours[-1]
        self._other = Task.about(task.family, (*task.colours[:-1], wrong))
        self._waypoint, self._grip, self._until = HOME[self._arm].copy(), 1.0, 0
        if mode == "clumsy":
            self._try_elsewhere()

    def target(self, world: G1Table, task: Task) -> np.ndarray:
        """(8,) absolute targets of this tick."""
        self._tick += 1
        if self.mode == "miss":
            return expert_target(world, task, self._offset)
        if self.mode == "wrong":
            return expert_target(world, self._other)
        if self.mode == "wander":
            return self._wander(world, task)
        if self.mode == "clumsy":
            return self._clumsy(world, task)
        return self._drop(world, task)

    def _drop(self, world: G1Table, task: Task) -> np.ndarray:
        target = expert_target(world, task).reshape(2, 4)
        block = present_block(world, task)
        busy = world.held(block).any() or (task.family.startswith("push") and world.touched(block).any())
        self._holding += int(busy)
        if self._holding <= self._patience:
            self._arm = choose_arm(world, block)
        if self._holding > self._patience:  # lets go and stays above, or gives up the push
            arm = self._arm
            up = np.array([*world.hands[arm, :2], TABLE_Z + 0.14])
            rise = min(self._holding - self._patience, 10) / 10
            target[arm] = [*(world.hands[arm] + rise * 0.15 * (up - world.hands[arm])), 1.0]
            self._holding += 1
        return target.ravel()

    def _try_elsewhere(self) -> None:
        rng = self._rng
        above = rng.uniform(0.0, 0.03) if rng.uniform() < 0.3 else 0.0
        self._belief = (*rng.normal(0, SPREAD, 2), above)
        self._closing, self._lifting = int(rng.integers(4, 15)), int(rng.integers(12, 40))
        self._until = self._tick + int(rng.integers(45, 90))

    def _clumsy(self, world: G1Table, task: Task) -> np.ndarray:
        block = present_block(world, task)
        arm = self._arm = choose_arm(world, block)
        if self._tick > self._until or self._lifting <= 0:
            self._try_elsewhere()
        target = expert_target(world, task, self._belief).reshape(2, 4)
        if task.family != "pick_up" or world.held(block).any():
            return target.ravel()
        low = world.hands[arm, 2] < TABLE_Z + 0.09
        self._closing -= int(low and target[arm, 3] < 0.5)
        if self._closing < 0:  # lifts, whatever the fingers hold
            self._lifting -= 1
            up = np.array([*world.hands[arm, :2], TABLE_Z + 0.14])
            target[arm] = [*(world.hands[arm] + _short(up - world.hands[arm])), 0.0]
        return target.ravel()

    def _wander(self, world: G1Table, task: Task) -> np.ndarray:
        arm, rng = self._arm, self._rng
        delta = self._waypoint - world.hands[arm]
        far = float(np.linalg.norm(delta))
        if far < 0.015 or self._tick > self._until:
            side = 1 if arm == 0 else -1
            low = rng.uniform() < 0.5
            x, y = rng.uniform(0.33, 0.52), side * rng.uniform(-0.03, 0.26)
            self._waypoint = np.array([x, y, TABLE_Z + rng.uniform(0.025, 0.06 if low else 0.17)])
            if rng.uniform() < 0.4:  # near things, as random points alone would hardly ever touch one
                self._waypoint[:2] = world.blocks[int(rng.integers(len(world.colours))), :2] + rng.normal(0, 0.02, 2)
            self._grip, self._until = float(rng.choice([0.0, 1.0, rng.uniform()])), self._tick + 45
        target = expert_target(world, task).reshape(2, 4)
        target[1 - arm] = [*HOME[1 - arm], 1.0]
        target[1 - arm, :3] = world.hands[1 - arm] + _short(HOME[1 - arm] - world.hands[1 - arm])
        target[arm] = [*(world.hands[arm] + _short(self._waypoint - world.hands[arm])), self._grip]
        return target.ravel()


def _short(delta: np.ndarray, reach: float = 0.028) -> np.ndarray:
    return delta * min(1.0, reach / (float(np.linalg.norm(delta)) + 1e-9))
