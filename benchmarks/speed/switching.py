"""Every saving switched off alone, against all others on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from imagine.model.dit import JointDiT
from imagine.model.kv_cache import BlockKV
from imagine.questions import DYNAMICS, JOINT
from imagine.types import Chunk

from .clock import Work
from .fp8 import Fp8Linear, fp8_linears
from .ours import Session, per_token, uncompiled
from .shapes import dream_chunk, one_pass

if TYPE_CHECKING:
    from .cells import Bench

K = 4  # denoising steps of an environment step


def exact(bench: Bench, dit: JointDiT, session: Session) -> None:
    """An environment step of one lane with everything on, against the same with one thing off (or one more on)."""
    g, turns = bench.g, 8
    all_on = bench.floor(dream_chunk(g, K, kept=True))

    def step(s: Session, *, keep: bool = True, graph: bool = True, **how: Any) -> Work:
        def ask() -> tuple[Chunk, BlockKV | None]:
            return s.denoise(DYNAMICS, K, keep=keep, **how)

        return s.dream(bench.graph(ask) if graph else ask, keep=keep)

    def scoped(work: Work, stack: Callable[[], Any]) -> Work:
        def inside() -> None:
            with stack():
                work()

        return inside

    def against(name: str, other: Callable[[], Work], base: Callable[[], Work] | None = None, *, n: int = 0,
                cost: float | None = None) -> None:  # fmt: skip
        def measure() -> dict[str, float]:
            taken = bench.clock.race({"on": (base or (lambda: step(session)))(), "off": other()})
            on, off = taken["on"]["ms"], taken["off"]["ms"]
            return {"on_ms": on, "off_ms": off, "gain": off / on}

        told = bench.cell(f"switch: {name}", measure, floor=turns * (cost or 2 * all_on), compiles=n)
        bench.result["switches"][name] = told

    against("kept keys and values vs a clean pass", lambda: step(session, keep=False))
    against("CUDA graph vs launches", lambda: step(session, graph=False))
    against("text and image keys and values cached vs recomputed", lambda: step(session, reread=True))

    def tokenwise() -> Work:
        with per_token(dit):  # what is recorded stays recorded
            work = step(session)
        return scoped(work, lambda: per_token(dit))

    against("modulation per noise level vs per token", tokenwise, n=1)

    def unfused() -> Work:
        with uncompiled(dit):
            work = step(session)
        return scoped(work, lambda: uncompiled(dit))

    if bench.fuse:
        against("torch.compile of the blocks vs eager", unfused)
    # A memory that grows or moves cannot be in a graph, so both go without.
    against("static ring vs joined memory (both without graph)",
            lambda: step(Session.begin(dit, g, 1, ring=False), graph=False),
            lambda: step(session, graph=False), n=1)  # fmt: skip
    against(
        "velocity re-used: 2 of 4 steps ask the network vs all",
        lambda: step(session),
        lambda: step(session, calls=[0, 2]),
    )


def inexact(bench: Bench, dit: JointDiT) -> None:
    """Switches that change what is computed: the black quarter, and last FP8, which changes the weights."""

    def timed(session: Session) -> dict[str, float]:
        work = session.dream(bench.graph(lambda: session.denoise(DYNAMICS, K, keep=True)), keep=True)
        return bench.clock.race({"": work})[""]

    base = bench.result.get("dynamics", {}).get("1")
    need = 12 * bench.floor(dream_chunk(bench.g, K, kept=True))
    if base is None:
        return

    def blank() -> dict[str, float]:
        skipping = JointDiT.__new__(JointDiT)  # the same weights in another configuration
        skipping.__dict__ = {**dit.__dict__, "cfg": bench.g.config(skip=True)}
        on, off = timed(Session.begin(skipping, bench.g, 1))["ms"], timed(Session.begin(dit, bench.g, 1))["ms"]
        saved = 1 - one_pass(bench.g, skip=True).flops / one_pass(bench.g).flops
        return {"on_ms": on, "off_ms": off, "gain": off / on, "flop_saved": saved}

    if bench.g.blank:
        told = bench.cell("switch: black quarter skipped", blank, floor=2 * need, compiles=2)
        bench.result["switches"]["black quarter skipped vs computed"] = told

    def fp8() -> dict[str, Any]:
        session = Session.begin(dit, bench.g, 1)
        before = session.forward(JOINT)
        off = timed(session)["ms"]
        error: dict[str, float] = {}
        scales = fp8_scales(bench.device)
        names = fp8_linears(dit.blocks, scales=scales, emulate=not bench.clock.cuda)
        session = Session.begin(dit, bench.g, 1)
        after = session.forward(JOINT)
        for what in ("video", "action"):
            a, b = getattr(before, what).float(), getattr(after, what).float()
            error[f"error_{what}"] = float((b - a).norm() / a.norm())
        on = timed(session)["ms"]
        graph = bench.graph(lambda: session.forward(JOINT))
        forward = bench.clock.race({"": graph})[""]["ms"]
        return {
            "on_ms": on,
            "off_ms": off,
            "gain": off / on,
            **error,
            "layers": len(names),
            "scales": scales,
            "forward_ms": forward,
        }

    told = bench.cell("switch: FP8 linear layers", fp8, floor=2 * need, compiles=3)
    bench.result["switches"]["FP8 linear layers vs bfloat16"] = told


def fp8_scales(device: torch.device) -> str:
    """ "token", or "tensor" where this build of torch has no matrix product with a scale per row."""
    linear = torch.nn.Linear(64, 64, device=device, dtype=torch.bfloat16)
    try:
        Fp8Linear(linear)(torch.randn(32, 64, device=device, dtype=torch.bfloat16))
    except RuntimeError:
        return "tensor"
    return "token"
