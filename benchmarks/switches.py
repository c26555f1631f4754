"""What do the savings of the network gain on a CPU, in an environment step of the shipped model?

    python benchmarks/switches.py

Eight lanes of the dream of ``g1-table-tiny``, judged from latents, on one thread. ``on`` is the dream as shipped: one
DYNAMICS call and two INVERSE calls over one reading of the context; INVERSE does not paint, and last blocks compute no
more than somebody looks at. ``off`` reads the context anew for every call, so that keys and values of the instruction
and of what was observed are computed again, computes modulation and last blocks for every token, and paints what nobody
looks at. ``compiled`` fuses blocks and video decoder and packs their weights with
torch.compile (``DreamConfig.compile``), ``autocast`` imagines in bfloat16, ``everything`` is both. All begin every step
in the same state with the same actions and noise, and take turns in one process; a number is the median. ``cpu_ms`` is
what the process itself worked, of which the gains are taken, so that a busy machine changes little; ``ms`` is by the
wall. What they imagine is compared with ``on``: latents in units of their standard deviation, decoded frames byte by
byte. Writes ``docs/switches.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a bare source tree
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from speed.ours import per_token
from torch import Tensor

from imagine.configs.build import dream, dream_config, load
from imagine.configs.defaults import MODEL
from imagine.model.model import WorldActionModel
from imagine.types import Chunk, Context, NoiseLevels
from imagine.world.dream import Dream

ROOT, LANES = Path(__file__).resolve().parents[1], 8


class Forgetful:
    """A model that remembers nothing between two network calls."""

    def __init__(self, model: WorldActionModel):
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def prefill(self, context: Context) -> None:
        """Nothing is read ahead."""

    def velocity(self, noisy: Chunk, sigma: NoiseLevels, context: Context, cache: None = None, **more: Any) -> Chunk:
        return self.model.velocity(noisy, sigma, context, None)


class Contender:
    """One way to dream, always from the same state."""

    def __init__(self, world: Dream, inside: Callable[[], Any] = nullcontext):
        self.world, self.inside = world, inside
        world.allocate(LANES)
        world.reset(np.arange(LANES), range(900000, 900000 + LANES), {})
        self.start = world.snapshot()
        self.action = np.zeros((LANES, *(world.single_action_space.shape or ())), np.float32)

    def step(self) -> tuple[float, float]:
        """Milliseconds of one environment step and the look at what followed: of this process, and by the wall."""
        self.world.restore(self.start)
        with self.inside():
            begin = time.process_time(), time.perf_counter()
            self.world.step(self.action)
            self.world.observe()
            return 1e3 * (time.process_time() - begin[0]), 1e3 * (time.perf_counter() - begin[1])

    @torch.inference_mode()
    def imagined(self) -> tuple[Tensor, np.ndarray]:
        """Latents of the newest chunk and its frames."""
        return self.world.newest.clone(), np.stack([self.world.frames(lane) for lane in range(LANES)])


def contenders(compile: bool) -> dict[str, Callable[[], Contender]]:
    """Every way, made when it is called."""
    loaded, cfg = load(MODEL), dream_config(MODEL)
    model = loaded.model

    def plain(**how: Any) -> Dream:
        return dream(replace(loaded, model=how.pop("model", model)), how.pop("cfg", cfg), judge="latent")

    def off() -> Contender:
        world = plain()
        world.model = Forgetful(world.model)  # type: ignore[assignment]
        return Contender(world, lambda: per_token(model.dit))

    def other(**how: bool) -> Callable[[], Contender]:
        own = model if not how.get("compile") else WorldActionModel.from_pretrained(MODEL)  # a dream fuses its model
        return lambda: Contender(plain(model=own, cfg=cfg.model_copy(update=how)))

    ways: dict[str, Callable[[], Contender]] = {"on": lambda: Contender(plain()), "off": off}
    if compile:
        ways["compiled"], ways["everything"] = other(compile=True), other(compile=True, autocast=True)
    return {**ways, "autocast": other(autocast=True)}


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=11, help="of every contender")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "switches.json")
    options = parser.parse_args(given)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ready: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name, make in contenders(options.compile).items():
        try:
            ready[name] = make()
            ready[name].step()  # what only a first step pays for
        except Exception as error:  # no C++ compiler, say; the others are measured all the same
            if name in ("on", "off"):
                raise
            ready.pop(name, None)
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ready}
    for _ in range(options.turns):
        for name, contender in ready.items():
            taken[name].append(contender.step())
    torch.set_num_threads(threads)
    latents, frames = ready["on"].imagined()
    slow = median(cpu for cpu, _ in taken["off"])
    answer: dict[str, Any] = {"model": MODEL, "lanes": LANES, "turns": options.turns, "torch": torch.__version__}
    for name, contender in ready.items():
        own, shown = contender.imagined()
        cpu, wall = zip(*taken[name], strict=True)
        answer[name] = {
            "cpu_ms": round(median(cpu), 2), "low": round(min(cpu), 2), "high": round(max(cpu), 2),
            "ms": round(median(wall), 2), "gain_over_off": round(slow / median(cpu), 2),
            "latent_error": float((own - latents).abs().max() / latents.std()),
            "frames_equal": bool((shown == frames).all()),
            "bytes_differing": float((shown != frames).mean()),
            "most_frame_difference": int(np.abs(shown.astype(int) - frames).max()),
        }  # fmt: skip
    answer["missing"] = missing
    options.out.write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer, indent=1))
    return answer


if __name__ == "__main__":
    main()
