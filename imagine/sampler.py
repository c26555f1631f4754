"""One integration loop answers every question. It knows noise levels and nothing of the network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from imagine.noise import schedule
from imagine.questions import Question, require
from imagine.seeds import Stream, derive
from imagine.types import Chunk, Context, NoiseLevels, ShapeError, seeded


class Velocity(Protocol):
    """What the sampler needs of a model; :class:`imagine.model.model.WorldActionModel` is one."""

    answers: frozenset[Question]
    chunk_shapes: dict[str, tuple[int, ...]]
    schedule_shift: float

    def prefill(self, context: Context) -> Any:
        """Do once what does not depend on the noise level."""
        ...

    def velocity(self, noisy: Chunk, sigma: NoiseLevels, context: Context, cache: Any) -> Chunk:
        """Flow velocity (eps - clean) of every present modality.

        It takes two more keywords: ``wanted``, names of modalities, where others are given and may be left out of the
        answer; and ``block_kv``, where the caller of :func:`sample` gives it.
        """
        ...


Transition = Callable[[int, Tensor, Tensor, float, float], Tensor]
"""One move of one modality: (step, x, velocity, sigma now, sigma next) to the next x."""


def euler(step: int, x: Tensor, velocity: Tensor, sigma: float, to: float) -> Tensor:
    """Along the probability-flow ODE: x + (to - sigma) velocity."""
    return x + (to - sigma) * velocity


class Inpaint:
    """Euler steps at whose levels the beginning of a chunk is what is known of it, so that the rest goes on from there.

    One object serves one call of :func:`sample`: what the known part is mixed with is the noise that it starts from.

    Source: Lugmayr et al. (2022), RePaint, arXiv:2201.09865, on the straight paths of flow matching.
    """

    def __init__(self, known: Tensor) -> None:
        """``known`` (B, D, ...) clean, normalised: the first D entries of the chunk."""
        self.known = known
        self._noise: Tensor | None = None

    def __call__(self, step: int, x: Tensor, velocity: Tensor, sigma: float, to: float) -> Tensor:
        """See :data:`Transition`."""
        size = self.known.shape[1]
        if self._noise is None:
            self._noise = x[:, :size]
        moved = euler(step, x, velocity, sigma, to)
        return torch.cat([(1 - to) * self.known + to * self._noise, moved[:, size:]], 1)


def draw_noise(
    shape: tuple[int, ...], n: int, seeds: Sequence[int] | None, generator: torch.Generator | None
) -> Tensor:
    """Standard normal (n, *shape) float32 on the CPU; with ``seeds``, row i depends on seeds[i] alone."""
    if seeds is None:
        return torch.randn(n, *shape, generator=generator)
    if len(seeds) != n:
        raise ShapeError(f"got {len(seeds)} seeds for {n} rows; give one per row.")
    return torch.stack([torch.randn(*shape, generator=seeded(s)) for s in seeds])


def initial_noise(shape: tuple[int, ...], seeds: Sequence[int], stream: Stream) -> Tensor:
    """What :func:`sample` starts a modality from at temperature 1: (len(seeds), *shape) float32 standard normal.

    Args:
        shape: of one chunk, ``model.chunk_shapes[name]``.
        seeds: one per row, any whole numbers.
        stream: VIDEO, PROPRIO or ACTION. Each has its own: the action noise is the same whether or not video is drawn.
    """
    return draw_noise(shape, len(seeds), [derive(s, stream) for s in seeds], None)


def sample(
    model: Velocity,
    question: Question,
    context: Context,
    *,
    video: Tensor | None = None,
    proprio: Tensor | None = None,
    action: Tensor | None = None,
    steps: int = 4,
    seeds: Sequence[int] | None = None,
    generator: torch.Generator | None = None,
    noise: Chunk | None = None,
    temperature: float = 1.0,
    cache: Any = None,
    move: Transition | Mapping[str, Transition] = euler,
    grid: Tensor | None = None,
    calls: Collection[int] | None = None,
    block_kv: Any = None,
    callback: Callable[[int, Chunk], None] | None = None,
) -> Chunk:
    """Answer one question about a batch of contexts by integration along its path in the noise square.

    Args:
        model: gives velocities.
        question: POLICY, DYNAMICS, INVERSE, JOINT, VIDEO, or any other path.
        context: B contexts.
        video: (B, F, C, h, w) clean latents; must be given exactly where the question starts video at 0.
        proprio: (B, F, P) clean, normalised; goes with ``video``.
        action: (B, K, A) clean, normalised; must be given exactly where the question starts action at 0.
        steps: moves along the path, each after a network call unless ``calls`` says otherwise.
        seeds: one per row, any whole numbers: a row's noise does not depend on its batch; else ``generator``.
        generator: CPU generator for the whole batch.
        temperature: scale of the drawn noise; below 1 answers crowd round the likely ones, above 1 they spread.
        noise: the initial noise itself (any missing modality is drawn); RL in noise space steers with it.
        cache: what ``model.prefill(context)`` returned, if the caller asks several questions of one context.
        move: how a modality gets from one level to the next; stochastic ones keep the marginals and let RL explore. One
            for all, or one by name where they remember what they did.
        grid: (steps + 1,) levels from 1 to 0; by default evenly spaced, shifted by ``model.schedule_shift``.
        calls: the steps before which the network is asked, the first among them; at others its last velocity serves
            once more, as in DreamZero's cache of velocities.
        block_kv: filled by the last call, for models that have it (:class:`imagine.model.kv_cache.BlockKV`).
        callback: called after each step with (step, chunk so far).

    Returns:
        Chunk with every modality that takes part; what was given comes back unchanged.

    Raises:
        UntrainedQuestion: the checkpoint was not trained for it.
        ShapeError: a given modality is missing, superfluous or has the wrong shape.

    Source: Euler solution of the probability-flow ODE, Lipman et al. (2023), arXiv:2210.02747; decoupled levels: UWM.
    """
    require(question, model.answers)
    given = {"video": video, "proprio": proprio, "action": action}
    paths = {"video": question.video, "proprio": question.video, "action": question.action}
    paths = {n: path for n, path in paths.items() if n in model.chunk_shapes}  # DreamZero never predicts the next state
    asked = _asked(steps, calls)
    _check_given(model, question, given, paths, len(context))

    x = {n: given[n] if path == (0.0, 0.0) else None for n, path in paths.items()}
    for name in (n for n, (begin, end) in paths.items() if begin != end):
        start = getattr(noise, name, None) if noise is not None else None
        if start is None:
            each = None if seeds is None else [derive(s, Stream[name.upper()]) for s in seeds]
            start = temperature * draw_noise(model.chunk_shapes[name], len(context), each, generator)
        want = (len(context), *model.chunk_shapes[name])
        if tuple(start.shape) != want:
            raise ShapeError(f"noise for {name} has shape {tuple(start.shape)}, expected {want}.")
        x[name] = start.to(context.video)
    chunk = Chunk(**x)
    cache = model.prefill(context) if cache is None else cache
    grid = _grid(model, steps, grid)
    moves = move if isinstance(move, Mapping) else dict.fromkeys(paths, move)
    levels = {n: (grid * (a - b) + b).tolist() for n, (a, b) in paths.items()}
    ones = torch.ones(len(context), device=context.video.device)
    moving = {n for n, path in paths.items() if x[n] is not None and path[0] != path[1]}
    asking: dict[str, Any] = {} if all(x[n] is None or n in moving for n in paths) else {"wanted": moving}
    for k in range(steps):
        sigma = NoiseLevels(video=ones * levels["video"][k], action=ones * levels["action"][k])
        if k in asked:
            leave = {} if block_kv is None or k != asked[-1] else {"block_kv": block_kv}
            v = model.velocity(chunk, sigma, context, cache, **asking, **leave)
        moved = {
            n: moves[n](k, getattr(chunk, n), getattr(v, n), levels[n][k], levels[n][k + 1])
            for n in moving
            if levels[n][k] != levels[n][k + 1]
        }
        chunk = replace(chunk, **moved, memory=v.memory)
        if callback is not None:
            callback(k, chunk)
    return chunk


def _grid(model: Velocity, steps: int, grid: Tensor | None) -> Tensor:
    """(steps + 1,) levels."""
    grid = schedule(steps, model.schedule_shift) if grid is None else grid
    if tuple(grid.shape) != (steps + 1,):
        raise ShapeError(f"grid has shape {tuple(grid.shape)}, expected ({steps + 1},): one level more than steps.")
    return grid


def _asked(steps: int, calls: Collection[int] | None) -> Sequence[int]:
    """The steps before which the network is asked, in order."""
    if steps < 1:
        raise ShapeError(f"steps is {steps}, expected at least 1.")
    asked = range(steps) if calls is None else sorted(set(calls))
    if not asked or asked[0] != 0 or asked[-1] >= steps:
        raise ShapeError(f"calls are {list(asked)}, expected 0 and others below the {steps} steps.")
    return asked


def _check_given(
    model: Velocity, question: Question, given: dict[str, Tensor | None], paths: dict[str, tuple[float, float]], n: int
) -> None:
    for name, value in given.items():
        must = paths.get(name) == (0.0, 0.0)
        if must != (value is not None):
            verb = "needs" if must else "does not take"
            raise ShapeError(f"{question.name} {verb} a clean {name}; {'give' if must else 'drop'} `{name}=`.")
        want = (n, *model.chunk_shapes.get(name, ()))
        if value is not None and tuple(value.shape) != want:
            raise ShapeError(f"{name} has shape {tuple(value.shape)}, expected {want}.")
