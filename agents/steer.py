"""Steering: a few numbers that steer a policy, and one flat vector to choose them from, in the dream and on the robot.

What this is: the face of a dream for stock reinforcement learning. A chunk of K x A actions is too much to explore, and
the pixels too much to read; what is left is ``slow`` x A numbers in, one vector of latents out. An agent that is a
small network of any library then improves a frozen policy of any size.
What this is not: a copy of DSRL. Only the slow part of the noise is the agent's, the rest stays random, so that the
action is small and an untrained agent of mean 0 and deviation 1 is the policy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from imagine.agents.memory import EpisodeMemory
from imagine.agents.rollout import decision_seed
from imagine.agents.search import cosines, mix, unmix
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.sampler import initial_noise
from imagine.seeds import FreshSeeds, Stream
from imagine.types import Context, ImagineError
from imagine.world.dream import Dream
from imagine.world.env import Outcome

Agent = Callable[[np.ndarray], np.ndarray]
"""What learnt: numbers (N, slow * A) for observations (N, D); see :class:`Steering`."""
How = Literal["noise", "residual", "chunk"]
Sees = Literal["latents", "nothing"]


class SteerConfig(BaseModel):
    """What the agent's numbers mean.

    Attributes:
        how: ``noise``: the slow part of the noise that the policy starts from (DSRL, arXiv:2506.15799).
            ``residual``: what is added to the policy's chunk (residual RL, arXiv:1812.03201).
            ``chunk``: the chunk itself; no policy is asked.
        slow: cosines over a chunk that the agent sets per action dimension; the first is the chunk's mean.
        limit: of ``noise``, in standard deviations. Within the square root of 3 uniform numbers have variance 1, as a
            library wants that explores uniformly (SAC of Stable-Baselines3). Further out there is noise that the policy
            has hardly ever begun from: what it does then, neither it nor the dream has learnt.
        reach: of the other two: root mean square over a chunk, in normalised action units, of one cosine at action 1.
        sees: ``latents``: what the class describes. ``nothing``: a zero. Such an agent can only learn which numbers are
            good everywhere; a few thousand steps say no more than that, and what it cannot see cannot mislead it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    how: How = "noise"
    slow: Annotated[int, Field(gt=0)] = 3
    limit: Annotated[float, Field(gt=0)] = 3**0.5
    reach: Annotated[float, Field(gt=0)] = 0.5
    sees: Sees = "latents"


class Steering:
    """What an agent sees and what its numbers do, around a frozen policy; dream and robot share it.

    What is seen (D,) float32: the newest latent frame, what it lacks of the episode's first one (start minus newest),
    proprioception, all normalised, and the instruction's word embeddings pooled: an agent without a memory sees what
    has changed. Each part is divided by the square root of its size; otherwise 1,500 numbers of image drown the words,
    and no agent learns from a few thousand steps what it was told.
    Its numbers are (slow * A,) float32, cosine by cosine.
    """

    def __init__(self, model: WorldActionModel, policy: JointPolicy | None, cfg: SteerConfig | None = None) -> None:
        """Steer a policy.

        Args:
            model: says what a chunk and a latent frame look like.
            policy: of the model's embodiment; None only where ``cfg.how`` is ``chunk``.
            cfg: what the numbers mean.

        Raises:
            ImagineError: there is no policy to steer, it is of another embodiment, or ``slow`` exceeds the chunk.
        """
        self.model, self.policy, self.cfg = model, policy, cfg or SteerConfig()
        k, a = self._shape = model.chunk_shapes["action"]
        if policy is None and self.cfg.how != "chunk":
            raise ImagineError(f"how={self.cfg.how!r} steers a policy, got none; give one, or use how='chunk'.")
        if policy is not None and policy.model.body != model.body:
            raise ImagineError(
                f"the policy is for embodiment {policy.model.body.name!r}, expected {model.body.name!r}."
            )
        if self.cfg.slow > k:
            raise ImagineError(f"slow is {self.cfg.slow}, expected at most the {k} actions of a chunk.")
        self._rows = cosines(self.cfg.slow, k).to(model.device)
        frame = int(np.prod(model.chunk_shapes["video"][1:]))
        d = 1 if self.cfg.sees == "nothing" else 2 * frame + model.body.proprio_dim + model.text_shape[1]
        most = self.cfg.limit if self.cfg.how == "noise" else 1.0
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (d,), np.float32)
        self.action_space = gym.spaces.Box(-most, most, (self.cfg.slow * a,), np.float32)

    @torch.inference_mode()
    def look(self, now: Tensor, start: Tensor, proprio: Tensor, text: Tensor) -> np.ndarray:
        """What agents see, (N, D) float32.

        Args:
            now: (N, ...) newest latent frame of every row, normalised.
            start: likewise, the episode's first one.
            proprio: (N, P), normalised.
            text: (N, L, C) word embeddings.
        """
        if self.cfg.sees == "nothing":
            return np.zeros((len(now), 1), np.float32)
        now, start = now.flatten(1), start.flatten(1)
        parts = (now, start - now, proprio, text.sum(1))
        return torch.cat([x / x.shape[1] ** 0.5 for x in parts], 1).float().cpu().numpy()

    @torch.inference_mode()
    def chunks(self, context: Context | None, seeds: Sequence[int], actions: np.ndarray) -> np.ndarray:
        """What the rows do: (N, slow * A) float32 to (N, K, A) float32 in robot units, within bounds.

        ``context`` is what the policy sees, if there is one, and ``seeds`` what it draws from.
        """
        slow = torch.from_numpy(np.asarray(actions, np.float32)).to(self._rows).unflatten(1, (self.cfg.slow, -1))
        if self.cfg.how == "noise":
            assert context is not None
            return self._denoised(context, seeds, slow)
        wave = self.cfg.reach * self._shape[0] ** 0.5 * (slow[:, :, None] * self._rows[:, :, None]).sum(1)
        if self.cfg.how == "chunk":
            return self.model.restore_action(wave).cpu().numpy()
        assert self.policy is not None and context is not None
        own = self.policy.act_on(context, seeds)  # in robot units, so that action 0 changes no bit
        moved = own + (wave * self.model.action_std).cpu().numpy()
        return np.clip(moved, self.model.body.action_low, self.model.body.action_high)

    @torch.inference_mode()
    def unsteered(self, seeds: Sequence[int]) -> np.ndarray:
        """The numbers (N, slow * A) that leave the policy as it is; those of ``noise`` may exceed the limit.

        For ``chunk``, which has no policy, the mean chunk.
        """
        if self.cfg.how != "noise":
            return np.zeros((len(seeds), *self.action_space.shape), np.float32)
        return unmix(self._rows, self._own_noise(seeds)).flatten(1).cpu().numpy()

    def _own_noise(self, seeds: Sequence[int]) -> Tensor:
        """(N, K, A) float32 standard normal: what the policy would start from."""
        return initial_noise(self._shape, seeds, Stream.ACTION).to(self._rows)

    def _denoised(self, context: Context, seeds: Sequence[int], slow: Tensor) -> np.ndarray:
        """The policy's chunks from noise whose slow part is given, (N, slow, A).

        White noise in an orthonormal basis is white, so that N(0, I) actions are the policy itself.
        Source: DSRL, arXiv:2506.15799; there the agent sets all of the noise.
        """
        assert self.policy is not None
        own = self._own_noise(seeds)
        change = mix(self._rows, (slow - unmix(self._rows, own))[:, None])[:, 0]
        return self.policy.act_on(context, seeds, noise=self.policy.temperature * (own + change))


class Steered:
    """A ``World`` around a dream and a policy; both are this world's own from now on.

    Observations and actions are those of :class:`Steering`. Lanes are independent: what the policy draws depends on the
    row's seed and step alone, and is what ``imagine.agents.rollout`` makes it draw.
    """

    def __init__(self, dream: Dream, policy: JointPolicy | None, cfg: SteerConfig | None = None) -> None:
        """Steer a policy through a dream; arguments and errors are those of :class:`Steering`."""
        self.dream, self.steering = dream, Steering(dream.model, policy, cfg)
        self.single_observation_space = self.steering.observation_space
        self.single_action_space = self.steering.action_space
        self.metadata = dream.metadata

    def allocate(self, num_envs: int) -> None:
        """Make room for ``num_envs`` environments."""
        self.dream.allocate(num_envs)

    def reset(self, lanes: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Begin an episode in some environments; see :meth:`imagine.world.dream.Dream.reset`."""
        return self.dream.reset(lanes, seeds, options)

    def step(self, actions: np.ndarray) -> Outcome:
        """Imagine the chunk that (N, slow * A) float32 actions lead to in every environment."""
        return self.dream.step(self.chunks(actions))

    def observe(self) -> np.ndarray:
        """(N, D) float32; see :class:`Steering`."""
        dream = self.dream
        return self.steering.look(dream.video[:, -1], dream.start_video, dream.proprio[:, -1], dream.text)

    def snapshot(self) -> Any:
        """Everything that the future depends on; a policy keeps no history."""
        return self.dream.snapshot()

    def restore(self, state: Any) -> None:
        """Go back to a snapshot."""
        self.dream.restore(state)

    def frames(self, lane: int) -> np.ndarray:
        """(F, H, W, 3) uint8, the newest chunk of one environment."""
        return self.dream.frames(lane)

    def chunks(self, actions: np.ndarray) -> np.ndarray:
        """What is done now: (N, slow * A) float32 to (N, K, A) float32 in robot units, within bounds."""
        policy = self.steering.policy
        context = None if policy is None else policy.context(self.dream.observe())
        return self.steering.chunks(context, self.seeds(), actions)

    def unsteered(self) -> np.ndarray:
        """What leaves the policy of every environment as it is now; see :meth:`Steering.unsteered`."""
        return self.steering.unsteered(self.seeds())

    def seeds(self) -> list[int]:
        """What the policy draws from in each environment now; the same as in :func:`imagine.agents.rollout.rollout`."""
        return [decision_seed(int(s), int(k)) for s, k in zip(self.dream.seeds, self.dream.steps, strict=True)]


class SteeredPolicy:
    """A ``Policy``: what an agent that learnt in the dream does with the policy on the robot."""

    def __init__(self, steering: Steering, agent: Agent) -> None:
        """``agent`` chooses among the actions of ``steering``."""
        self.steering, self.agent = steering, agent
        self._encoder = steering.policy or JointPolicy(steering.model)
        self._starts = EpisodeMemory[Tensor]()
        self._fresh = FreshSeeds()

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`. Same bytes for the same seed only if the agent draws nothing of its own.

        What an episode showed first is remembered until it is reset.
        """
        context = self._encoder.context(observation)
        now = context.video[:, -1]
        keys = self._starts.keys_of(len(now), episodes)
        start = torch.stack([self._starts.setdefault(key, now[i]) for i, key in enumerate(keys)])
        seen = self.steering.look(now, start, context.proprio[:, -1], context.text)
        each = self._fresh(len(now)) if seeds is None else seeds
        return self.steering.chunks(context, each, self.agent(seen))

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Forget how these episodes began, or all."""
        self._starts.forget(episodes)


class UnsteeredPolicy:
    """A ``Policy`` of a steered dream whose numbers leave the policy there as it is."""

    def __init__(self, steering: Steering) -> None:
        """``steering`` says what changes nothing."""
        self.steering = steering
        self._fresh = FreshSeeds()

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """(N, slow * A) float32; see :class:`imagine.types.Policy`."""
        return self.steering.unsteered(self._fresh(len(observation["state"])) if seeds is None else seeds)

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Nothing to forget."""


class AgentPolicy:
    """A ``Policy`` of a world whose observation is one vector: what an agent does there."""

    def __init__(self, agent: Agent) -> None:
        """``agent`` chooses; its draws, if any, are its own."""
        self.agent = agent

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`."""
        return self.agent(observation["state"])

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Nothing to forget."""


def require_how(how: str) -> How:
    """``how`` as the type that :class:`SteerConfig` wants.

    Raises:
        ImagineError: there is no such way to steer.
    """
    if how not in get_args(How):
        raise ImagineError(f"how is {how!r}, expected one of {', '.join(get_args(How))}.")
    return how  # type: ignore[return-value]


def require_sees(sees: str) -> Sees:
    """``sees`` as the type that :class:`SteerConfig` wants.

    Raises:
        ImagineError: there is no such observation.
    """
    if sees not in get_args(Sees):
        raise ImagineError(f"sees is {sees!r}, expected one of {', '.join(get_args(Sees))}.")
    return sees  # type: ignore[return-value]
