"""Potential-based shaping: a judge's progress may guide a policy without changing which policy is best.

What this is: F = gamma Phi(s') - Phi(s), added to the reward of success, with Phi the judged progress. Along any
episode the sum telescopes, so that every policy's value moves by the same -Phi(s) and the optimal policy stays.
What this is not: a dense reward. Paying progress itself pays an agent for staying close to the goal instead of
reaching it, and it learns to hover there; Robo-Dopamine (arXiv:2512.23703) calls this the "semantic trap".

Source: Ng, Harada & Russell, "Policy invariance under reward transformations" (ICML 1999); potentials that depend on
time as well, such as a start that was never judged, keep the guarantee (Devlin & Kudenko, AAMAS 2012).
"""

from __future__ import annotations

import torch
from torch import Tensor

from imagine.types import ImagineError, ShapeError


def shaping(before: Tensor, after: Tensor, terminal: Tensor, gamma: float) -> Tensor:
    """What shaping adds to the reward of one step: gamma Phi(s') - Phi(s), with Phi(terminal) = 0.

    ``terminal`` is an end of the task itself, here the judged success, after which nothing can be earned. A step that
    is only truncated (time ran out, or the dream was no longer believable) is not terminal: the agent bootstraps from
    s', whose shaped value is V(s') - Phi(s'), so gamma Phi(s') must have been paid.

    Args:
        before: (B,) float, Phi(s), any unit of reward; judged progress lies in [0, 1].
        after: (B,) float, Phi(s'), likewise; ignored where terminal.
        terminal: (B,) bool, whether s' ends the task.
        gamma: the discount per step of the agent that is paid, in (0, 1].

    Returns:
        (B,) float32.

    Raises:
        ShapeError: shapes differ, a dtype is wrong, or a potential that counts is not finite.
        ImagineError: gamma is not in (0, 1].

    Source: Ng, Harada & Russell (1999); Phi(terminal) = 0 after Grzes, "Reward shaping in episodic reinforcement
    learning" (AAMAS 2017).
    """
    _check_gamma(gamma)
    _check("before", before, before.shape[:1])
    _check("after", after, before.shape)
    _check_mask("terminal", terminal, before.shape)
    after = torch.where(terminal, torch.zeros_like(after), after)
    if not bool(torch.isfinite(before).all() & torch.isfinite(after).all()):
        raise ShapeError("a potential is NaN or infinite, expected finite numbers; leave out what the judge voided.")
    return (gamma * after - before).float()


class Potential:
    """The last potential of each environment, so that an environment can pay shaping step by step."""

    def __init__(self, num_envs: int, gamma: float) -> None:
        """Start all of them at Phi = 0.

        Args:
            num_envs: how many environments there are.
            gamma: the agent's discount per environment step (one chunk), in (0, 1].

        Raises:
            ImagineError: no environments, or gamma is not in (0, 1].
        """
        _check_gamma(gamma)
        if num_envs < 1:
            raise ImagineError(f"got {num_envs} environments, expected 1 or more; pass their num_envs.")
        self.gamma = gamma
        self._last = torch.zeros(num_envs)

    def __len__(self) -> int:
        return len(self._last)

    def reset(self, rows: Tensor | None = None, phi: Tensor | None = None) -> None:
        """Begin new episodes.

        Args:
            rows: (B,) bool, which environments begin; None is all.
            phi: (B,) float, Phi of the first state, read only there. None is 0: that shifts all returns from
                one start alike and changes no policy.

        Raises:
            ShapeError: a wrong shape or dtype, or a potential that is not finite.
        """
        rows = torch.ones(len(self), dtype=torch.bool) if rows is None else rows
        _check_mask("rows", rows, self._last.shape)
        start = torch.zeros(len(self)) if phi is None else phi
        _check("phi", start, self._last.shape)
        rows = rows.to(self._last.device)
        self._last = self._finite(torch.where(rows, start.to(self._last), self._last))

    def step(self, phi: Tensor, terminal: Tensor, valid: Tensor | None = None) -> Tensor:
        """Pay one step of every environment and remember where it led.

        Args:
            phi: (B,) float, Phi(s'), also where the step was truncated; reset the row afterwards.
            terminal: (B,) bool, whether s' is a success that ends the task. Its potential is then 0.
            valid: (B,) bool, False where the judge could not tell; the row's last potential then stands for s' too,
                so that nothing is lost or gained by a judgement that is missing. None is all valid.

        Returns:
            (B,) float32, to be added to the reward.

        Raises:
            ShapeError: a wrong shape or dtype, or a potential that counts is not finite.
        """
        _check("phi", phi, self._last.shape)
        _check_mask("terminal", terminal, self._last.shape)
        last = self._last.to(phi)
        if valid is not None:
            _check_mask("valid", valid, self._last.shape)
            phi = torch.where(valid, phi, last)
        paid = shaping(last, phi, terminal, self.gamma)
        self._last = torch.where(terminal, torch.zeros_like(phi), phi).float()
        return paid

    def snapshot(self) -> Tensor:
        """What :meth:`restore` needs: (B,) float32, a copy."""
        return self._last.clone()

    def restore(self, snapshot: Tensor) -> None:
        """Go back to a snapshot.

        Raises:
            ShapeError: it is of another number of environments, or not finite.
        """
        _check("snapshot", snapshot, self._last.shape)
        self._last = self._finite(snapshot.float().clone())

    def _finite(self, phi: Tensor) -> Tensor:
        if not bool(torch.isfinite(phi).all()):
            raise ShapeError("a potential is NaN or infinite, expected finite numbers; judge the first state again.")
        return phi


def _check_gamma(gamma: float) -> None:
    if not 0 < gamma <= 1:
        raise ImagineError(f"gamma is {gamma}, expected more than 0 and at most 1; pass the agent's own discount.")


def _check(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != tuple(shape) or not x.is_floating_point():
        raise ShapeError(f"{name} is {tuple(x.shape)} {x.dtype}, expected {tuple(shape)} float; one per environment.")


def _check_mask(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != tuple(shape) or x.dtype != torch.bool:
        raise ShapeError(f"{name} is {tuple(x.shape)} {x.dtype}, expected {tuple(shape)} bool; one per environment.")
