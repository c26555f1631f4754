"""Quality against denoising steps: what one step costs the policy and the dream, and what distillation gives back.

``python benchmarks/steps.py`` acts with K = 1, 2, 4, 8 steps from the same 200 starts (from 930000 on), on the twin and
in the dream, and dreams held-out windows (episodes from 951000 on) with K steps. Adapters of ``imagine finetune
distill`` are added as NAME=FOLDER=TEACHER: ``--policies base,fast=FOLDER/adapter=base``. Differences are paired by
start or by window, against the teacher's most steps and its one step. A rerun keeps what it has in ``--out``, so
another adapter needs another name. Answers go to ``docs/steps.json``; the tables of ``docs/steps.md`` are printed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagine.agents.evaluate import carry_out, outcomes, parts
from imagine.agents.statistics import Interval, decibel_gain, mean_interval, paired_difference, success_rate
from imagine.configs import build, heldout
from imagine.configs.evaluation import Setup, stamp, worker
from imagine.configs.policies import load_policy
from imagine.data.windows import Windows
from imagine.model.model import WorldActionModel
from imagine.questions import DYNAMICS, POLICY
from imagine.sampler import sample
from imagine.world.dream import DreamConfig
from imagine.world.fidelity import clip_mse, decibel, encode, horizon

ROOT = Path(__file__).parent.parent
MODEL, CHUNKS, SOON = "g1-table-tiny", 4, 3
OTHER = 7_000_003  # seed of a second draw
Names = dict[str, tuple[str, str]]
"""By name: what the composition root calls it, and whose answers it should give in fewer steps."""


def named(words: str) -> Names:
    """``base,fast=FOLDER=base`` by name."""
    cut = [w.split("=") for w in words.split(",") if w]
    return {w[0]: (w[1] if len(w) > 1 else w[0], w[2] if len(w) > 2 else w[0]) for w in cut}


def numbers(x: Interval) -> dict[str, float]:
    """For JSON."""
    return {"value": round(x.value, 4), "ci_low": round(x.low, 4), "ci_high": round(x.high, 4), "n": x.n}


def episodes(names: Names, worlds: Sequence[str], steps: Sequence[int], seeds: range, out: Path) -> dict[str, Any]:
    """Success by world, policy and K, with paired differences against the teacher.

    Worlds are ``sim`` within 8 chunks, ``soon``, the same episodes within 3, and ``imagined`` within 3.
    """
    won: dict[tuple[str, str, int], np.ndarray] = {}
    for world, k in product(worlds, steps):
        setup = Setup(MODEL, "latent", steps=k, horizon=SOON if world == "imagined" else build.HORIZON)
        here = worker(setup)
        for name, (policy, _) in names.items():
            wanted = parts([policy], [world], seeds, 16)
            done = carry_out(wanted, lambda w=here: w, out / f"{name}-{world}-{k}", stamp=stamp(setup, [policy]))  # type: ignore[misc]
            won[world, name, k] = outcomes(done, [policy], world, seeds)[0]
            if world == "sim":
                chunks = np.array(
                    done.column("chunks").to_pylist()
                )  # in the order of the seeds, as there is one policy
                won["soon", name, k] = won[world, name, k] & (chunks <= SOON)
            print(f"{world} {name} K={k}: {success_rate(won[world, name, k])}", flush=True)
    most, answer = max(steps), {}
    for (world, name, k), ours in won.items():
        teacher = names[name][1]
        answer[f"{world}/{name}/{k}"] = {"success": numbers(success_rate(ours))} | {
            f"less_{teacher}_{other}": numbers(paired_difference(ours, won[world, teacher, other]))
            for other in (most, 1)
            if (name, k) != (teacher, other) and (world, teacher, other) in won
        }
    return answer


@torch.inference_mode()
def answers(model: WorldActionModel, windows: Windows, rows: np.ndarray, k: int, seed: int) -> np.ndarray:
    """(n, K * A) normalised actions of POLICY in ``k`` steps on those windows; a row's noise depends on ``seed``."""
    out = []
    for begin in range(0, len(rows), 64):
        part = rows[begin : begin + 64]
        context, *_ = encode(model, windows.batch(part))
        action = sample(model, POLICY, context, steps=k, seeds=[int(r) + seed for r in part]).action
        assert action is not None
        out.append(action.flatten(1).numpy())
    return np.concatenate(out)


def draws(names: Names, steps: Sequence[int], windows: Windows, rows: np.ndarray, out: Path) -> dict[str, Any]:
    """How far an answer in K steps is from the teacher's in most steps, from the same noise; how far two draws are.

    Both are root mean squares in normalised action units. The second is the variety that one step may lose.
    """
    base = WorldActionModel.from_pretrained(MODEL)
    episode = windows.batch(rows).episode.numpy()
    found: dict[tuple[str, int, int], np.ndarray] = {}
    for name, (policy, _) in names.items():
        model = load_policy(policy, base, MODEL).model  # type: ignore[attr-defined]
        for k, seed in product(steps, (0, OTHER)):
            file = out / f"draws-{name}-{k}-{seed}-{len(rows)}.npy"
            if not file.is_file():
                np.save(file, answers(model, windows, rows, k, seed))
            found[name, k, seed] = np.load(file)
    answer = {}
    for (name, k, seed), ours in found.items():
        if not seed:
            gap = (ours - found[names[name][1], max(steps), 0]) ** 2
            spread = (ours - found[name, k, OTHER]) ** 2
            answer[f"draws/{name}/{k}"] = {
                "rms_to_teacher": numbers(root(mean_interval(gap.mean(1), episode))),
                "rms_between_draws": numbers(root(mean_interval(spread.mean(1), episode))),
            }
    return answer


def root(x: Interval) -> Interval:
    """The square root of a mean square."""
    return Interval(x.value**0.5, x.low**0.5, x.high**0.5, x.n)


@torch.inference_mode()
def errors(model: WorldActionModel, windows: Windows, rows: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Squared errors of dreams in ``k`` steps: of ``one`` chunk (n,), and of the ``last`` of four in a row (E,)."""
    out = []
    for begin in range(0, len(rows), 64):
        part = rows[begin : begin + 64]
        batch = windows.batch(part)
        context, truth, *_ = encode(model, batch)
        action = model.normalise_action(batch.action)
        video = sample(model, DYNAMICS, context, action=action, steps=k, seeds=[int(r) for r in part]).video
        assert video is not None
        out.append(clip_mse(model.decode(video), truth, batch.video_valid).numpy())
    far = horizon(model, windows, windows.chains(CHUNKS)[:64], DreamConfig(steps=k))["mse"]
    return {"one": np.concatenate(out), "last": far[:, -1], "episode": windows.batch(rows).episode.numpy()}


def dreams(names: Names, steps: Sequence[int], windows: Windows, rows: np.ndarray, out: Path) -> dict[str, Any]:
    """PSNR of dreams in K steps against what really happened."""
    base = WorldActionModel.from_pretrained(MODEL)
    found: dict[tuple[str, int], dict[str, np.ndarray]] = {}
    for name, (dream, _) in names.items():
        model = load_policy(dream, base, MODEL).model  # type: ignore[attr-defined]
        for k in steps:
            file = out / f"dream-{name}-{k}-{len(rows)}.npz"
            if not file.is_file():
                np.savez(file, **errors(model, windows, rows, k))  # type: ignore[arg-type]
            found[name, k] = dict(np.load(file))
            print(f"dream {name} K={k}: {decibel(found[name, k]['one']):.2f} dB", flush=True)
    answer: dict[str, Any] = {}
    for (name, k), ours in found.items():
        row: dict[str, Any] = {"psnr": round(decibel(ours["one"]), 3), "psnr_last": round(decibel(ours["last"]), 3)}
        row |= {"n": len(rows), "chains": len(ours["last"])}
        teacher, each = names[name][1], np.arange(len(ours["last"]))
        for other in (max(steps), 1):
            if (name, k) != (teacher, other) and (teacher, other) in found:
                theirs = found[teacher, other]
                row[f"less_{teacher}_{other}"] = numbers(decibel_gain(ours["one"], theirs["one"], ours["episode"]))
                row[f"last_less_{teacher}_{other}"] = numbers(decibel_gain(ours["last"], theirs["last"], each))
        answer[f"dream/{name}/{k}"] = row
    return answer


def table(answer: dict[str, Any], kind: str, columns: dict[str, Callable[[dict[str, Any]], str]]) -> str:
    """Markdown of all rows of one kind."""
    rows = [
        key.split("/")[1:] + [f(v) for f in columns.values()] for key, v in answer.items() if key.split("/")[0] == kind
    ]
    head = ["who", "K", *columns]
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *rows])


def points(x: dict[str, float] | None) -> str:
    """A share, or a difference of two, in points."""
    return "" if x is None else f"{100 * x['value']:.1f} [{100 * x['ci_low']:.1f}, {100 * x['ci_high']:.1f}]"


def plain(x: dict[str, float] | None) -> str:
    """A number with its interval."""
    return "" if x is None else f"{x['value']:.3f} [{x['ci_low']:.3f}, {x['ci_high']:.3f}]"


def less(
    to: str, form: Callable[[dict[str, float] | None], str], key: str = "less_"
) -> Callable[[dict[str, Any]], str]:
    """The column that compares with the teacher at K = ``to``."""
    return lambda row: form(next((v for k, v in row.items() if k.startswith(key) and k.endswith(f"_{to}")), None))


def page(answer: dict[str, Any], steps: Sequence[int]) -> str:
    """All tables of ``docs/steps.md``."""
    most = str(max(steps))
    against = {f"less teacher, K = {most}": less(most, points), "less teacher, K = 1": less("1", points)}
    success = {"success, %": lambda r: points(r["success"]), **against}
    apart = {
        f"RMS to the teacher's answer, K = {most}": lambda r: plain(r["rms_to_teacher"]),
        "RMS between two draws": lambda r: plain(r["rms_between_draws"]),
    }
    pictures = {
        "PSNR, dB": lambda r: f"{r['psnr']:.2f}",
        f"less teacher, K = {most}": less(most, plain),
        "less teacher, K = 1": less("1", plain),
        f"PSNR of chunk {CHUNKS}": lambda r: f"{r['psnr_last']:.2f}",
        f"… less teacher, K = {most}": less(most, plain, "last_less_"),
    }
    kinds = {"sim": success, "soon": success, "imagined": success, "draws": apart, "dream": pictures}
    return "\n\n".join(f"{kind}\n\n{table(answer, kind, columns)}" for kind, columns in kinds.items())


def main() -> None:
    """Act, dream, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", default="base")
    parser.add_argument("--dreams", default="base")
    parser.add_argument("--worlds", default="sim,imagined")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=930_000)
    parser.add_argument("--windows", type=int, default=400)
    parser.add_argument("--held-out-seed", type=int, default=951_000)
    parser.add_argument("--held-out", type=int, default=80, help="episodes to dream")
    parser.add_argument("--out", type=Path, default=Path("runs") / "steps")
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "steps.json")
    args = parser.parse_args()
    policies, imagined = named(args.policies), named(args.dreams)
    seeds = range(args.seed, args.seed + args.episodes)
    model = WorldActionModel.from_pretrained(MODEL)
    source = args.out / f"held-out-{args.held_out_seed}-{args.held_out}"
    recorded = heldout.record(build.load(MODEL), args.held_out_seed, args.held_out, source, workers=1)
    windows = heldout.windows(model, [recorded], source)
    rows = windows.rows("all")
    rows = np.sort(rows[np.random.default_rng(0).permutation(len(rows))[: args.windows]])
    answer = json.loads(args.json.read_text()) if args.json.is_file() else {}
    for found in (
        dreams(imagined, args.steps, windows, rows, args.out) if imagined else {},
        draws(policies, args.steps, windows, rows, args.out) if policies else {},
        episodes(policies, args.worlds.split(","), args.steps, seeds, args.out) if policies else {},
    ):
        answer |= found
        args.json.write_text(json.dumps(answer, indent=1) + "\n")
    print(page(answer, args.steps))


if __name__ == "__main__":
    main()
