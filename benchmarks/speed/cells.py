"""What is measured of one network, cell by cell, the most important first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from imagine.model.dit import JointDiT
from imagine.questions import DYNAMICS, JOINT, POLICY, Question
from imagine.types import ImagineError

from .clock import Clock, Work, ceilings
from .ours import Graph, Session, build, clean_up, compile_blocks, uncompiled
from .reference import Reference
from .shapes import BLOCK, REMEMBERED, RGB, Network, dream_chunk, one_pass, policy_chunk, reference_chunk
from .switching import K, exact, inexact


@dataclass
class Bench:
    """One network on one device, and what has been measured of it so far."""

    g: Network
    clock: Clock
    dtype: torch.dtype
    until: float  # of time.monotonic()
    lanes: Sequence[int]
    fuse: bool = True  # torch.compile
    graphs: bool = True  # CUDA graphs
    result: dict[str, Any] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    rates: tuple[float, float] = (1.0, 1.0)  # TFLOP/s and GB/s, as measured

    @property
    def device(self) -> torch.device:
        return self.clock.device

    # ------------------------------------------------------------------ running cells
    def cell(self, name: str, work: Callable[[], Any], *, floor: float = 0.0, compiles: int = 0) -> Any:
        """Run one cell, unless it would take too long; what goes wrong in it is told and the next one runs.

        Args:
            name: what it is called where it is dropped or fails.
            work: measures; its result is returned.
            floor: milliseconds of all its calls at least.
            compiles: blocks that have to be fused for it.
        """
        guess = 3e-3 * floor + (12 * compiles * self.fuse if self.clock.cuda else 0)
        if time.monotonic() + guess > self.until:
            self.dropped.append(f"{self.g.name}: {name}")
            return None
        try:
            return work()
        except torch.OutOfMemoryError:
            self.failed[name] = "out of memory"
        except (RuntimeError, ImagineError, TypeError) as error:
            self.failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        finally:
            clean_up()
        return None

    def floor(self, cost: Any) -> float:
        return cost.ms(*self.rates)

    def graph(self, work: Work) -> Callable[[], Any]:
        """Work recorded once and replayed; as it is where that fails, once and for all."""
        if self.graphs:
            try:
                return Graph(work, self.device)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self.failed["CUDA graph"] = str(error).splitlines()[0][:200]
                self.graphs = False
        return work

    def run(self) -> None:
        """Everything, most important first."""
        g = self.g
        self.result["ceilings"] = told = self.ceilings()
        self.rates = told["best_tflops"], told["copy_gbs"]
        dit = build(g, self.device, self.dtype)
        self.result["parameters"] = sum(p.numel() for p in dit.parameters())
        self.result |= {"forward": None, "dynamics": {}, "policy": {}, "reference": None, "switches": {}}
        if self.fuse:
            compile_blocks(dit)
        self.one_lane(dit)
        clean_up()
        for lanes in self.lanes:
            if lanes > 1 and not self.throughput(dit, lanes):
                break
        inexact(self, dit)

    def first(self, dit: JointDiT) -> Session | None:
        """A session of one lane that has answered once; if the blocks cannot be fused, then without."""
        name, one = "a session of one lane", self.floor(one_pass(self.g))

        def begin() -> Session:
            begun = Session.begin(dit, self.g, 1)
            begun.forward(JOINT)
            return begun

        session = self.cell(name, begin, floor=5 * one, compiles=1)
        if session is None and self.fuse and name in self.failed:
            self.failed["torch.compile"] = self.failed.pop(name)
            self.fuse = False
            for block in dit.blocks:
                block._compiled_call_impl = None
            session = self.cell(name, begin, floor=5 * one)
        return session

    def one_lane(self, dit: JointDiT) -> None:
        """Everything that one lane is enough for."""
        g, turns, put, session = self.g, 8, self.result.__setitem__, self.first(dit)
        if session is None:
            return
        need = 3 * turns * self.floor(one_pass(g))
        put("forward", self.cell("forward", lambda: self.forward(dit, session), floor=need))
        self.throughput(dit, 1, session)
        for question in (JOINT, POLICY):
            for steps in (1, 4):
                name = f"{question.name} K={steps}"
                need = turns * self.floor(policy_chunk(g, steps, question is JOINT))
                told = self.cell(
                    f"policy chunk, {name}",
                    lambda q=question, k=steps: self.policy(session, q, k),
                    floor=need,
                    compiles=int(question is POLICY),
                )
                self.result["policy"][name] = told
        need = 4 * self.floor(reference_chunk(g))
        put("reference", self.cell("the reference's way", lambda: self.reference(dit, session), floor=need))
        exact(self, dit, session)

    # ------------------------------------------------------------------ cells
    def ceilings(self) -> dict[str, float | None]:
        n, d, f = BLOCK * self.g.cells() + self.g.actions + 1, self.g.dim, self.g.ffn
        side = 8192 if self.clock.cuda else 256
        shapes = {"projection": (n, d, d), "ffn_in": (n, d, f), "ffn_out": (n, f, d), "square": (side, side, side)}
        return ceilings(self.clock, shapes, self.dtype)

    def forward(self, dit: JointDiT, session: Session) -> dict[str, Any]:
        """One denoising call over a full memory."""

        def eager() -> object:
            with uncompiled(dit):
                return session.forward(JOINT)

        ways: dict[str, Work] = {"eager": eager, "graph": self.graph(lambda: session.forward(JOINT))}
        if self.fuse:
            ways["compiled"] = lambda: session.forward(JOINT)
        self.clock.forget_peak()
        times = self.clock.race(ways)
        cost = one_pass(self.g)
        best = min(t["ms"] for t in times.values())
        own = self.result["ceilings"]["own_tflops"]
        return {
            "times": times, "tflop": cost.flops / 1e12, "floor_ms": self.floor(cost),
            "share_of_floor": self.floor(cost) / best, "share_of_own_matmuls": cost.flops / own / 1e9 / best,
            "tflops": cost.flops / best / 1e9, "peak_gib": self.clock.peak(),
        }  # fmt: skip

    def policy(self, session: Session, question: Question, steps: int) -> dict[str, Any]:
        """Encode the newest block, then ask for actions."""
        answer = self.graph(lambda: session.denoise(question, steps))

        def chunk() -> None:
            session.observe(session.newest)
            answer()

        return self._against(self.clock.race({"": chunk})[""], policy_chunk(self.g, steps, question is JOINT))

    def _against(self, taken: dict[str, float], cost: Any) -> dict[str, Any]:
        floor = self.floor(cost)
        return {**taken, "floor_ms": floor, "share_of_floor": floor / taken["ms"]}

    def throughput(self, dit: JointDiT, lanes: int, session: Session | None = None) -> bool:
        """Environment steps of some lanes, with a clean pass and with kept keys and values; False where it failed."""

        def measure() -> dict[str, Any]:
            self.clock.forget_peak()
            s = session or Session.begin(dit, self.g, lanes)
            answer = self.graph(lambda: s.denoise(DYNAMICS, K, keep=True))
            ways = {"clean": s.dream(answer, keep=False), "kept": s.dream(answer, keep=True)}
            told: dict[str, Any] = {}
            for way, taken in self.clock.race(ways).items():
                told[way] = self._against(taken, dream_chunk(self.g, K, kept=way == "kept", lanes=lanes))
                told[way]["frames_per_s"] = 1e3 * RGB * lanes / taken["ms"]
            return {**told, "peak_gib": self.clock.peak()}

        need = self.floor(dream_chunk(self.g, K, kept=False, lanes=lanes))
        name = f"environment step, {lanes} lanes"
        told = self.cell(name, measure, floor=12 * need, compiles=2 * (lanes in (1, 2, 4)))
        if told is not None:
            self.result["dynamics"][str(lanes)] = told
        return told is not None

    def reference(self, dit: JointDiT, session: Session) -> dict[str, Any]:
        """One forward and one chunk the reference's way, against ours, in turns."""
        ref, c = Reference(dit), session.context
        to = session.newest.dtype
        dull = replace(c, text=torch.randn_like(c.text))
        state = session.state[:, -1]
        noise = session.noise
        assert noise.video is not None and noise.action is not None
        video, action = noise.video, noise.action
        past = REMEMBERED - BLOCK
        with uncompiled(dit):
            memories = [ref.prefill(c.video[:, :past].to(to), x) for x in (c, dull)]
        full = ref.observe(memories[0], session.newest, c, past)
        sigma = torch.ones(1, device=self.device)

        def one() -> object:
            return ref.forward(full, video.to(to), sigma, c, start=REMEMBERED, action=action.to(to), state=state)

        def chunk() -> object:
            return ref.chunk(memories, (c, dull), session.newest, video, action, state, start=past)

        ours = {k: self.graph(lambda k=k: session.denoise(JOINT, k)) for k in (1, K)}

        def mine(k: int) -> Work:
            def work() -> None:
                session.observe(session.newest)
                ours[k]()

            return work

        forward = self.clock.race({"reference": one, "ours": self.graph(lambda: session.forward(JOINT))})
        chunks = self.clock.race({"reference": chunk, "ours, K = 4": mine(K), "ours, K = 1": mine(1)}, least=3)
        theirs = chunks["reference"]["ms"]
        return {
            "forward": forward, "chunk": chunks,
            "forward_gain": forward["reference"]["ms"] / forward["ours"]["ms"],
            "chunk_gain_k4": theirs / chunks["ours, K = 4"]["ms"],
            "chunk_gain_k1": theirs / chunks["ours, K = 1"]["ms"],
            "floor_ms": self.floor(reference_chunk(self.g)),
        }  # fmt: skip
