"""``imagine bench``: chunks per second of the dream, milliseconds per policy chunk, and what the gym's face costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from imagine.configs.commands.common import console
from imagine.configs.commands.worlds import OfRobot
from imagine.configs.runfolder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Args(OfRobot):
    """Time the model, the environment and the policy on this machine.

    Attributes:
        repeats: timed repetitions; medians are reported.
    """

    repeats: int = 7


def run(args: Args) -> dict[str, Any]:
    """Time everything side by side in one process."""
    import torch

    from imagine.configs import build
    from imagine.world.env import EnvConfig, WorldModelVectorEnv

    loaded = args.load()
    model = loaded.model
    answer: dict[str, Any] = {"env_steps_per_s": {}, "network_share": {}}
    for n in (1, 8, 32):
        console.print(f"{n} lanes")
        env = WorldModelVectorEnv(build.dream(loaded), n, cfg=EnvConfig(horizon=10**6))
        env.reset(seed=0)
        judge = getattr(getattr(getattr(env.world, "judge", None), "judge", None), "backend", None)
        actions = np.zeros((n, *(env.single_action_space.shape or ())), np.float32)
        with _Clock(model, judge) as clock:
            seconds = _median(partial(env.step, actions), args.repeats, clock)
        answer["env_steps_per_s"][str(n)] = round(n / seconds, 2)
        answer["network_share"][str(n)] = round(clock.share, 3)
    from imagine.policy.policy import JointPolicy

    observation = {k: v[:1] for k, v in env.world.observe().items()}
    answer["chunk_ms"] = {
        str(k): round(1000 * _median(partial(JointPolicy(model, steps=k).act, observation, [0]), args.repeats), 2)
        for k in (1, 4)
    }
    answer |= _face()
    answer["threads"] = torch.get_num_threads()
    RunFolder.of("bench", args).save_metrics(answer)
    return answer


class _Clock:
    """Time spent inside codec, transformer and the judge's model while it is on."""

    def __init__(self, model: Any, judge: Any):
        self.model, self.inside, self.total = model, 0.0, 0.0
        self.parts = [(model.dit, "forward"), (model.dit, "prefill"), (model.codec, "decode")]
        if hasattr(judge, "model"):
            self.parts.append((judge.model, "forward"))

    def __enter__(self) -> _Clock:
        self.saved = [(o, n, getattr(o, n)) for o, n in self.parts if hasattr(o, n)]
        for owner, name, call in self.saved:
            setattr(owner, name, self._timed(call))
        return self

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            out = call(*args, **kwargs)
            self.inside += time.perf_counter() - begin
            return out

        return timed

    def __exit__(self, *_: object) -> None:
        for owner, name, _call in self.saved:
            delattr(owner, name)

    @property
    def share(self) -> float:
        return self.inside / max(self.total, 1e-9)


def _median(call: Callable[[], Any], repeats: int, clock: _Clock | None = None) -> float:
    call()
    if clock is not None:
        clock.inside = clock.total = 0.0
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    if clock is not None:
        clock.total = sum(times)
    return float(np.median(times))


def _face() -> dict[str, Any]:
    """What the Gymnasium face adds to a bare model call, from ``benchmarks/env_face.py`` where the source tree is."""
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parents[2] / "benchmarks" / "env_face.py"
    if not path.is_file():
        return {"face_overhead_us": None}
    spec = importlib.util.spec_from_file_location("env_face", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["env_face"] = module
    spec.loader.exec_module(module)
    return {"face": (result := module.main()), "face_overhead_us": result["face_overhead_us"]}
