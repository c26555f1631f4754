"""What becomes of damaged models, adapters, judges, caches and run folders: read, or refused in one sentence?

    python benchmarks/fuzz_models.py --models 250 --runs 60 --seed 0

Every case is a small whole folder in which one file is changed at random: cut short, emptied, overwritten, bits
flipped, deleted, made a folder or a link out of it; or, where it can be parsed, a key or tensor is dropped, renamed,
misshapen, filled with NaN or replaced by something of another kind or size. It is then used as the commands use it.
What may follow is an answer, an ``ImagineError`` that names the file or its folder on one line, or the system's own
error about a file that cannot be written, which the command line tells in one sentence. Anything else is counted as a
failure and its seed printed. The exit code says whether there was any.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

import imagine
from imagine.types import ImagineError

ODD: tuple[Any, ...] = (
    None, "", "x" * 300, -1, 0, 1, 2.5, 2**31, 2**63, 1e308, float("nan"), True, [], {}, [[1]], {"a": None}, ["", 3],
)  # fmt: skip
DEEP = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"


# ---------------------------------------------------------------------- changes
def damage(file: Path, rng: random.Random) -> str:
    """Change one file; returns what was done."""
    special = {".json": in_text, ".yaml": in_text, ".safetensors": in_tensors, ".npz": in_arrays, ".pt": in_state}
    if file.suffix in special and rng.random() < 0.7:
        return special[file.suffix](file, rng)
    raw = file.read_bytes()
    kind = rng.choice(["cut", "cut", "empty", "noise", "flip", "flip", "text", "gone", "folder", "link"])
    if kind == "cut":
        file.write_bytes(raw[: rng.randrange(len(raw) or 1)])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "noise":
        file.write_bytes(rng.randbytes(min(len(raw), 10_000)))
    elif kind == "flip":
        some = bytearray(raw)
        for _ in range(rng.choice([1, 8, 64])):
            some[rng.randrange(min(len(some), rng.choice([64, 4096, len(some)])))] ^= 1 << rng.randrange(8)
        file.write_bytes(some)
    elif kind == "text":
        file.write_text(rng.choice(["\0", "null", "[]", "{", "a: [", DEEP, "NaN", "é" * 50]))
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()
        elif kind == "link":
            outside = file.parent.parent / f"outside-{file.name}"
            outside.write_bytes(raw)
            file.symlink_to(outside)
    return kind


def in_text(file: Path, rng: random.Random) -> str:
    """Change a JSON or YAML file that stays one."""
    whole = (json.loads if file.suffix == ".json" else yaml.safe_load)(file.read_text())
    node, path = whole, []
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        path.append(str(key))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.2:
            break
        node = node[key]
    kind = rng.choice(["drop", "replace", "replace", "replace", "add"])
    if kind == "drop":
        del node[key]
    elif kind == "add" and isinstance(node, dict):
        node[f"{key}_2"] = node[key]
    else:
        node[key] = rng.choice(ODD)
        kind = f"replace by {str(node[key])[:12]!r}"
    file.write_text(json.dumps(whole) if file.suffix == ".json" else yaml.safe_dump(whole))
    return f"{kind} {'.'.join(path)}"


def in_tensors(file: Path, rng: random.Random) -> str:
    """Change a safetensors file that stays one."""
    from safetensors import safe_open

    state = load_file(file)
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    name = rng.choice(sorted(state))
    value, kind = state[name], rng.choice(["drop", "rename", "add", "nan", "cast", "reshape", "scalar", "no notes"])
    if kind in ("drop", "rename", "add"):
        if kind != "drop":
            state[f"{name}_2"] = value.clone()
        if kind != "add":
            del state[name]
    elif kind == "no notes":
        about = None
    else:
        state[name] = {
            "nan": lambda: torch.full_like(value.float(), float("nan")), "cast": lambda: value.to(torch.int64),
            "reshape": lambda: value.repeat(2, *[1] * (value.ndim - 1)) if value.ndim else value.expand(3).clone(),
            "scalar": lambda: value.flatten()[0].clone(),
        }[kind]()  # fmt: skip
    save_file(state, file, about)
    return f"{kind} {name}"


def in_arrays(file: Path, rng: random.Random) -> str:
    """Change an npz file that stays one."""
    with np.load(file) as opened:
        arrays = dict(opened)
    name = rng.choice(sorted(arrays))
    kind = rng.choice(["drop", "rename", "half", "scalar", "text"])
    value = arrays.pop(name)
    changed = {"half": value[: len(value) // 2] if value.ndim else value, "scalar": np.zeros(()), "text": np.array("x")}
    arrays |= {name: changed[kind]} if kind in changed else {f"{name}_2": value} if kind == "rename" else {}
    np.savez(file, **arrays)
    return f"{kind} {name}"


def in_state(file: Path, rng: random.Random) -> str:
    """Change a file of torch.save's that stays one."""
    state = torch.load(file, weights_only=True)
    if not isinstance(state, dict) or rng.random() < 0.1:
        torch.save(rng.choice([[], {}, torch.zeros(2), "x", None]), file)
        return "another object"
    key = rng.choice(sorted(state, key=str))
    kind = rng.choice(["drop", "replace"])
    state.pop(key)
    torch.save(state if kind == "drop" else state | {key: rng.choice([None, {}, -1, "x", torch.zeros(2)])}, file)
    return f"{kind} {key}"


# ---------------------------------------------------------------------- what is damaged, and how it is used
@dataclass(frozen=True)
class Target:
    """A folder, and what reads it.

    Attributes:
        folder: whole.
        use: reads all of it, as commands do.
    """

    folder: Path
    use: Callable[[Path], Any]


def small_model() -> imagine.WorldActionModel:
    """The shipped model's robot, codec and words around a transformer of a few thousand weights."""
    shipped = imagine.WorldActionModel.from_pretrained("g1-table-tiny")
    small = {"layers": 1, "heads": 1, "head_dim": 24, "ffn_dim": 32, "freq_dim": 16}
    dit = shipped.cfg.dit.model_copy(update=small)
    torch.manual_seed(0)
    return imagine.WorldActionModel(shipped.cfg.model_copy(update={"dit": dit}), codec=shipped.codec).eval()


def of_models(home: Path) -> dict[str, Target]:
    """A model folder, adapters in peft's and diffusers' layout, and a judge that reads."""
    from imagine.model.checkpoint import SHIPPED
    from imagine.policy.adapter import Learner, merged
    from imagine.rewards.vlm import VLMJudge

    model = small_model()
    model.save_pretrained(home / "model")
    for name in ("dream.json", "robot.json", "starts.safetensors", "judge.json", "judge.safetensors"):
        shutil.copy(SHIPPED / "g1-table-tiny" / name, home / "model" / name)
    shutil.copytree(SHIPPED / "judge-tiny", home / "judge")
    Learner(model, rank=2).save(home / "adapter")
    state = {
        k.replace("base_model.model.", "transformer."): v for k, v in load_file(next(home.glob("adapter/*.s*"))).items()
    }
    (home / "diffusers").mkdir()
    save_file(state, home / "diffusers" / "pytorch_lora_weights.safetensors")
    frames = torch.zeros(1, 9, 64, 96, 3, dtype=torch.uint8)

    def dream(folder: Path) -> None:
        env = imagine.make_env(folder, judge="latent", starts="saved", inverse_check=False, horizon=1)
        observation, _ = env.reset(seed=0)
        observation, *_ = env.step(np.zeros(env.action_space.shape, np.float32))
        assert np.isfinite(observation["proprio"]).all()

    def judge(folder: Path) -> None:
        VLMJudge.load(folder, domain="imagined").score(frames, ["pick up the red block"])

    adapter = partial(merged, model)
    uses = {"model": dream, "adapter": adapter, "diffusers": adapter, "judge": judge}
    return {name: Target(home / name, use) for name, use in uses.items()}


def of_runs(home: Path) -> dict[str, Target]:
    """A cache of training, and folders of runs that go on: a fit, an evaluation, an improvement."""
    from imagine.agents.envs import DreamEnvs
    from imagine.agents.evaluate import carry_out, parts
    from imagine.agents.finetune.improve import ImproveConfig, Trainer
    from imagine.configs.runfolder import RunFolder
    from imagine.data.episode_cache import write_cache
    from imagine.data.shard import EpisodeData
    from imagine.data.windows import Windows
    from imagine.model.checkpoint import SHIPPED
    from imagine.train.fit import FitConfig, fit
    from imagine.world.dream import Dream, DreamConfig
    from imagine.world.starts import SavedStarts

    model = small_model()
    body, ticks = model.body, 60
    views = {v.key: np.zeros((ticks, v.height, v.width, 3), np.uint8) for v in body.views}
    numbers = {"observation.state": np.zeros((ticks, 26), np.float32), "action": np.zeros((ticks, 28), np.float32)}
    episode = EpisodeData(numbers, ["push it"] * ticks, views, np.arange(ticks), seed=0)
    write_cache([episode], body, home / "cache", fps=30, identity="x")
    envs = DreamEnvs(Dream(model, None, SavedStarts.load(SHIPPED / "g1-table-tiny", body), DreamConfig()), 1)  # type: ignore[arg-type]
    settings = {"command": "evaluate", "seed": 0, "policies": ["base"], "nested": {"a": [1, 2]}}
    empty = {"policy": "p", "world": "sim", "start_id": "", "task": "", "instruction": "", "success": True}
    empty |= {"unbelievable": False, "chunks": 1, "judged": None, "hallucination": 0.1}

    def window(folder: Path) -> None:
        windows = Windows(folder, body, context_frames=2)
        windows.batch(windows.rows("all")[:2])

    def fitted(folder: Path) -> None:
        torch.manual_seed(0)
        net = torch.nn.Linear(2, 1)
        cfg = FitConfig(steps=2, save_every=1, warmup=1, mixed_precision="no")
        fit(net, lambda step, g: (net(torch.ones(1, 2)).sum(), {}), cfg, folder)

    def evaluated(folder: Path) -> None:
        run = RunFolder(folder, settings)
        run.keep("recipe.yaml", settings["nested"], "the recipe")
        wanted = parts(["p"], ["sim"], range(4), 2)
        carry_out(wanted, lambda: lambda part: [empty | {"seed": s} for s in part.seeds], folder)
        run.save_metrics(run.metrics | {"success": 0.5})

    def improved(folder: Path) -> None:
        run = Trainer(model, envs, ImproveConfig(rank=2), folder, monitor=None)
        run._save()

    uses = {"cache": window, "fit": fitted, "evaluation": evaluated, "improvement": improved}
    for name, use in uses.items():
        use(home / name)
    return {name: Target(home / name, use) for name, use in uses.items()}


# ---------------------------------------------------------------------- the count
@dataclass
class Found:
    """What became of the cases: how many were read and refused, by target, and the failures in words."""

    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def fuzz(targets: dict[str, Target], cases: int, seed: int, scratch: Path) -> Found:
    """Damage the targets in turn, a file of each at a time."""
    found = Found()
    for case in range(cases):
        name = sorted(targets)[case % len(targets)]
        rng = random.Random(f"{seed} {case}")
        folder = scratch / f"case-{case}" / name
        shutil.copytree(targets[name].folder, folder)
        files = sorted(p for p in folder.rglob("*") if p.is_file() and "log" not in p.parts)
        file = rng.choice(files)
        label = f"case {case} of seed {seed}: {name}/{file.relative_to(folder)}: {damage(file, rng)}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                targets[name].use(folder)
            found.read[name] += 1
        except (ImagineError, OSError) as error:
            text = str(error)
            found.refused[name] += 1
            if "\n" in text or len(text) > 1000 or not (file.name in text or str(folder) in text):
                found.failures.append(f"{label}: names no file, or not on one line: {text[:400]}")
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            found.failures.append(f"{label}: {type(error).__name__} at {where}: {' '.join(str(error).split())[:200]}")
        shutil.rmtree(folder.parent)
    return found


def main() -> int:
    """Print what was found, as one JSON object; 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=250, help="mutations of models, adapters and judges")
    parser.add_argument("--runs", type=int, default=60, help="mutations of caches and run folders")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    failures: list[str] = []
    answer: dict[str, Any] = {"seed": args.seed}
    for kind, make, cases in (("models", of_models, args.models), ("runs", of_runs, args.runs)):
        if not cases:
            continue
        with tempfile.TemporaryDirectory() as at:
            home = Path(at) / "whole"
            home.mkdir()
            found = fuzz(make(home), cases, args.seed, Path(at))
        answer[kind] = {"cases": cases, "read": dict(found.read), "refused": dict(found.refused)}
        failures += found.failures
    print(json.dumps(answer | {"failures": failures}, indent=1))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
