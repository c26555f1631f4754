"""What a policy did in the dream and what came of it: groups of episodes from one start under one dream noise.

Members of a group differ in nothing but what the policy drew, so that the difference of their returns is the policy's
doing and not the world's (common random numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from imagine.agents.envs import DreamEnvs
from imagine.agents.finetune.kernel import FlowKernel, Moves
from imagine.agents.rollout import EpisodeRecord, OnProgress, episode_id, rollout
from imagine.model.batching import in_tiles
from imagine.model.kv_cache import ContextCache
from imagine.model.model import WorldActionModel
from imagine.policy.policy import JointPolicy
from imagine.questions import POLICY
from imagine.sampler import initial_noise, sample
from imagine.seeds import Stream, derive
from imagine.types import Batched, Chunk, Context, ImagineError, NoiseLevels

Wanted = Callable[[int], bool]
"""Whether to practise from a start seed."""
LEAST = 1e-4
"""A smaller spread of returns is none."""


def chosen(seeds: Iterable[int], wanted: Wanted, most: int) -> list[int]:
    """The first ``most`` wanted ones of some start seeds.

    Raises:
        ImagineError: none is wanted.
    """
    found = list(islice(filter(wanted, seeds), most))
    if not found:
        raise ImagineError("none of the start seeds belongs to a task that is practised; give other starts.")
    return found


@dataclass(frozen=True)
class Decisions(Batched):
    """R moments at which the policy chose a chunk.

    Attributes:
        context: what it saw.
        chain: (R, S + 1, K, A) float32, normalised: from the noise it drew to the chunk it carried out.
        advantage: (R,) float32, of the decision's episode.
        success: (R,) float32, 1 where the episode was judged a success in a dream believed to its end.
        episode: (R,) int64, which episode.
    """

    context: Context
    chain: Tensor
    advantage: Tensor
    success: Tensor
    episode: Tensor

    def __len__(self) -> int:
        return len(self.episode)

    def _map(self, change):  # type: ignore[no-untyped-def]
        return replace(super()._map(change), context=self.context._map(change))


@dataclass(frozen=True)
class Experience:
    """Episodes, and the decisions they are made of.

    Attributes:
        records: E episodes.
        group: (E,) int64, those of one start have one number.
        returns: (E,) float64, discounted.
        decisions: R of them.
    """

    records: list[EpisodeRecord]
    group: np.ndarray
    returns: np.ndarray
    decisions: Decisions

    def numbers(self) -> dict[str, float]:
        """What is worth a curve."""
        worst = [max(r.hallucination) for r in self.records]
        return {
            "return": float(self.returns.mean()),
            "success": float(np.mean([r.success for r in self.records])),
            "second_judge": float(second_verdicts(self.records).mean()),
            "inverse_error": float(np.mean([h for r in self.records for h in r.hallucination])),
            "worst_inverse_error": float(np.mean(worst)),
            "unbelievable": float(np.mean([r.unbelievable for r in self.records])),
            "chunks": float(sum(len(r.rewards) for r in self.records)),
        }


def second_verdicts(records: Sequence[EpisodeRecord]) -> np.ndarray:
    """(E,) bool, episodes that the second judge calls a success at any chunk; False where none watches."""
    return np.array([any(t.get("second", 0) > 0 for t in r.terms) for r in records])


class Explorer:
    """A ``Policy`` that explores with a kernel and remembers how each chunk came about."""

    def __init__(self, model: WorldActionModel, kernel: FlowKernel, steps: int) -> None:
        self.model, self.kernel, self.steps = model, kernel, steps
        self.encoder = JointPolicy(model, steps=steps)
        self.asked: list[tuple[Context, Tensor, list[int]]] = []

    @torch.inference_mode()
    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """See :class:`imagine.types.Policy`.

        Raises:
            ImagineError: no seeds or no episodes.
        """
        if seeds is None or episodes is None:
            raise ImagineError("exploration is kept by episode and drawn from seeds; give both.")
        context, own = self.encoder.context(observation), [int(s) for s in seeds]

        def explore(rows: Tensor) -> tuple[Tensor, ...]:
            some = [own[i] for i in rows.tolist()]
            chain = [initial_noise(self.model.chunk_shapes["action"], some, Stream.ACTION).to(context.video)]
            sample(
                self.model, POLICY, context.index(rows), steps=self.steps, noise=Chunk(action=chain[0]),
                move=Moves(self.kernel, some), callback=lambda _, chunk: chain.append(chunk.action),  # type: ignore[arg-type]
            )  # fmt: skip
            return self.model.restore_action(chain[-1]), torch.stack(chain, 1)

        action, chains = in_tiles(explore, len(own))
        self.asked.append((context, chains, [int(e) for e in episodes]))
        return action.cpu().numpy()

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Nothing to forget that anybody acts by; what was explored stays in ``asked``."""


def gather(
    envs: DreamEnvs,
    model: WorldActionModel,
    kernel: FlowKernel,
    seeds: Sequence[int],
    members: int,
    *,
    draw: int,
    steps: int = 4,
    discount: float = 0.9,
    on_progress: OnProgress | None = None,
) -> Experience:
    """Roll out a group of episodes from every seed.

    Args:
        envs: the dream.
        model: the policy.
        kernel: how it explores.
        seeds: one per group; each chooses start and dream noise.
        members: episodes per group.
        draw: another one gives other draws of the policy.
        steps: denoising steps of the policy.
        discount: per chunk.
        on_progress: called after every group of episodes.
    """
    explorer = Explorer(model, kernel, steps)
    starts = np.repeat(np.asarray(seeds, np.int64), members)
    draws = [derive(draw, i % members) for i in range(len(starts))]
    records = rollout(envs, explorer, starts.tolist(), policy_seed=draws, on_progress=on_progress)
    returns = np.array([returned(record, discount) for record in records])
    group = np.repeat(np.arange(len(seeds)), members)
    ids = [episode_id(int(start), one) for start, one in zip(starts, draws, strict=True)]
    return Experience(records, group, returns, _decisions(explorer, records, ids, advantages(returns, group)))


def _decisions(
    explorer: Explorer, records: list[EpisodeRecord], ids: Sequence[int], advantage: np.ndarray
) -> Decisions:
    """What the explorer was asked, with the episodes that it belongs to."""
    number = {episode: i for i, episode in enumerate(ids)}
    asked = [context.named() for context, _, _ in explorer.asked]
    context = Context(**{name: torch.cat([c[name] for c in asked]) for name in asked[0]})
    good = np.array([r.success and not r.unbelievable for r in records])
    at = torch.tensor([number[episode] for _, _, episodes in explorer.asked for episode in episodes])
    made = Decisions(
        context=context,
        chain=torch.cat([chain for _, chain, _ in explorer.asked]),
        advantage=torch.from_numpy(advantage).float()[at],
        success=torch.from_numpy(good).float()[at],
        episode=at,
    )
    return made._map(torch.clone)  # out of inference mode


def returned(record: EpisodeRecord, discount: float) -> float:
    """An episode's discounted return, in which the judge's verdict at the end counts by its probability.

    How sure the judge is tells more of what the same actions do than whether it is sure enough: near misses differ, and
    so do successes.
    """
    rewards, last = record.rewards, len(record.rewards) - 1
    doubt = 0.0 if record.probability is None else record.probability - float(record.success)
    return float(sum(discount**t * r for t, r in enumerate(rewards)) + discount**last * doubt)


def advantages(returns: np.ndarray, group: np.ndarray) -> np.ndarray:
    """(E,) returns less their group's mean, over the spread that is left in all groups together.

    A group is compared with itself alone, so that what cannot be done, or not be seen in the dream, is not held against
    what was tried there. Its spread is not its own unit: where nothing that the policy did mattered, little is learnt.

    Source: GRPO, arXiv:2402.03300, equation 4, without the division by each group's own deviation as in Dr. GRPO,
    arXiv:2503.20783.
    """
    means = np.bincount(group, returns) / np.maximum(np.bincount(group), 1)
    out = returns - means[group]
    spread = np.sqrt(np.square(out).mean())
    return out / spread if spread > LEAST else np.zeros(len(out))


def velocity(
    model: WorldActionModel, context: Context, x: Tensor, sigma: Tensor | float, cache: ContextCache | None = None
) -> Tensor:
    """The policy's flow velocity (B, K, A) at noisy chunks ``x`` (B, K, A), ``sigma`` a level or (B,) of them.

    ``cache`` is ``model.prefill(context)``, if at hand.
    """
    level = torch.full((len(x),), sigma, device=x.device) if isinstance(sigma, float) else sigma
    cache = model.prefill(context) if cache is None else cache
    out = model.velocity(Chunk(action=x), NoiseLevels(level, level), context, cache).action
    assert out is not None
    return out
