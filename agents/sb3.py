"""Stable-Baselines3 in a dream: the environment as its ``VecEnv``, and its own PPO and SAC, unmodified, learning there.

``to_sb3`` is all that another algorithm of the library needs. ``learn_sb3`` trains one, ``sb3_actor`` is
what it learnt; :mod:`imagine.agents.practice` measures whether that is worth something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from pydantic import BaseModel, ConfigDict

from imagine.agents.rollout import OnProgress
from imagine.agents.steer import Agent
from imagine.extras import extra
from imagine.files import atomic_path
from imagine.types import ImagineError
from imagine.world.env import WorldModelVectorEnv

with extra("rl"):
    from stable_baselines3 import PPO, SAC
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecEnv, VecMonitor


class Common(BaseModel):
    """What both algorithms take.

    Attributes:
        steps: environment steps of all lanes together; a step is a chunk.
        gamma: discount per chunk.
        lr: learning rate.
        width: units of a hidden layer.
        layers: hidden layers of every network; 0 is a linear one.
        points: of the learning curve.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = 4096
    gamma: float
    lr: float
    width: int
    layers: int
    points: int = 16


class PPOConfig(Common):
    """PPO. It begins at mean 0 and the given deviation: where the noise is steered, 1 is the policy itself.

    Made for a few thousand steps: a small agent, batches as large as a rollout and few large updates, since one chunk
    says next to nothing about which noise is good.

    Attributes:
        rollout: steps of each lane between two updates.
        batch: steps per gradient step.
        epochs: passes over a rollout.
        lam: of generalised advantage estimation.
        clip: how far an update may move the probability of an action.
        log_std: logarithm of the first deviation, in units of the action; about -1.5 for residuals.
        fixed: keep that deviation. Where the noise is steered, a smaller one makes a policy that repeats its mistakes,
            and PPO would make it small.
    """

    gamma: float = 0.95
    lr: float = 2e-3
    width: int = 16
    layers: int = 1
    rollout: int = 16
    batch: int = 256
    epochs: int = 10
    lam: float = 0.5
    clip: float = 0.4
    log_std: float = 0.0
    fixed: bool = False


class SACConfig(Common):
    """SAC on noise, as DSRL (arXiv:2506.15799) has it, with a fixed temperature and fewer gradient steps.

    The temperature says how far the agent goes from the policy's own noise; one that is learnt is still falling when a
    run of a few thousand steps ends.
    The library's warm-up draws uniformly from the action space, which has variance 1 at the usual limit, as what the
    policy would draw. DSRL draws the warm-up from N(0, 1), cut off at 1.5.

    Attributes:
        warmup: environment steps before the first update.
        batch: steps per gradient step.
        updates: gradient steps per environment step; DSRL takes 20.
        buffer: environment steps that are remembered.
        temperature: what a nat of entropy is worth; None learns it.
        target_entropy: of an action in [-1, 1], in nats, where the temperature is learnt.
    """

    gamma: float = 0.9
    lr: float = 2e-3
    width: int = 128
    layers: int = 1
    warmup: int = 1024
    batch: int = 256
    updates: float = 0.5
    buffer: int = 50_000
    temperature: float | None = 0.01
    target_entropy: float = 0.0


class DreamVecEnv(VecEnv):
    """A vector environment as Stable-Baselines3 wants it; the lanes are one object, so that attributes are shared."""

    def __init__(self, env: WorldModelVectorEnv) -> None:
        """See :func:`to_sb3`."""
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Begin an episode in every lane: from :meth:`seed` where it was called, else the next one."""
        if any(o != self._options[0] for o in self._options):
            raise ImagineError(f"lanes have different options {self._options}, expected one for all; set one dict.")
        seeds = None if all(s is None for s in self._seeds) else self._seeds
        observation, infos = self.env.reset(seed=seeds, options=dict(self._options[0]))
        self.reset_infos = [_lane(infos, i) for i in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Imagine a chunk.

        Returns:
            Observation, reward (N,) float32, done (N,) bool, and one info per lane: of the step itself, also where the
            observation is the next episode's. Where done, ``terminal_observation`` is the last one,
            ``TimeLimit.truncated`` says that it could have gone on from there, ``is_success`` that it need not.
        """
        observation, reward, terminated, truncated, infos = self.env.step(self._actions)
        done = terminated | truncated
        told = [_lane(infos, i) for i in range(self.num_envs)]
        for i in np.flatnonzero(done).tolist():
            self.reset_infos[i], told[i] = told[i], _lane(infos["final_info"], i)
            told[i]["terminal_observation"] = infos["final_obs"][i]
            told[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
            told[i]["is_success"] = bool(terminated[i])
        return observation, reward, done, told

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """The newest frame of every lane."""
        return list(self.env.render() or [None] * self.num_envs)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Of the environment, once per lane."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the environment; raises ImagineError where some lanes are left out."""
        self._require_all(indices, f"set {attr_name}")
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of the environment once, for every lane; raises ImagineError where some are left out."""
        self._require_all(indices, f"call {method_name}")
        return [getattr(self.env, method_name)(*method_args, **method_kwargs)] * self.num_envs

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """No lane is: they are no environments of their own."""
        return [False for _ in self._get_indices(indices)]

    def _require_all(self, indices: Any, what: str) -> None:
        if (lanes := sorted(self._get_indices(indices))) != list(range(self.num_envs)):
            raise ImagineError(f"cannot {what} in lanes {lanes} alone, they are one environment; leave out indices.")


def to_sb3(env: WorldModelVectorEnv) -> DreamVecEnv:
    """A vector environment for Stable-Baselines3; raises ImagineError unless it resets in the same step."""
    if (mode := env.metadata["autoreset_mode"]) is not AutoresetMode.SAME_STEP:
        raise ImagineError(
            f"autoreset_mode is {mode.value}, expected SameStep: Stable-Baselines3 takes the observation after an "
            "episode's end for the next one's first; build the environment with autoreset_mode='SameStep'."
        )
    return DreamVecEnv(env)


def learn_sb3(
    env: WorldModelVectorEnv,
    algorithm: Literal["ppo", "sac"],
    cfg: PPOConfig | SACConfig,
    folder: Path,
    seed: int,
    tell: OnProgress | None = None,
) -> dict[str, Any]:
    """Train PPO or SAC in a dream.

    Args:
        env: SAME_STEP, with flat observations and actions; see :class:`imagine.agents.steer.Steered`.
        algorithm: which.
        cfg: its settings.
        folder: gets ``model.zip``, the agent (see :func:`sb3_actor`), and ``tensorboard/``.
        seed: of the agent, and first start seed of lane 0.
        tell: called with (environment steps done, environment steps).

    Returns:
        ``algorithm``; ``curve``: per point ``steps``, ``episodes``, mean ``return`` and ``success`` of the episodes
        that ended since the point before.

    Raises:
        ImagineError: the autoreset mode is wrong, or the algorithm unknown.
    """
    agent = _agent(VecMonitor(to_sb3(env)), algorithm, cfg, folder, seed)
    curve = _Curve(folder, cfg.steps, cfg.points, tell)
    agent.learn(cfg.steps, callback=curve)
    curve.save()
    return {"algorithm": algorithm, "curve": curve.points()}


def sb3_actor(file: Path, algorithm: Literal["ppo", "sac"], drawn: int | None = None) -> Agent:
    """What was learnt: observations (N, D) to the agent's mean actions (N, A) float32.

    With ``drawn``, a seed, to actions that it draws, as it does while it learns. The file is Stable-Baselines3's own,
    which is a pickle: load your own.
    """
    kinds: dict[str, type[BaseAlgorithm]] = {"ppo": PPO, "sac": SAC}
    agent = kinds[algorithm].load(file, device="cpu")
    if drawn is not None:
        agent.set_random_seed(drawn)
    return lambda observation: agent.predict(observation, deterministic=drawn is None)[0]


def _agent(venv: VecEnv, algorithm: str, cfg: PPOConfig | SACConfig, folder: Path, seed: int) -> BaseAlgorithm:
    net: dict[str, Any] = {"net_arch": [cfg.width] * cfg.layers}
    how: dict[str, Any] = {"learning_rate": cfg.lr, "gamma": cfg.gamma, "seed": seed, "device": "cpu"}
    how["tensorboard_log"] = str(folder / "tensorboard")
    if algorithm == "ppo" and isinstance(cfg, PPOConfig):
        net["log_std_init"] = cfg.log_std
        batch = min(cfg.batch, cfg.rollout * venv.num_envs)
        agent = PPO(
            "MlpPolicy", venv, n_steps=cfg.rollout, batch_size=batch, n_epochs=cfg.epochs, gae_lambda=cfg.lam,
            clip_range=cfg.clip, policy_kwargs=net, **how,
        )  # fmt: skip
        for layer in (agent.policy.action_net, agent.policy.value_net):
            for weight in layer.parameters():
                weight.data.zero_()  # the library's first mean is small, ours is 0; its first values are anything
        agent.policy.log_std.requires_grad_(not cfg.fixed)
        return agent
    if algorithm == "sac" and isinstance(cfg, SACConfig):
        return SAC(
            "MlpPolicy", venv, buffer_size=min(cfg.buffer, cfg.steps), learning_starts=cfg.warmup, batch_size=cfg.batch,
            train_freq=1, gradient_steps=max(1, round(cfg.updates * venv.num_envs)), policy_kwargs=net,
            ent_coef="auto" if cfg.temperature is None else cfg.temperature, target_entropy=cfg.target_entropy, **how,
        )  # fmt: skip
    raise ImagineError(f"got algorithm {algorithm!r} with {type(cfg).__name__}, expected ppo or sac with its own.")


class _Curve(BaseCallback):
    """Collects finished episodes, and saves the agent at every point of the curve."""

    def __init__(self, folder: Path, steps: int, points: int, tell: OnProgress | None) -> None:
        super().__init__()
        self.folder, self.steps, self.every, self.tell = folder, steps, max(1, steps // points), tell
        self.ended: list[tuple[int, float, bool]] = []  # environment steps, return, success

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.ended.append((self.num_timesteps, info["episode"]["r"], info["is_success"]))
        if self.num_timesteps // self.every > (self.num_timesteps - self.training_env.num_envs) // self.every:
            self.save()
        if self.tell is not None:
            self.tell(min(self.num_timesteps, self.steps), self.steps)
        return True

    def save(self) -> None:
        """Write the agent whole: under another name first, then renamed."""
        with atomic_path(self.folder / "model.zip") as temporary:
            self.model.save(temporary)

    def points(self) -> list[dict[str, Any]]:
        """The learning curve; a point without episodes is left out."""
        rows = []
        for end in range(self.every, self.num_timesteps + self.every, self.every):
            own = [(r, s) for at, r, s in self.ended if end - self.every < at <= end]
            if own:
                reward, success = np.mean(own, axis=0)
                at = min(end, self.num_timesteps)
                rows.append({"steps": at, "episodes": len(own), "return": float(reward), "success": float(success)})
        return rows


def _lane(infos: Mapping[str, Any], lane: int) -> dict[str, Any]:
    """What one lane is told, as plain numbers and texts: its entries where their mask says that it has them."""
    own = {}
    for key, value in infos.items():
        if key.startswith("_") or key in ("final_obs", "final_info") or not np.any(infos.get("_" + key, [0])[lane]):
            continue
        entry = _lane(value, lane) if isinstance(value, dict) else value[lane]
        own[key] = entry.item() if isinstance(entry, np.generic) else entry
    return own
