"""Worlds whose answers are known: a model-shaped object with the exact velocity of a linear-Gaussian world."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from imagine.questions import QUESTIONS, Question
from imagine.types import Chunk, Context, NoiseLevels


def flat(chunk: Chunk) -> Tensor:
    """Every present modality side by side, (B, n): action, video, proprio."""
    parts = (chunk.action, chunk.video, chunk.proprio)
    return torch.cat([x.flatten(1) for x in parts if x is not None], 1)


@dataclass
class LinearGaussianWorld:
    """a = M o + c + N(0, S_a);  o' = W a + B o + N(0, S_o');  o' is two latents and one proprioceptive number.

    Given o, the clean z = (a, o') is Gaussian with mean m(o) and covariance S. What the sampler holds is
    x = D z + E eps with D = diag(1 - sigma), E = diag(sigma), so with G = (D S D + E E)^-1 (x - D m):

        E[z | x] = m + S D G,    E[eps | x] = E G,    velocity = E[eps - z | x].

    A modality that is None is marginalised by leaving its rows and columns out of m and S.
    """

    answers: frozenset[Question] = frozenset(QUESTIONS.values())
    schedule_shift: float = 1.0
    chunk_shapes: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {"video": (1, 2, 1, 1), "proprio": (1, 1), "action": (2, 1)}
    )
    prefills: int = 0

    def __post_init__(self) -> None:
        def matrix(*rows: list[float]) -> Tensor:
            return torch.tensor(rows, dtype=torch.float64)

        self.act_on = matrix([0.8, -0.5], [0.3, 0.6])  # M
        self.act_bias = matrix([0.2, -0.4])[0]  # c
        self.act_noise = matrix([0.5, 0.2], [0.2, 0.8])  # S_a
        self.next_act = matrix([1.2, -0.3], [0.4, 0.9], [-0.7, 0.5])  # W
        self.next_on = matrix([0.9, 0.1], [-0.2, 0.7], [0.5, 0.5])  # B
        self.next_noise = matrix([0.4, 0.1, 0.0], [0.1, 0.6, -0.2], [0.0, -0.2, 0.3])  # S_o'

    # ------------------------------------------------------------------ what is true
    def context(self, o: list[float], lanes: int) -> Context:
        """``lanes`` copies of the observation ``o`` (two numbers, carried as proprioception)."""
        proprio = torch.tensor(o, dtype=torch.float64).expand(lanes, 1, 2)
        empty = torch.zeros(lanes, 1, 2, 1, 1, dtype=torch.float64)
        return Context(video=empty, proprio=proprio, text=torch.zeros(lanes, 1, 1, dtype=torch.float64))

    def mean(self, context: Context) -> Tensor:
        """E[(a, o') | o], (B, 5)."""
        o = context.proprio[:, -1]
        a = o @ self.act_on.T + self.act_bias
        return torch.cat([a, a @ self.next_act.T + o @ self.next_on.T], 1)

    def covariance(self) -> Tensor:
        """Cov[(a, o') | o], (5, 5)."""
        s, w = self.act_noise, self.next_act
        return torch.cat([torch.cat([s, s @ w.T], 1), torch.cat([w @ s, w @ s @ w.T + self.next_noise], 1)])

    def conditional(self, context: Context, wanted: slice, given: slice, value: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (n,) and covariance (n, n) of the wanted coordinates, given others; every lane has the same context."""
        m, s = self.mean(context)[0], self.covariance()
        gain = s[wanted, given] @ torch.linalg.inv(s[given, given])
        return m[wanted] + gain @ (value - m[given]), s[wanted, wanted] - gain @ s[given, wanted]

    # ------------------------------------------------------------------ the sampler's protocol
    def prefill(self, context: Context) -> int:
        """Count, so that a test can see whether a cache was reused."""
        self.prefills += 1
        return self.prefills

    def velocity(self, noisy: Chunk, sigma: NoiseLevels, context: Context, cache: Any, **_: Any) -> Chunk:
        """Exact E[eps - clean | noisy, o]."""
        names = [n for n in ("action", "video", "proprio") if getattr(noisy, n) is not None]
        at = {"action": [0, 1], "video": [2, 3], "proprio": [4]}
        keep = [i for n in names for i in at[n]]
        level = {"action": sigma.action, "video": sigma.video, "proprio": sigma.video}
        e = torch.stack([level[n] for n in names for _ in at[n]], 1).double()  # (B, n)
        same = bool((e == e[:1]).all())  # as in the sampler: one pair of levels for all lanes
        unique, lane = (e[:1], None) if same else torch.unique(e, dim=0, return_inverse=True)
        d, s = 1 - unique, self.covariance()[keep][:, keep]
        total = d[:, :, None] * s * d[:, None, :] + torch.diag_embed(unique**2)
        # velocity = (E - S D) G - m, for each distinct pair of levels
        gain = (torch.diag_embed(unique) - s * d[:, None, :]) @ torch.linalg.inv(total)
        m = self.mean(context)[:, keep]
        x = flat(noisy) - (1 - e) * m
        v = (x @ gain[0].T if same else torch.einsum("bij,bj->bi", gain[lane], x)) - m
        parts = dict(zip(names, v.split([len(at[n]) for n in names], 1), strict=True))
        return Chunk(**{n: p.view_as(getattr(noisy, n)) for n, p in parts.items()})


class StillModel:
    """Velocity zero everywhere: what comes out is the noise that went in."""

    schedule_shift = 1.0

    def __init__(self) -> None:
        self.answers = frozenset(QUESTIONS.values())
        self.chunk_shapes = {"video": (1, 2, 1, 1), "proprio": (1, 1), "action": (2, 1)}

    def prefill(self, context: Context) -> None:
        """Nothing to remember."""

    def velocity(self, noisy: Chunk, sigma: NoiseLevels, context: Context, cache: Any, **_: Any) -> Chunk:
        """Zeros for what is present."""
        return noisy._map(torch.zeros_like)
