"""Between any server and any motor: what a robot is never sent, whoever asks for it, and when it is to stop.

The guard runs where the robot is driven and needs numpy alone. It sees what is commanded, what was imagined and what is
then seen; it never feels a force, so it is beside the robot's own protection, not in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from imagine.embodiment import Embodiment
from imagine.limits import Limits

Response = Literal["slow", "hold", "refuse"]
_CAN_BE_SLOWED = {"velocity", "jerk"}
_FRACTIONS = np.linspace(1, 0, 33)[1:-1]
TILE = 8
"""Side of the squares of pixels, in which :func:`surprise` looks for what is different."""


class GuardConfig(BaseModel):
    """What a guard allows beside the robot's limits; None allows everything.

    Attributes:
        patience: commands in a row that do not pass, after which the robot stops for good. To wait for one is no fault.
        hallucination: of a plan, normalised action units: how far the actions that its dream shows are from its own.
        surprise: how far what is seen may be from what was expected, grey levels; see :func:`surprise`.
        success: least judged probability of a plan.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    patience: Annotated[int, Field(gt=0)] = 30
    hallucination: Annotated[float, Field(gt=0)] | None = None
    surprise: Annotated[float, Field(gt=0)] | None = None
    success: Annotated[float, Field(gt=0, le=1)] | None = None


@dataclass(frozen=True)
class Event:
    """The guard did not let something pass.

    Attributes:
        tick: of the episode.
        rule: what was broken: ``finite``, a rule of :meth:`imagine.limits.Limits.breaches`, ``late`` (there was no
            command), ``hallucination``, ``surprise``, ``success`` or ``patience``.
        response: ``slow``, a part of the way was commanded; ``hold``, the robot brakes and stays, or a plan was
            dropped; ``refuse``, nothing moves until the next reset.
        excess: by how much, as a share of what is allowed.
    """

    tick: int
    rule: str
    response: Response
    excess: float


class Guard:
    """Lets commands pass one by one; whatever it returns is finite and within the limits.

    A command that is only too fast is followed as far as allowed; one that leads where the robot may not be is not
    followed at all, nor is one that is not there: the robot brakes, as fast as its limits allow, and stays. Where no
    way to brake keeps them it stops with the least jerk there is, which is the one jerk that is never refused.

    Attributes:
        events: what did not pass since the last reset.
        refused: nothing passes any more.
    """

    def __init__(self, body: Embodiment, limits: Limits | None = None, cfg: GuardConfig | None = None) -> None:
        """Guard one robot.

        Args:
            body: what its commands are.
            limits: what it may be commanded; None: finite numbers.
            cfg: what else is watched.
        """
        self.body, self.cfg = body, cfg or GuardConfig()
        self.limits = limits or Limits(control_hz=body.control_hz)
        self._wraps = np.concatenate([np.full(a.size, a.wraps) for a in body.action])
        self.events: list[Event] = []
        self.refused = False

    def reset(self, pose: np.ndarray) -> None:
        """Begin an episode.

        Args:
            pose: (A,) absolute, robot units: the command that leaves the robot where it is.
        """
        self.events, self.refused, self._tick, self._held, self._dropped = [], False, -1, 0, 0
        self._sent, self._stop = [np.asarray(pose, np.float64)], list[np.ndarray]()

    def check(self, command: np.ndarray | None) -> np.ndarray:
        """What may be sent in place of a command, once per tick.

        Args:
            command: (A,) absolute, robot units; None where nothing was planned in time.

        Returns:
            (A,) float32: the command, a part of the way to it, or what brakes; once the robot stands the last one
            again, where per-tick actions are 0.
        """
        self._tick += 1
        sent = self._sent[-1]
        if command is None or self.refused:
            if not self.refused:
                self._note("late", "hold", 0.0)
            return self._brake()
        if np.shape(command) != sent.shape or not np.isfinite(command).all():
            self._note("finite", "hold", float("inf"))
            return self._hold()
        wanted = self._nearest(np.asarray(command, np.float64))
        broken = self._breaches(wanted)
        if not broken:
            return self._send(wanted)
        rule = max(broken, key=lambda name: broken[name])
        if set(broken) <= _CAN_BE_SLOWED:
            step = wanted - self._stay()
            for part in _FRACTIONS:
                if not self._breaches(slower := self._stay() + part * step):
                    self._note(rule, "slow", broken[rule])
                    return self._send(slower)
        else:
            rule = max(set(broken) - _CAN_BE_SLOWED, key=lambda name: broken[name])
        self._note(rule, "hold", broken[rule])
        return self._hold()

    def admit(self, *, hallucination: float | None = None, success: float | None = None) -> bool:
        """Whether a plan may be followed; as many in a row as half of the patience in ticks are thrown away at most.

        Args:
            hallucination: of its dream, normalised action units; None or NaN: not known, and nothing said of it.
            success: judged probability; likewise.
        """
        most, least = self.cfg.hallucination, self.cfg.success
        if most is not None and hallucination is not None and hallucination > most:
            return self._drop("hallucination", hallucination / most - 1)
        if least is not None and success is not None and success < least:
            return self._drop("success", 1 - success / least)
        self._dropped = 0
        return True

    def compare(self, expected: np.ndarray, seen: np.ndarray) -> bool:
        """Whether what came is what was expected; if not, the plan that expected otherwise is to be thrown away.

        Args:
            expected: (H, W, 3) uint8 canvas of this moment, as it was imagined.
            seen: (H, W, 3) uint8.
        """
        if self.cfg.surprise is None or (found := surprise(expected, seen)) <= self.cfg.surprise:
            return True
        return self._drop("surprise", found / self.cfg.surprise - 1)

    # -------------------------------------------------------------------- parts
    def _nearest(self, command: np.ndarray) -> np.ndarray:
        """Angles that start again at -pi after pi, counted on from the last command."""
        turn = 2 * np.pi * np.round((self._sent[-1] - command) / (2 * np.pi))
        return np.where(self._wraps, command + turn, command)

    def _breaches(self, command: np.ndarray) -> dict[str, float]:
        path = np.stack([*self._sent[-3:], command])
        found = self.limits.breaches(path[-2:]) | {"jerk": self.limits.breaches(path)["jerk"]}
        return {name: float(x) for name, x in found.items() if x > 0}

    def _stay(self) -> np.ndarray:
        return np.where(self.body.is_per_tick, 0.0, self._sent[-1])

    def _brake(self) -> np.ndarray:
        """Send the next command of a stop."""
        stop = self._stop or self._shortest_stop()
        sent = self._send(stop[0])
        self._stop = stop[1:]
        return sent

    def _shortest_stop(self) -> list[np.ndarray]:
        """Commands whose speed falls along a cosine to nothing: as soon as the limits allow, in a second at most."""
        stay, past = self._stay(), self._sent[-3:]
        step = np.where(self.body.is_per_tick, past[-1], past[-1] - past[max(-2, -len(past))])
        best, least = [stay], np.inf
        for ticks in range(self.body.control_hz if step.any() else 0):
            speed = step * (1 + np.cos(np.pi * np.arange(1, ticks + 2)[:, None] / (ticks + 1))) / 2
            moves = np.where(self.body.is_per_tick, speed, stay + np.cumsum(speed, 0))
            path = np.stack([*past, *moves, moves[-1], moves[-1]])
            found = self.limits.breaches(path[len(past) - 1 :])
            jerk = float(self.limits.breaches(path)["jerk"])
            if jerk < least and not any(x > 0 for name, x in found.items() if name != "jerk"):
                best, least = [*moves], jerk
            if least == 0:
                break
        return best

    def _hold(self) -> np.ndarray:
        held = self._held + 1
        if held >= self.cfg.patience and not self.refused:
            self._refuse()
        sent = self._brake()
        self._held = held
        return sent

    def _send(self, command: np.ndarray) -> np.ndarray:
        self._sent, self._held, self._stop = [*self._sent[-2:], command], 0, []
        return command.astype(np.float32)

    def _drop(self, rule: str, excess: float) -> bool:
        self._note(rule, "hold", excess)
        self._dropped += 1
        if 2 * self._dropped >= self.cfg.patience and not self.refused:
            self._refuse()
        return False

    def _refuse(self) -> None:
        self.refused = True
        self._note("patience", "refuse", 0.0)

    def _note(self, rule: str, response: Response, excess: float) -> None:
        self.events.append(Event(self._tick, rule, response, excess))


def surprise(expected: np.ndarray, seen: np.ndarray) -> float:
    """Mean difference of two canvases (H, W, 3) uint8, grey levels of 255, in the 8 x 8 pixels where it is largest.

    A thing that is elsewhere than expected covers a few pixels only; over the whole picture it would drown.
    """
    off = np.abs(expected.astype(np.float32) - seen.astype(np.float32)).mean(-1)
    height, width = (n - n % TILE for n in off.shape)
    tiles = off[:height, :width].reshape(height // TILE, TILE, width // TILE, TILE)
    return float(tiles.mean((1, 3)).max())
