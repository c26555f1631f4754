"""Gymnasium environments of whatever imagines the next chunk (a ``World``, given by the caller).

``WorldModelVectorEnv`` steps many environments together; ``WorldModelEnv`` is its view on one. A step is a chunk. An
environment's whole future is a function of its first seed and of the actions: its episode ``n`` starts from
``episode_seed(first_seed, n)``, whatever other environments do, however episodes ended, in every autoreset mode.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from imagine.types import ImagineError, ShapeError
from imagine.world.infos import masked, pick, row_of, scatter, single
from imagine.world.interface import (
    EnvConfig,
    EnvState,
    Outcome,
    World,
    as_numbers,
    checked_options,
    episode_seed,
    is_seed,
    next_episode,
    require_going,
    require_reset,
    with_horizon,
)

__all__ = ["EnvConfig", "EnvState", "Outcome", "World", "WorldModelEnv", "WorldModelVectorEnv", "episode_seed"]

_DEFAULT = EnvConfig()


class WorldModelVectorEnv(gym.vector.VectorEnv[Any, np.ndarray, np.ndarray]):
    """N imagined environments, stepped together.

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
            num_envs: N.
            cfg: when episodes are cut short.
            autoreset_mode: a member or its value: NextStep, SameStep (for Stable-Baselines3) or Disabled.
            render_mode: None or ``rgb_array``.
            max_episode_steps: chunks, overrides ``cfg.horizon``; ``gymnasium.make_vec`` passes it.

        Raises:
            ImagineError: no environment, no horizon, or an unknown mode.
        """
        horizon = cfg.horizon if max_episode_steps is None else max_episode_steps
        if num_envs < 1 or horizon < 1:
            raise ImagineError(f"num_envs is {num_envs} and horizon {horizon} chunks, expected 1 or more of each.")
        if render_mode not in (None, "rgb_array"):
            raise ImagineError(f"render_mode {render_mode!r} is unknown, expected None or 'rgb_array'.")
        modes = [m.value for m in AutoresetMode]
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise ImagineError(f"autoreset_mode {autoreset_mode!r} is unknown, expected one of {', '.join(modes)}.")
        self.world, self.num_envs, self.render_mode = world, num_envs, render_mode
        self.cfg = cfg.model_copy(update={"horizon": horizon})
        self.autoreset_mode, self._begun = AutoresetMode(autoreset_mode), False
        self.metadata = {
            "render_fps": 1,
            **world.metadata,
            **type(self).metadata,
            "autoreset_mode": self.autoreset_mode,
        }
        self.single_observation_space = world.single_observation_space
        self.single_action_space = world.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._action_shape, self._everywhere = self.action_space.shape, np.ones(num_envs, bool)
        self._episodes: list[tuple[int, int] | None] = [None] * num_envs
        self._elapsed = np.zeros(num_envs, np.int64)
        self._spec: EnvSpec | None = None
        self._over: np.ndarray | None = None
        self._lost: np.ndarray | None = None
        world.allocate(num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode in every environment, or in those of ``options["reset_mask"]``.

        It observes all and informs of those that begin. If it fails, nothing has changed.

        Args:
            seed: first seeds in [0, 2^63); an int means ``seed + i`` for environment i. One that gets none goes on to
                its next episode or, if it never had one, draws it from ``np_random``.
            options: ``reset_mask`` (N,) bool; the rest goes to the world.

        Raises:
            ShapeError: the mask or the seeds do not fit.
            ResetNeeded: the first reset leaves environments out.
        """
        self._require_open()
        rest = checked_options(options)
        mask, seeds = self._checked_mask(rest.pop("reset_mask", None)), self._first_seeds(seed)
        # Drawn from a copy, so that a world that refuses leaves np_random as it was.
        generator = copy.deepcopy(self.np_random) if seeds[0] is None else seeding.np_random(seeds[0])[0]
        infos = scatter({}, self._begin(mask, rest, seeds, generator), mask)
        super().reset(seed=seeds[0])
        self._np_random = generator
        if self._over is not None:
            self._over = left if (left := self._over & ~mask).any() else None
        self._begun = True
        return self.world.observe(), infos

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Carry out one chunk in every environment; one whose episode is over restarts as the autoreset mode says.

        Args:
            actions: (N, *action shape) float, robot units.

        Returns:
            Batched observation, reward (N,) float32, terminated (N,) bool, truncated (N,) bool, and info.

        Raises:
            ShapeError: wrong shape, NaN or infinity.
            ResetNeeded: before the first reset, or, with autoreset disabled, while an environment waits for one.
        """
        self._require_reset("step")
        actions = self._checked(actions)
        if self._over is not None:
            return self._step_and_restart(actions, self._over)
        reward, terminated, truncated, info = self._advance(actions)
        done = terminated | truncated
        if True in done.tobytes():
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                infos = self._set_aside(done, info)
                return self.world.observe(), reward, terminated, truncated, infos
            self._over = done
        return self.world.observe(), reward, terminated, truncated, masked(info, self._everywhere.copy())

    def render(self) -> tuple[Any, ...] | None:
        """The newest frame (H, W, 3) uint8 of every environment; None without a render mode."""
        self._require_reset("render")
        return tuple(self.world.frames(i)[-1] for i in range(self.num_envs)) if self.render_mode else None

    def snapshot(self) -> EnvState:
        """Keep this moment of the dream: after :meth:`restore`, equal actions give equal bytes."""
        self._require_reset("snapshot")
        generator = copy.deepcopy(dict(self.np_random.bit_generator.state))
        return EnvState(
            self.world.snapshot(), tuple(self._episodes), self._elapsed.copy(), self._over, self._lost, generator
        )

    def restore(self, state: EnvState) -> None:
        """Go back to a snapshot, as often as wanted. If it fails, nothing has changed.

        Raises:
            ShapeError: it is of another number of environments, or of another world.
        """
        self._require_open()
        if not isinstance(state, EnvState):
            raise ShapeError(f"the snapshot is a {type(state).__name__}, expected what snapshot() returned.")
        masks = [mask for mask in (state.over, state.lost) if mask is not None]
        known = [e for e in state.episodes if e is not None]
        if not all(isinstance(e, tuple) and len(e) == 2 and all(map(is_seed, e)) for e in known):
            raise ShapeError(f"the snapshot's episodes are {known}, expected pairs of first seed and number.")
        lengths = {len(state.episodes), len(state.elapsed), *map(len, masks)}
        if lengths != {self.num_envs}:
            got = " and ".join(map(str, sorted(lengths)))
            raise ShapeError(f"the snapshot has {got} environments, expected {self.num_envs}; restore it where taken.")
        generator = copy.deepcopy(self.np_random)
        try:
            generator.bit_generator.state = copy.deepcopy(state.generator)
        except (TypeError, ValueError, KeyError) as error:
            raise ShapeError(f"the snapshot's generator is no state of numpy's ({error}); take it again.") from None
        self.world.restore(state.world)
        self._episodes, self._elapsed = list(state.episodes), state.elapsed.copy()
        self._over, self._lost = state.over, state.lost
        self._np_random, self._begun = generator, True

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """What Gymnasium made it of; it says how long episodes are."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = with_horizon(spec, self.cfg.horizon)

    def _require_open(self) -> None:
        require_reset("reset", True, self.closed)

    def _require_reset(self, what: str) -> None:
        require_reset(what, self._begun, self.closed)

    def _checked(self, actions: Any) -> np.ndarray:
        array = as_numbers(actions, self._action_shape)
        if False in np.isfinite(array).tobytes():  # a search in bytes costs a fraction of .all()
            envs = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(1)).tolist()
            raise ShapeError(f"actions of environments {envs} hold NaN or infinity, expected numbers; see the policy.")
        return array

    def _checked_mask(self, mask: Any) -> np.ndarray:
        """(N,) bool, the environments that a reset is to begin."""
        if mask is None:
            return np.ones(self.num_envs, bool)
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ShapeError(f"reset_mask is {mask!r}, expected bool ({self.num_envs},); mark those to reset.")
        if not (self._begun or mask.all()):
            raise gym.error.ResetNeeded("the first reset has a reset_mask; reset all environments first.")
        return mask

    def _first_seeds(self, seed: Any) -> list[int | None]:
        """N seeds, None for an environment that was given none."""
        if isinstance(seed, (int, np.integer)):
            seed = [int(seed) + i for i in range(self.num_envs)]
        seeds = [None] * self.num_envs if seed is None else seed
        if not isinstance(seeds, Sequence | np.ndarray) or len(seeds) != self.num_envs or not all(map(is_seed, seeds)):
            raise ShapeError(f"seeds are {seeds!r}, expected {self.num_envs} in [0, 2^63); give one each, or an int.")
        return [None if s is None else int(s) for s in seeds]

    def _begin(
        self, mask: np.ndarray, options: Mapping[str, Any], seeds: Sequence[int | None], generator: np.random.Generator
    ) -> dict[str, Any]:
        """Begin an episode in the M masked environments; ``seeds`` holds N first seeds or Nones.

        Seeds of those that never had one are drawn from ``generator``. Returns info of length M.
        """
        envs = np.flatnonzero(mask)
        episodes = [next_episode(self._episodes[i], seeds[i], generator) for i in envs.tolist()]
        info = self.world.reset(envs, [episode_seed(*episode) for episode in episodes], options)
        for i, episode in zip(envs.tolist(), episodes, strict=True):
            self._episodes[i] = episode
        self._elapsed[envs] = 0
        if self._lost is not None:
            self._lost = left if (left := self._lost & ~mask).any() else None
        return {**info, "elapsed_chunks": self._elapsed[envs]}

    def _advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One chunk in all environments: reward, terminated, truncated, and info without masks."""
        outcome = self.world.step(actions)
        self._elapsed += 1
        reward, terminated, unbelievable = outcome.reward, outcome.terminated, ~outcome.believable
        truncated = self._elapsed >= self.cfg.horizon
        if self.cfg.truncate_unbelievable:
            if self._lost is not None:
                reward = np.where(self._lost, np.float32(0), reward)
                terminated = terminated & ~self._lost
                unbelievable |= self._lost
            if self.cfg.min_chunks > 1:
                late = self._elapsed >= self.cfg.min_chunks
                self._lost = lost if (lost := unbelievable & ~late).any() else None
                truncated |= unbelievable & late
            else:
                truncated |= unbelievable
        info = {**outcome.info, "unbelievable": unbelievable, "elapsed_chunks": self._elapsed.copy()}
        return reward, terminated, truncated, info

    def _step_and_restart(self, actions: np.ndarray, over: np.ndarray) -> tuple[Any, ...]:
        """NEXT_STEP: environments that are over ignore their action and begin anew; the others go on."""
        if self.autoreset_mode is AutoresetMode.DISABLED:
            require_going(over)
        going = ~over
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros((2, self.num_envs), bool)
        infos: dict[str, Any] = {}
        if going.any():  # when all are over, as under a common horizon, nothing needs imagining
            *judged, info = self._advance(actions)
            for mine, theirs in zip((reward, terminated, truncated), judged, strict=True):
                mine[going] = theirs[going]
            scatter(infos, pick(info, going), going)
        scatter(infos, self._begin(over, {}, [None] * self.num_envs, self.np_random), over)
        self._over = done if (done := terminated | truncated).any() else None
        return self.world.observe(), reward, terminated, truncated, infos

    def _set_aside(self, done: np.ndarray, info: dict[str, Any]) -> dict[str, Any]:
        """SAME_STEP: keep the last observation and info of environments that are done, and begin anew there."""
        last, final = self.world.observe(), np.full(self.num_envs, None, object)
        for i in np.flatnonzero(done).tolist():
            final[i] = row_of(last, i)
        infos = {"final_obs": final, "_final_obs": done, "final_info": scatter({}, pick(info, done), done)}
        infos["_final_info"] = done.copy()
        if not done.all():
            scatter(infos, pick(info, ~done), ~done)
        return scatter(infos, self._begin(done, {}, [None] * self.num_envs, self.np_random), done)


class WorldModelEnv(gym.Env[Any, np.ndarray]):
    """One imagined environment: ``vector``, a ``WorldModelVectorEnv`` of one, without leading axis and autoreset."""

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
        observation, infos = self.vector.reset(seed=seed, options=options)
        super().reset(seed=seed)
        return row_of(observation, 0), single(infos)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Carry out one chunk, (K, A) float in robot units; raises as ``WorldModelVectorEnv.step`` does."""
        observation, reward, terminated, truncated, infos = self.vector.step(np.asarray(action)[None])
        return row_of(observation, 0), float(reward[0]), bool(terminated[0]), bool(truncated[0]), single(infos)

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """What Gymnasium made it of; it says how long episodes are."""
        return self.vector.spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self.vector.spec = spec

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The newest frame (H, W, 3) uint8; None without a render mode."""
        frames = self.vector.render()
        return None if frames is None else frames[0]

    def snapshot(self) -> EnvState:
        """Keep this moment of the dream, as ``WorldModelVectorEnv.snapshot``."""
        return self.vector.snapshot()

    def restore(self, state: EnvState) -> None:
        """Go back to a snapshot."""
        self.vector.restore(state)

    def close(self) -> None:
        """Release the environment; any later call but this one raises ``ClosedEnvironmentError``."""
        self.vector.close()
