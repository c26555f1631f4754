"""A network with random weights on one device, and our way of asking it, every saving of which can be switched off."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from imagine.model.blocks import per_group
from imagine.model.dit import JointDiT
from imagine.model.kv_cache import BlockKV, ContextCache
from imagine.questions import DYNAMICS, QUESTIONS, Question
from imagine.sampler import sample
from imagine.types import Chunk, Context, NoiseLevels

from .shapes import BLOCK, REMEMBERED, Network

SHIFT = 5.0  # of DreamZero's levels towards noise


def build(
    g: Network, device: torch.device, dtype: torch.dtype, *, skip: bool = False, parity: str = "clean", seed: int = 0
) -> JointDiT:
    """Random weights, made where they stay; norms, modulation tables and the time embedder are float32."""
    from imagine.wan.names import KEPT_FLOAT32

    with torch.device("meta"):
        dit = JointDiT(g.config(skip=skip, parity=parity))
    generator = torch.Generator(device).manual_seed(seed)
    for name, p in list(dit.named_parameters()):
        value = torch.empty(p.shape, device=device, dtype=torch.float32 if KEPT_FLOAT32.search(name) else dtype)
        value.normal_(generator=generator)
        if p.ndim > 1:
            value *= (p.shape[-1] if "scale_shift" in name else p[0].numel()) ** -0.5
        else:
            value *= 0.1
            value += float("norm" in name and name.endswith("weight"))
        parent, _, leaf = name.rpartition(".")
        setattr(dit.get_submodule(parent), leaf, torch.nn.Parameter(value, requires_grad=False))
    return dit.eval()


# ---------------------------------------------------------------------- what can be switched off
@contextmanager
def per_token(dit: JointDiT) -> Iterator[None]:
    """Everything is computed for every token: embeddings and modulations, and last blocks nobody looks at."""

    def run(
        x: Tensor, table: Any, sigma: Tensor, sizes: list[int], cache: ContextCache, *, steer: Tensor | None = None,
        alone: int = 0, block_kv: BlockKV | None = None, last: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        n = x.shape[1]

        def spread(each: Tensor) -> Tensor:
            return per_group(each, sizes).expand(-1, n, -1)

        steer = None if steer is None else spread(steer)
        hidden, normed, emb = type(dit)._run(
            dit, x, table, spread(sigma[..., None])[..., 0], [n], cache, steer=steer, alone=alone, block_kv=block_kv
        )
        first = [sum(sizes[:i]) for i in range(len(sizes))]
        return hidden, normed, torch.cat([emb[:, i : i + 1] for i in first], 1)

    dit._run = run  # type: ignore[method-assign]
    try:
        yield
    finally:
        del dit._run


@contextmanager
def uncompiled(dit: JointDiT) -> Iterator[None]:
    """Blocks run as written for a while."""
    fused = [block._compiled_call_impl for block in dit.blocks]
    for block in dit.blocks:
        block._compiled_call_impl = None
    try:
        yield
    finally:
        for block, call in zip(dit.blocks, fused, strict=True):
            block._compiled_call_impl = call


def compile_blocks(dit: JointDiT) -> None:
    """Fuse each block; one compilation serves all, and from the second number of lanes on any number."""
    torch._dynamo.config.recompile_limit = 64
    for block in dit.blocks:
        block.compile()


class Graph:
    """Work whose kernels are recorded once and replayed; on a CPU it is just called."""

    def __init__(self, work: Callable[[], Any], device: torch.device):
        self.work, self.graph = work, None
        if device.type != "cuda":
            return
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):
                work()
        torch.cuda.current_stream(device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = work()

    def __call__(self) -> Any:
        if self.graph is None:
            return self.work()
        self.graph.replay()
        return self.result


# ---------------------------------------------------------------------- asking
@dataclass
class Asked:
    """What the sampler needs of a model, around a bare JointDiT: latents float32, network in its own precision."""

    dit: JointDiT
    shapes: dict[str, tuple[int, ...]]
    dtype: torch.dtype
    reread: bool = False  # keys and values of text and image anew at every call
    schedule_shift: float = SHIFT
    answers: frozenset[Question] = frozenset(QUESTIONS.values())

    @property
    def chunk_shapes(self) -> dict[str, tuple[int, ...]]:
        return self.shapes

    def prefill(self, context: Context) -> ContextCache:
        return self.dit.prefill(context)

    def velocity(
        self,
        noisy: Chunk,
        sigma: NoiseLevels,
        context: Context,
        cache: ContextCache,
        block_kv: BlockKV | None = None,
        wanted: Collection[str] | None = None,
    ) -> Chunk:
        if self.reread:
            new = self.dit.read(context)
            cache = replace(
                cache, text_keys=new.text_keys, text_values=new.text_values, image_keys=new.image_keys,
                image_values=new.image_values,
            )  # fmt: skip
        return self.dit(noisy.to(self.dtype), sigma, cache, block_kv, wanted).to(torch.float32)


@dataclass
class Session:
    """Some lanes with a full memory: what is asked about, and where its answers go. Addresses stay."""

    dit: JointDiT
    g: Network
    context: Context
    cache: ContextCache
    noise: Chunk
    state: Tensor
    newest: Tensor

    @classmethod
    def begin(cls, dit: JointDiT, g: Network, lanes: int, *, ring: bool = True, seed: int = 1) -> Session:
        """One lane is read and repeated; a ring is reserved unless told otherwise."""
        weight = dit.blocks[0].scale_shift_table
        device, dtype = weight.device, dit.patch_embedding.weight.dtype
        generator = torch.Generator(device).manual_seed(seed)

        def draw(*shape: int, to: torch.dtype = dtype) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator).to(to)

        size, width = (g.channels, g.height, g.width), g.registers.state_dim
        given = (g.condition, g.height, g.width)
        context = Context(
            video=draw(1, REMEMBERED, *size), proprio=draw(1, REMEMBERED, width), text=draw(1, g.words, g.text_dim),
            image=draw(1, g.picture, g.image_dim) if g.picture else None,
            condition=draw(1, REMEMBERED + BLOCK, *given) if g.condition else None,
        )  # fmt: skip
        with uncompiled(dit):  # its many lengths are not worth fusing for
            cache = dit.prefill(context)
        if lanes > 1:
            cache, context = cache.repeat(lanes), context.repeat(lanes)
        if ring:
            cache.reserve(BLOCK * g.cells() + g.actions + 1)
        state = draw(lanes, 1, width)
        cache.last_proprio = state[:, -1]
        full = torch.float32
        noise = Chunk(
            video=draw(lanes, BLOCK, *size, to=full),
            action=draw(lanes, g.actions, g.registers.action_dim, to=full),
        )
        return cls(dit, g, replace(context, video=context.video.float()), cache, noise, state,
                   draw(lanes, BLOCK, *size))  # fmt: skip

    def asked(self, reread: bool = False) -> Asked:
        assert self.noise.video is not None and self.noise.action is not None
        shapes = {"video": tuple(self.noise.video.shape[1:]), "action": tuple(self.noise.action.shape[1:])}
        return Asked(self.dit, shapes, self.context.text.dtype, reread)

    def forward(self, question: Question = DYNAMICS, *, block_kv: BlockKV | None = None) -> Chunk:
        """One network call at the first noise level of a question."""
        ones = torch.ones(len(self.context), device=self.state.device)
        sigma = NoiseLevels(ones * question.video[0], ones * question.action[0])
        video = self.noise.video if question.has_video else None
        return self.asked().velocity(replace(self.noise, video=video), sigma, self.context, self.cache, block_kv)

    def denoise(
        self, question: Question, steps: int, *, keep: bool = False, calls: list[int] | None = None,
        reread: bool = False,
    ) -> tuple[Chunk, BlockKV | None]:  # fmt: skip
        """Answer a question; with ``keep`` also what the last call leaves behind of the video."""
        assert self.cache.position is not None
        block_kv = BlockKV(position=self.cache.position) if keep else None
        action = self.noise.action if question is DYNAMICS else None
        answer = sample(
            self.asked(reread), question, self.context, action=action, steps=steps, noise=self.noise, cache=self.cache,
            calls=calls, block_kv=block_kv,
        )  # fmt: skip
        return answer, block_kv

    def observe(self, video: Tensor) -> None:
        """A clean pass over a block."""
        self.dit.extend(self.cache, video.to(self.newest.dtype), self.state)

    def remember(self, block_kv: BlockKV, video: Tensor) -> None:
        """Keep what the last call computed instead."""
        self.dit.remember(self.cache, block_kv, video.to(self.newest.dtype), self.state)

    def dream(self, answer: Callable[[], tuple[Chunk, BlockKV | None]], *, keep: bool) -> Callable[[], None]:
        """An environment step: imagine a chunk, then remember it."""

        def step() -> None:
            chunk, block_kv = answer()
            assert chunk.video is not None
            if keep:
                assert block_kv is not None
                self.remember(block_kv, chunk.video)
            else:
                self.observe(chunk.video)

        return step


def clean_up() -> None:
    """Give back what is not referred to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
