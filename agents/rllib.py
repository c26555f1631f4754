"""Our environment in RLlib: its new API stack, natively batched, PPO, runners spread over the nodes of a Ray cluster.

What this is: the distributed way to learn in a dream. Every env runner is a process with lanes of its own; Ray places
them, RLlib collects and learns. What this is not: a scheduler or an algorithm of ours; :func:`ppo_config` hands out
the plain ``PPOConfig`` to whoever wants to go on alone.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from pydantic import BaseModel, ConfigDict, Field

from imagine.agents.cluster import connected, errors_as_ours, local_cluster, quiet
from imagine.agents.rollout import OnProgress
from imagine.agents.statistics import mean_interval
from imagine.agents.steer import Agent
from imagine.extras import extra
from imagine.files import atomic_path, recover_folder
from imagine.types import ImagineError
from imagine.world.env import WorldModelVectorEnv

with extra("rl"):
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
    from ray.rllib.utils.spaces.space_utils import unsquash_action
    from ray.tune import register_env

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

Make = Callable[[int], WorldModelVectorEnv]
"""Makes an environment of this many lanes; it is pickled, and called in every runner."""

EPISODES = "imagined_episodes"  # where RLlib's results of env runners hold ours
Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


class RLlibConfig(BaseModel):
    """Where PPO runs and how it learns.

    Attributes:
        runners: processes that imagine.
        lanes: of each runner, stepped together.
        nodes: of the local Ray cluster, over which the runners are spread evenly.
        address: of an existing Ray cluster, instead of a local one.
        cpus: that Ray sets aside for a runner; on a cluster of yours, more than half a node's keep two runners apart.
        steps: environment steps (chunks) in all.
        train_batch: environment steps between two updates, over all runners.
        minibatch: environment steps of one gradient step.
        epochs: passes over a training batch.
        initial_std: of the untrained agent's actions, in halves of the action's range; their mean is the range's
            middle. 1 / sqrt(3) is the standard normal noise that a steered policy begins from by itself.
        fixed: keep that deviation; see :class:`imagine.agents.sb3.PPOConfig`.
        window: environment steps of the first and of the last window, whose episodes are compared; at most a quarter
            of all.
        save_every: updates between two checkpoints.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    runners: Count = 2
    lanes: Count = 8
    nodes: Count = 2
    address: str | None = None
    cpus: Count = 1
    steps: Count = 4096
    lr: Positive = 2e-3
    train_batch: Count = 256
    minibatch: Count = 256
    epochs: Count = 10
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95  # per chunk
    lambda_: Annotated[float, Field(ge=0, le=1)] = 0.5
    clip: Positive = 0.4
    entropy: Annotated[float, Field(ge=0)] = 0.0
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (16,)
    initial_std: Positive = 3**-0.5
    fixed: bool = False
    window: Count = 1024
    save_every: Count = 20


class CalmPPOModule(DefaultPPOTorchRLModule):
    """RLlib's own network, which begins at mean 0, value 0 and a given deviation instead of somewhere random."""

    def setup(self) -> None:
        """Build it, then calm its last layers."""
        super().setup()
        for weight in self.vf.parameters():
            weight.data.zero_()
        last = [m for m in self.pi.net.modules() if isinstance(m, torch.nn.Linear)][-1]
        with torch.no_grad():
            self.pi.log_std.fill_(math.log(self.model_config["initial_std"]))  # type: ignore[index]
            self.pi.log_std.requires_grad_(not self.model_config["fixed_std"])  # type: ignore[index]
            last.weight.mul_(0.01)
            last.bias.zero_()


class FrankEnvRunner(SingleAgentEnvRunner):
    """RLlib's own runner, but an error comes back as it was; theirs exits, and leaves the reason in a log."""

    def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function with this runner."""
        try:
            return func(self, *args, **kwargs)
        except RuntimeError as error:  # what RLlib raises from the error of a step
            raise error.__cause__ or error from None


class DistinctLanes(gym.vector.VectorWrapper):
    """Seeds lanes so that no two runners share a start; to RLlib, runner i has seed + i, as lane i has to Gymnasium."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's, but an int stands for N unrelated seeds."""
        if seed is not None:
            seed = (np.random.SeedSequence(seed).generate_state(self.num_envs, np.uint64) >> 1).tolist()
        return self.env.reset(seed=seed, options=options)


def rllib_env_creator(make: Make) -> Callable[[Mapping[str, Any]], gym.vector.VectorEnv[Any, Any, Any]]:
    """What RLlib's registry wants; it needs ``gym_env_vectorize_mode="vector_entry_point"``, as :func:`ppo_config` has.

    The creator raises ImagineError for what RLlib would take and silently misread (another autoreset mode than
    NEXT_STEP), and for spaces that its default networks do not know.
    """

    def create(context: Mapping[str, Any]) -> gym.vector.VectorEnv[Any, Any, Any]:
        if "num_envs" not in context:
            raise ImagineError(
                "RLlib asked for a single environment, expected it to ask for lanes; say "
                '.env_runners(gym_env_vectorize_mode="vector_entry_point") in its config.'
            )
        return DistinctLanes(_checked(make(context["num_envs"])))

    return create


def register_rllib(name: str, make: Make) -> str:
    """Make an environment known to RLlib, in this process and in its runners; returns ``name``."""
    register_env(name, rllib_env_creator(make))
    return name


def ppo_config(env: str, cfg: RLlibConfig, seed: int = 0) -> PPOConfig:
    """A plain PPOConfig on a registered environment, to be changed at will and built with ``build_algo()``."""
    network = {
        "fcnet_hiddens": list(cfg.hidden), "fcnet_activation": "tanh", "vf_share_layers": False,
        "free_log_std": True, "initial_std": cfg.initial_std, "fixed_std": cfg.fixed,
    }  # fmt: skip
    config = PPOConfig().environment(env).framework("torch").callbacks(on_episode_end=_record_episode)
    config.env_runners(
        env_runner_cls=FrankEnvRunner, num_env_runners=cfg.runners, num_envs_per_env_runner=cfg.lanes,
        num_cpus_per_env_runner=cfg.cpus, gym_env_vectorize_mode="vector_entry_point",
        sample_timeout_s=None,  # a dream may be slow; by default RLlib drops what took more than a minute
    )  # fmt: skip
    config.training(
        lr=cfg.lr, gamma=cfg.gamma, lambda_=cfg.lambda_, clip_param=cfg.clip, entropy_coeff=cfg.entropy,
        train_batch_size_per_learner=cfg.train_batch, minibatch_size=cfg.minibatch, num_epochs=cfg.epochs,
        use_kl_loss=False, vf_loss_coeff=0.5, grad_clip=0.5, grad_clip_by="global_norm",
    )  # fmt: skip
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=CalmPPOModule, model_config=network))
    config.fault_tolerance(restart_failed_env_runners=False)  # an error in a dream is to be seen, not repeated
    return config.debugging(seed=_rllib_seed(seed))


def learn_rllib(
    make_env: Make, cfg: RLlibConfig, folder: Path, seed: int, tell: OnProgress | None = None
) -> dict[str, Any]:
    """Train PPO on imagined lanes, in the Ray cluster that ``cfg`` describes or this process is connected to.

    Args:
        make_env: pickled, and called with ``cfg.lanes`` in every runner.
        cfg: where and how.
        folder: ``log/`` (TensorBoard) and ``checkpoint/``, from which a killed run goes on; see :func:`rllib_actor`.
        seed: of starts, dreams, network and exploration.
        tell: called with (environment steps done, ``cfg.steps``).

    Returns:
        ``curve``: per update, ``steps`` so far, ``episodes`` that ended, their mean ``return`` and ``success``.
        ``return_before``, ``return_after``, ``success_before``, ``success_after``: Intervals over the episodes of the
        first and of the last window. ``steps_per_second``, updates included. ``nodes``: one id per runner.

    Raises:
        ImagineError: RLlib cannot read this environment correctly, a runner failed, or no episode ended.
    """
    place: AbstractContextManager[Any] = nullcontext()
    if not ray.is_initialized():
        per_node = math.ceil(cfg.runners / cfg.nodes) * cfg.cpus
        place = connected(cfg.address) if cfg.address else local_cluster(cfg.nodes, per_node)
    past = _past(folder / "checkpoint")
    with quiet(), place, errors_as_ours():
        config = ppo_config(register_rllib("imagined", make_env), cfg, seed)
        config.debugging(log_level="CRITICAL", seed=_rllib_seed(seed, len(past["history"])))
        algorithm = config.build_algo()
        try:
            return _learn(algorithm, cfg, folder, past, tell)
        finally:
            algorithm.stop()
            shutil.rmtree(algorithm.logdir, ignore_errors=True)  # empty, and in the home folder


def rllib_actor(checkpoint: Path, drawn: int | None = None) -> Agent:
    """What was learnt, without Ray: observations (N, D) to the agent's mean actions (N, A) float32.

    With ``drawn``, a seed, to actions that it draws, as it does while it learns.
    """
    generator = None if drawn is None else torch.Generator().manual_seed(drawn)
    module = CalmPPOModule.from_checkpoint(checkpoint / "learner_group" / "learner" / "rl_module" / "default_policy")
    space = module.action_space
    assert isinstance(space, gym.spaces.Box)  # see _checked

    @torch.inference_mode()
    def act(observation: np.ndarray) -> np.ndarray:
        out = module.forward_inference({"obs": torch.as_tensor(observation, dtype=torch.float32)})
        mean, log_std = out["action_dist_inputs"].split(space.shape[0], 1)
        if generator is not None:
            mean = mean + log_std.exp() * torch.randn(mean.shape, generator=generator)
        return unsquash_action(mean.numpy(), space)

    return act


def _checked(env: WorldModelVectorEnv) -> WorldModelVectorEnv:
    mode, seen, acted = env.metadata.get("autoreset_mode"), env.single_observation_space, env.single_action_space
    if mode is not AutoresetMode.NEXT_STEP:
        raise ImagineError(
            f"the environment's autoreset mode is {getattr(mode, 'value', mode)}, expected NextStep: RLlib would take "
            "the first observation of an episode for the last of the one before; make it with "
            "autoreset_mode=AutoresetMode.NEXT_STEP."
        )
    if not isinstance(seen, gym.spaces.Box):
        raise ImagineError(
            f"observations are a {type(seen).__name__}, expected a Box: RLlib has no default network for others; "
            "use imagine.agents.steer.Steered, whose observation is one vector, or bring an RLModule of your own."
        )
    if not isinstance(acted, gym.spaces.Box) or len(acted.shape) != 1:
        raise ImagineError(f"actions are {acted}, expected a flat Box; use imagine.agents.steer.Steered.")
    return env


def _record_episode(*, episode: Any, prev_episode_chunks: Any, metrics_logger: Any, **_: Any) -> None:
    """RLlib callback, in the runner: (return, success) of an episode, of which ``episode`` is the last piece."""
    total = sum(piece.get_return() for piece in [*(prev_episode_chunks or ()), episode])
    metrics_logger.log_value(EPISODES, (float(total), float(episode.is_terminated)), reduce="item_series")


def _rllib_seed(seed: int, updates: int = 0) -> int:
    """(0, 2^31), to which RLlib adds the runner; a run that goes on does not begin with its first starts again."""
    return int(np.random.SeedSequence([seed, updates]).generate_state(1)[0] >> 1)


def _node(runner: Any) -> str:
    return ray.get_runtime_context().get_node_id()


def _learn(
    algorithm: Algorithm, cfg: RLlibConfig, folder: Path, past: dict[str, Any], tell: OnProgress | None
) -> dict[str, Any]:
    from torch.utils.tensorboard import SummaryWriter

    history, elapsed, done = past["history"], past["seconds"], 0
    if history:
        _restore(algorithm, folder / "checkpoint")
        done = history[-1]["steps"]
    nodes = algorithm.env_runner_group.foreach_env_runner(_node, local_env_runner=False)  # type: ignore[union-attr]
    begin = time.perf_counter() - elapsed
    with SummaryWriter(str(folder / "log"), purge_step=done + 1) as log:
        while done < cfg.steps:
            result = algorithm.train()
            sampled = result["env_runners"]
            if (now := int(sampled["num_env_steps_sampled_lifetime"])) <= done:
                raise ImagineError(f"RLlib collected nothing after {done} steps, expected more; are its runners alive?")
            done = now
            history.append({"steps": done, "episodes": [list(e) for e in sampled.get(EPISODES, ())]})
            for name, value in _scalars(result, history[-1]["episodes"]).items():
                log.add_scalar(name, value, done)
            elapsed = time.perf_counter() - begin
            if len(history) % cfg.save_every == 0 or done >= cfg.steps:
                _save(algorithm, folder / "checkpoint", {"history": history, "seconds": elapsed})
            if tell is not None:
                tell(min(done, cfg.steps), cfg.steps)
    return {
        **_summary(history, min(cfg.window, max(1, cfg.steps // 4))),
        "steps_per_second": done / elapsed,
        "nodes": nodes,
    }


def _scalars(result: Mapping[str, Any], episodes: list[Any]) -> dict[str, float]:
    """Numbers for TensorBoard."""
    learner = result["learners"]["default_policy"]
    scalars = {f"learner/{k}": float(learner[k]) for k in ("entropy", "policy_loss", "vf_loss", "vf_explained_var")}
    if episodes:
        scalars["imagined/return"], scalars["imagined/success"] = np.mean(episodes, 0).tolist()
    return scalars


def _summary(history: list[dict[str, Any]], window: int) -> dict[str, Any]:
    """Curve, and intervals over the first and the last window of steps."""
    parts = [np.array(update["episodes"], float).reshape(-1, 2) for update in history]
    ends = [update["steps"] for update in history]
    begins = [0, *ends[:-1]]
    spans = {
        "before": np.concatenate([part for part, begin in zip(parts, begins, strict=True) if begin < window]),
        "after": np.concatenate([part for part, end in zip(parts, ends, strict=True) if end > ends[-1] - window]),
    }
    if not all(map(len, spans.values())):
        raise ImagineError(f"no episode ended in a window of {window} steps, expected some; widen it.")
    curve = []
    for update, part in zip(history, parts, strict=True):
        mean = part.mean(0).tolist() if len(part) else [math.nan] * 2
        curve.append({"steps": update["steps"], "episodes": len(part), "return": mean[0], "success": mean[1]})
    names = {"return": 0, "success": 1}
    return {"curve": curve} | {f"{n}_{k}": mean_interval(v[:, i]) for n, i in names.items() for k, v in spans.items()}


def _save(algorithm: Algorithm, path: Path, state: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        algorithm.save_to_path(str(temporary.absolute()))
        (temporary / "history.json").write_text(json.dumps(state))


def _past(path: Path) -> dict[str, Any]:
    """``history`` of updates and ``seconds`` so far; empty and 0 without a checkpoint."""
    recover_folder(path)
    file = path / "history.json"
    return json.loads(file.read_text()) if file.is_file() else {"history": [], "seconds": 0.0}


def _restore(algorithm: Algorithm, path: Path) -> None:
    algorithm.restore_from_path(str(path.absolute()))
    learners, runners = algorithm.learner_group, algorithm.env_runner_group
    assert learners is not None and runners is not None
    # RLlib leaves its runners untrained; without its sequence number their module takes any weights for newer ones.
    weights = learners.get_state(components=["learner/rl_module"], inference_only=True)["learner"]["rl_module"]
    runners.foreach_env_runner(
        lambda runner: runner.set_state({"rl_module": weights}),  # type: ignore[attr-defined]
        local_env_runner=False,
    )
