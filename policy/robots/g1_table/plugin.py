"""The simulated G1 at its table as a plug-in: everything the library may ask of a robot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from imagine.embodiment import Embodiment
from imagine.limits import Limits
from imagine.policy.robots.g1_table.env import FOLDER, G1TableEnv, TableTicks
from imagine.policy.robots.g1_table.episodes import BLOCKS, FAILURE_SHARE
from imagine.policy.robots.g1_table.hide import hiding_chunk
from imagine.policy.robots.g1_table.labels import TableLabels
from imagine.policy.robots.g1_table.limits import limits_of
from imagine.policy.robots.g1_table.looks import LOOKS
from imagine.policy.robots.g1_table.masks import object_masks
from imagine.policy.robots.g1_table.privileged import expert_chunk
from imagine.policy.robots.g1_table.scene import COLOURS, CONTROL_HZ
from imagine.policy.robots.g1_table.sites import SITES
from imagine.policy.robots.g1_table.starts import counts_of, draw_start
from imagine.policy.robots.g1_table.tasks import FAMILIES, Task, blocks_of, tasks_of
from imagine.policy.robots.g1_table.truth import NAMES
from imagine.policy.robots.plugin import Recorder
from imagine.slices import feature_names
from imagine.types import ImagineError
from imagine.world.objects import ObjectMasks

RECORDED = {"observation.state": 26, "action": 28}
"""How many numbers an episode records per tick, see :class:`imagine.policy.robots.g1_table.episodes.Episode`."""


class G1TablePlugin(TableLabels):
    """Two arms at a table with blocks and a bowl.

    Its options are ``families``, ``colours``, ``blocks``, ``look`` and ``site``. ``blocks`` is how many there are, or
    several numbers of which every episode draws one; ``look=unseen`` shows shades, shapes, a table and lamps that no
    training draws; ``site=shifted`` is another place, see ``sites.SITES``.
    """

    name = "g1_table"

    def embodiment(self) -> Embodiment:
        """Hands by displacement, three cameras."""
        return Embodiment.load(FOLDER / "g1_eef.yaml")

    def make_env(self, body: Embodiment, *, horizon: int, **options: Any) -> gym.Env[Any, Any]:
        """See :class:`imagine.policy.robots.g1_table.env.G1TableEnv`.

        Raises:
            ImagineError: an option is unknown or out of range, or the embodiment wants a camera the table has not.
        """
        return G1TableEnv(body, max_chunks=horizon, **self._checked(options))

    def make_ticks(self, body: Embodiment, **options: Any) -> TableTicks:
        """See :class:`imagine.policy.robots.g1_table.env.TableTicks`.

        Raises:
            ImagineError: an option is unknown or out of range.
        """
        return TableTicks(body, **self._checked(options))

    def options(self, understands: Callable[[str], bool] | None = None) -> dict[str, Any]:
        """All that the table knows; of the families those whose every word a model understands."""
        known = tuple(f for f in FAMILIES if understands is None or understands(_example(f).instruction))
        return {"families": known, "colours": tuple(COLOURS), "blocks": (2,), "look": "seen", "site": "usual"}

    def _checked(self, options: Mapping[str, Any]) -> dict[str, Any]:
        known = self.options()
        if unknown := sorted(set(options) - set(known)):
            raise ImagineError(f"robot option {unknown[0]!r} is unknown, expected some of {', '.join(known)}.")
        counts_of(options.get("blocks", 2))
        for name, every in (("look", LOOKS), ("site", tuple(SITES))):
            if options.get(name, every[0]) not in every:
                raise ImagineError(f"{name} is {options[name]!r}, expected one of {', '.join(every)}.")
        return dict(options)

    def task_of(self, instruction: str) -> str:
        """The family."""
        return Task.parse(instruction).family

    def distractor(self, instruction: str, seed: int, options: Mapping[str, Any]) -> str | None:
        """The same task for a block, the last of two, that is not on the table; None where all colours are."""
        task, present = Task.parse(instruction), self._present(seed, options)
        absent = [c for c in COLOURS if c not in present]
        return Task.about(task.family, (*task.colours[:-1], absent[0])).instruction if absent else None

    def swaps(self) -> tuple[str, ...]:
        """Another block, or another task."""
        return "colour", "task"

    def other_instruction(self, what: str, instruction: str, seed: int, options: Mapping[str, Any]) -> str | None:
        """The same task with another block of this start, or the next task that there are blocks for with the same."""
        task, present = Task.parse(instruction), self._present(seed, options)
        others = [c for c in present if c not in task.colours]
        if what == "colour":
            if not others:  # of two, where there is no third, the second alone
                return Task("put_in_bowl", task.second).instruction if task.second else None
            return Task.about(task.family, (*task.colours[1:], others[0])).instruction
        families = [f for f in {**self.options(), **options}["families"] if blocks_of(f) <= len(present)]
        family = families[(families.index(task.family) + 1) % len(families)]
        return Task.about(family, (*task.colours, *others)).instruction

    def _present(self, seed: int, options: Mapping[str, Any]) -> tuple[str, ...]:
        """Colours of the blocks of a start."""
        how = {name: value for name, value in {**self.options(), **options}.items() if name != "site"}
        return draw_start(np.random.default_rng(seed), None, **how, home=False).colours

    def carried_out(self, env: gym.Env[Any, Any], instruction: str) -> bool:
        """See :class:`imagine.policy.robots.plugin.RobotPlugin`."""
        return bool(_table(env).robot.world.success(Task.parse(instruction)))

    def expert(self, env: gym.Env[Any, Any]) -> np.ndarray:
        """The scripted expert's next chunk."""
        return expert_chunk(_table(env))

    def objects(self, env: gym.Env[Any, Any]) -> ObjectMasks:
        """See :func:`imagine.policy.robots.g1_table.masks.object_masks`."""
        return object_masks(_table(env))

    def hide(self, env: gym.Env[Any, Any], thing: int) -> np.ndarray:
        """See :func:`imagine.policy.robots.g1_table.hide.hiding_chunk`."""
        return hiding_chunk(_table(env), thing)

    def limits(self, body: Embodiment) -> Limits:
        """See :mod:`imagine.policy.robots.g1_table.limits`."""
        return limits_of(body)

    def recorder(self) -> Recorder:
        """Demonstrations and deliberate failures, see :mod:`imagine.policy.robots.g1_table.episodes`."""
        return Recorder(
            episode="imagine.policy.robots.g1_table.episodes:episode",
            options={**self.options(), "blocks": BLOCKS, "failure_share": FAILURE_SHARE, "modes": ()},
            robot_type=self.embodiment().robot_type,
            fps=CONTROL_HZ,
            names=_names(),
        )


def _example(family: str) -> Task:
    return tasks_of((family,), tuple(COLOURS))[0]


def _names() -> dict[str, Sequence[str]]:
    """Names of what is recorded, those of the embodiments' slices."""
    both = [Embodiment.load(FOLDER / name) for name in ("g1_joints.yaml", "g1_eef.yaml")]
    slices = [s for body in both for s in (*body.state, *body.action)]
    named = {key: feature_names(slices, key, size) for key, size in RECORDED.items()}
    return {"observation.environment_state": NAMES, **named}


def _table(env: gym.Env[Any, Any]) -> G1TableEnv:
    table = env.unwrapped
    assert isinstance(table, G1TableEnv)
    return table
