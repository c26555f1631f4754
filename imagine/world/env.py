"""The gym: whatever imagines the next chunk (a ``World``, given by the caller) becomes a Gymnasium environment.

``WorldModelVectorEnv`` is the real one, many lanes at a time; ``WorldModelEnv`` is its view on one lane. A step is a
chunk. A lane's whole future is a function of its first seed and of the actions: its episode ``n`` starts from
``episode_seed(first_seed, n)``, whatever other lanes do, however episodes ended, in every autoreset mode.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from pydantic import BaseModel, ConfigDict, Field

from imagine.types import ImagineError, ShapeError


@dataclass(slots=True)
class Outcome:
    """What a chunk led to in each of N lanes; the arrays are handed on, so a world gives fresh ones."""

    reward: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool, the instruction is judged to have been carried out
    believable: np.ndarray  # (N,) bool, False once the imagined video no longer follows the actions
    info: dict[str, Any]  # arrays of length N, or dicts of them


@runtime_checkable
class World(Protocol):
    """Imagines N lanes, one chunk at a time, for one environment."""

    single_action_space: gym.spaces.Box
    metadata: dict[str, Any]

    @property  # so that a world may say which kind of space it is
    def single_observation_space(self) -> gym.Space[Any]:
        """Of one lane."""

    def allocate(self, num_envs: int) -> None:
        """Make room for this many lanes; called once, before anything else."""

    def reset(self, lanes: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Begin an episode in (M,) int lanes, a function of seed and options alone; returns info of length M."""

    def step(self, actions: np.ndarray) -> Outcome:
        """Imagine one chunk in all lanes from (N, *action shape) finite float32, which is the caller's."""

    def observe(self) -> Any:
        """The newest observation of all lanes, batched; no later call changes it."""

    def snapshot(self) -> Any:
        """Everything that the future depends on; no later call changes it."""

    def restore(self, state: Any) -> None:
        """Go back to a snapshot."""

    def frames(self, lane: int) -> np.ndarray:
        """(F, H, W, 3) uint8 RGB, the newest chunk of one lane, newest frame last."""


class EnvConfig(BaseModel):
    """When an imagined episode is cut short."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizon: Annotated[int, Field(gt=0)] = 8  # chunks
    truncate_unbelievable: bool = True  # as soon as the dream can no longer be believed


@dataclass(frozen=True)
class EnvState:
    """A moment of a dream, made by ``snapshot``."""

    world: Any
    episodes: tuple[tuple[int, int] | None, ...]  # per lane: first seed, number of the episode
    elapsed: np.ndarray  # (N,) int64, chunks
    over: np.ndarray | None  # (N,) bool, lanes that wait for a reset; None when there are none
    generator: dict[str, Any]  # state of np_random


_DEFAULT = EnvConfig()


class WorldModelVectorEnv(gym.vector.VectorEnv[Any, np.ndarray, np.ndarray]):
    """N imagined lanes, stepped together.

    ``terminated`` is a judged success, ``truncated`` the horizon or a dream that can no longer be believed
    (``info["unbelievable"]``); both may be True at once. ``info`` also holds ``elapsed_chunks`` and what the world
    reports, each with its mask ``_key`` as Gymnasium has it. An automatic reset gives the world no options.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self, world: World, num_envs: int = 1, *, cfg: EnvConfig = _DEFAULT,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP, render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ) -> None:  # fmt: skip
        """Take possession of a world.

        Args:
            world: not shared with another environment.
            num_envs: number of lanes N.
            cfg: when episodes are cut short.
            autoreset_mode: a member or its value: NextStep, SameStep (for Stable-Baselines3) or Disabled.
            render_mode: None or ``rgb_array``.
            max_episode_steps: chunks, overrides ``cfg.horizon``; ``gymnasium.make_vec`` passes it.

        Raises:
            ImagineError: no lanes, no horizon, or an unknown mode.
        """
        horizon = cfg.horizon if max_episode_steps is None else max_episode_steps
        if num_envs < 1 or horizon < 1:
            raise ImagineError(f"got {num_envs} lanes of {horizon} chunks, expected 1 or more of each; ask for more.")
        if render_mode not in (None, "rgb_array"):
            raise ImagineError(f"render_mode {render_mode!r} is unknown, expected None or 'rgb_array'.")
        modes = [m.value for m in AutoresetMode]
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise ImagineError(f"autoreset_mode {autoreset_mode!r} is unknown, expected one of {', '.join(modes)}.")
        self.world, self.num_envs, self.render_mode = world, num_envs, render_mode
        self.cfg = cfg.model_copy(update={"horizon": horizon})
        self._mode, self._begun = AutoresetMode(autoreset_mode), False
        self.metadata = {"render_fps": 1, **world.metadata, **type(self).metadata, "autoreset_mode": self._mode}
        self.single_observation_space = world.single_observation_space
        self.single_action_space = world.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._action_shape, self._everywhere = self.action_space.shape, np.ones(num_envs, bool)
        self._episodes: list[tuple[int, int] | None] = [None] * num_envs
        self._elapsed = np.zeros(num_envs, np.int64)
        self._over: np.ndarray | None = None
        world.allocate(num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every lane, or in those of ``options["reset_mask"]``; observes all, informs of these.

        Args:
            seed: first seeds; an int means ``seed + i`` for lane i. A lane that gets none goes on to its next episode
                or, if it never had one, draws it from ``np_random``.
            options: ``reset_mask`` (N,) bool; the rest goes to the world.

        Raises:
            ShapeError: the mask or the seeds do not fit the lanes.
            ResetNeeded: the first reset leaves lanes out.
        """
        if self.closed:
            raise gym.error.ClosedEnvironmentError("this environment is closed; build a new one.")
        rest = dict(options or {})
        mask = self._checked_mask(rest.pop("reset_mask", None))
        seeds = self._first_seeds(seed)
        infos = _scatter({}, self._begin(mask, rest, seeds), mask)
        if self._over is not None:
            self._over = left if (left := self._over & ~mask).any() else None
        self._begun = True
        return self.world.observe(), infos

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Carry out one chunk in every lane; a lane whose episode is over restarts as the autoreset mode says.

        Args:
            actions: (N, *action shape) float, robot units.

        Returns:
            Batched observation, reward (N,) float32, terminated (N,) bool, truncated (N,) bool, and info.

        Raises:
            ShapeError: wrong shape, NaN or infinity.
            ResetNeeded: before the first reset, or, with autoreset disabled, while a lane waits for one.
        """
        self._require_begun("step")
        actions = self._checked(actions)
        if self._over is not None:
            return self._step_and_restart(actions, self._over)
        reward, terminated, truncated, info = self._advance(actions)
        done = terminated | truncated
        if True in done.tobytes():
            if self._mode is AutoresetMode.SAME_STEP:
                infos = self._set_aside(done, info)
                return self.world.observe(), reward, terminated, truncated, infos
            self._over = done
        return self.world.observe(), reward, terminated, truncated, _masked(info, self._everywhere.copy())

    def render(self) -> tuple[Any, ...] | None:
        """The newest frame (H, W, 3) uint8 of every lane; None without a render mode."""
        self._require_begun("render")
        return tuple(self.world.frames(i)[-1] for i in range(self.num_envs)) if self.render_mode else None

    def snapshot(self) -> EnvState:
        """Keep this moment of the dream: after :meth:`restore`, equal actions give equal bytes."""
        self._require_begun("snapshot")
        generator = copy.deepcopy(dict(self.np_random.bit_generator.state))
        return EnvState(self.world.snapshot(), tuple(self._episodes), self._elapsed.copy(), self._over, generator)

    def restore(self, state: EnvState) -> None:
        """Go back to a snapshot, as often as wanted.

        Raises:
            ShapeError: it has another number of lanes.
        """
        if (n := len(state.episodes)) != self.num_envs:
            raise ShapeError(f"the snapshot has {n} lanes, expected {self.num_envs}; restore it where it was taken.")
        self.world.restore(state.world)
        self._episodes, self._elapsed, self._over = list(state.episodes), state.elapsed.copy(), state.over
        self.np_random.bit_generator.state = copy.deepcopy(state.generator)
        self._begun = True

    def close_extras(self, **kwargs: Any) -> None:
        """Refuse to go on."""
        self._begun = False

    def _require_begun(self, what: str) -> None:
        if not self._begun:
            raise gym.error.ResetNeeded(f"{what} was called before reset; call reset first.")

    def _checked(self, actions: Any) -> np.ndarray:
        want = self._action_shape
        try:
            array = np.asarray(actions, np.float32)
        except (TypeError, ValueError) as error:
            raise ShapeError(f"actions are no array of numbers ({error}), expected float32 {want}.") from None
        if array.shape != want:
            raise ShapeError(f"actions have shape {array.shape}, expected {want}; give one chunk per lane.")
        if False in np.isfinite(array).tobytes():  # a search in bytes costs a fraction of .all()
            lanes = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1)).tolist()
            raise ShapeError(f"actions of lanes {lanes} hold NaN or infinity, expected finite ones; check the policy.")
        return array

    def _checked_mask(self, mask: Any) -> np.ndarray:
        """(N,) bool, the lanes that a reset is to begin."""
        if mask is None:
            return np.ones(self.num_envs, bool)
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ShapeError(f"reset_mask is {mask!r}, expected bool ({self.num_envs},); mark the lanes to reset.")
        if not (self._begun or mask.all()):
            raise gym.error.ResetNeeded("the first reset has a reset_mask; reset all lanes first.")
        return mask

    def _first_seeds(self, seed: Any) -> list[int | None]:
        """N seeds, None for a lane that was given none."""
        if isinstance(seed, (int, np.integer)):
            seed = [int(seed) + i for i in range(self.num_envs)]
        given = [None] * self.num_envs if seed is None else seed
        seeds = [None if s is None else int(s) for s in given]
        if len(seeds) != self.num_envs or any(s is not None and s < 0 for s in seeds):
            raise ShapeError(f"seeds are {seeds}, expected {self.num_envs} from 0 up; give one per lane or an int.")
        if seeds[0] is not None:
            super().reset(seed=seeds[0])
        return seeds

    def _begin(self, mask: np.ndarray, options: Mapping[str, Any], seeds: Sequence[int | None]) -> dict[str, Any]:
        """Begin an episode in the M masked lanes; ``seeds`` holds N first seeds or Nones. Returns info of length M."""
        lanes = np.flatnonzero(mask)
        episodes = [self._next_episode(i, seeds[i]) for i in lanes.tolist()]
        info = self.world.reset(lanes, [episode_seed(*episode) for episode in episodes], options)
        for i, episode in zip(lanes.tolist(), episodes, strict=True):
            self._episodes[i] = episode
        self._elapsed[lanes] = 0
        return {**info, "elapsed_chunks": self._elapsed[lanes]}

    def _next_episode(self, lane: int, first: int | None) -> tuple[int, int]:
        last = self._episodes[lane]
        if first is not None or last is None:
            return (int(self.np_random.integers(2**31)) if first is None else first), 0
        return last[0], last[1] + 1

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One chunk in all lanes: reward, terminated, truncated, and info without masks."""
        outcome = self.world.step(actions)
        self._elapsed += 1
        unbelievable = ~outcome.believable
        truncated = self._elapsed >= self.cfg.horizon
        if self.cfg.truncate_unbelievable:
            truncated |= unbelievable
        info = {**outcome.info, "unbelievable": unbelievable, "elapsed_chunks": self._elapsed.copy()}
        return outcome.reward, outcome.terminated, truncated, info

    def _step_and_restart(self, actions: np.ndarray, over: np.ndarray) -> tuple[Any, ...]:
        """NEXT_STEP: lanes that are over ignore their action and begin anew; the others go on."""
        if self._mode is AutoresetMode.DISABLED:
            lanes = np.flatnonzero(over).tolist()
            raise gym.error.ResetNeeded(f"lanes {lanes} are over; reset them with options['reset_mask'] before step.")
        going = ~over
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        infos: dict[str, Any] = {}
        if going.any():  # when all are over, as under a common horizon, nothing needs imagining
            *judged, info = self._advance(actions)
            for mine, theirs in zip((reward, terminated, truncated), judged, strict=True):
                mine[going] = theirs[going]
            _scatter(infos, _rows(info, going), going)
        _scatter(infos, self._begin(over, {}, [None] * self.num_envs), over)
        self._over = done if (done := terminated | truncated).any() else None
        return self.world.observe(), reward, terminated, truncated, infos

    def _set_aside(self, done: np.ndarray, info: dict[str, Any]) -> dict[str, Any]:
        """SAME_STEP: keep the last observation and info of lanes that are done, and begin anew there."""
        last, final = self.world.observe(), np.full(self.num_envs, None, object)
        for i in np.flatnonzero(done).tolist():
            final[i] = _row(last, i)
        infos = {"final_obs": final, "_final_obs": done, "final_info": _scatter({}, _rows(info, done), done)}
        infos["_final_info"] = done.copy()
        if not done.all():
            _scatter(infos, _rows(info, ~done), ~done)
        return _scatter(infos, self._begin(done, {}, [None] * self.num_envs), done)


class WorldModelEnv(gym.Env[Any, np.ndarray]):
    """One imagined lane: ``vector``, a ``WorldModelVectorEnv`` of one, without its leading axis and autoreset."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self, world: World, *, cfg: EnvConfig = _DEFAULT, render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ) -> None:  # fmt: skip
        """Take possession of a world; arguments as in ``WorldModelVectorEnv``."""
        modes: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED, "render_mode": render_mode}
        self.vector = WorldModelVectorEnv(world, cfg=cfg, max_episode_steps=max_episode_steps, **modes)
        self.metadata, self.render_mode = self.vector.metadata, render_mode
        self.observation_space, self.action_space = world.single_observation_space, world.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a seed, the next one."""
        super().reset(seed=seed)
        observation, infos = self.vector.reset(seed=seed, options=options)
        return _row(observation, 0), _lane_info(infos)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Carry out one chunk, (K, A) float in robot units; raises as ``WorldModelVectorEnv.step`` does."""
        observation, reward, terminated, truncated, infos = self.vector.step(np.asarray(action)[None])
        return _row(observation, 0), float(reward[0]), bool(terminated[0]), bool(truncated[0]), _lane_info(infos)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The newest frame (H, W, 3) uint8; None without a render mode."""
        return self.vector.render()[0] if self.render_mode else None  # type: ignore[index]

    def snapshot(self) -> EnvState:
        """Keep this moment of the dream, as ``WorldModelVectorEnv.snapshot``."""
        return self.vector.snapshot()

    def restore(self, state: EnvState) -> None:
        """Go back to a snapshot."""
        self.vector.restore(state)

    def close(self) -> None:
        """Refuse to go on."""
        self.vector.close()


def episode_seed(first: int, number: int) -> int:
    """The seed, in [0, 2^63), of episode ``number`` of a lane whose episode 0 has seed ``first``."""
    if number == 0:
        return first
    return int(np.random.SeedSequence(first, spawn_key=(number,)).generate_state(1, np.uint64)[0] >> 1)


def _masked(info: Mapping[str, Any], everywhere: np.ndarray) -> dict[str, Any]:
    """Gymnasium's masks for info that every lane has; the arrays are handed on."""
    infos: dict[str, Any] = {}
    for key, value in info.items():
        infos[key] = _masked(value, everywhere) if isinstance(value, dict) else value
        infos["_" + key] = everywhere
    return infos


def _scatter(infos: dict[str, Any], info: Mapping[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Write info of length M into the M masked lanes of batched ``infos``, as Gymnasium does lane by lane."""
    for key, value in info.items():
        if isinstance(value, dict):
            infos[key] = _scatter(infos.get(key, {}), value, mask)
        else:
            if key not in infos:
                empty = None if value.dtype == object else np.zeros((), value.dtype)
                infos[key] = np.full((len(mask), *value.shape[1:]), empty, value.dtype)
            infos[key][mask] = value
        infos["_" + key] = infos.get("_" + key, False) | mask
    return infos


def _rows(info: Mapping[str, Any], mask: np.ndarray) -> dict[str, Any]:
    return {k: _rows(v, mask) if isinstance(v, dict) else v[mask] for k, v in info.items()}


def _row(observation: Any, lane: int) -> Any:
    """One lane of a batched observation (array or dict of arrays); a view."""
    return {k: v[lane] for k, v in observation.items()} if isinstance(observation, dict) else observation[lane]


def _lane_info(infos: Mapping[str, Any]) -> dict[str, Any]:
    """What a single environment reports: entries of lane 0 without masks."""
    own = {k: v for k, v in infos.items() if infos.get("_" + k, (False,))[0]}
    return {k: _lane_info(v) if isinstance(v, dict) else v[0] for k, v in own.items()}
