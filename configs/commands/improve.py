"""``imagine improve``: act in the dream, keep what is judged a success, imitate it; then prove it in the real world."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from imagine.types import ImagineError

from ..runfolder import RunFolder
from .common import Common, console
from .worlds import bar


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Improve a policy inside the dream by filtered behaviour cloning.

    Attributes:
        model: a shipped model's name, a folder, or a hub id.
        episodes: imagined episodes to learn from; episode i starts from seed SEED + i.
        seed: first start seed; those of the evaluation are never used here.
        candidates: chunks imagined per decision while collecting; the best judged one is done.
        judge: who says which dreams succeeded; as for ``imagine evaluate``.
        lanes: imagined episodes side by side.
        steps: fine-tuning steps.
        lr: learning rate of the adapter.
        test_episodes: real episodes before and after, on the same starts; 0 leaves the proof out.
        test_seed: first start seed of the proof.
    """

    model: str = "g1-table-tiny"
    episodes: int = 256
    seed: int = 800_000
    candidates: int = 8
    judge: str = "judge-tiny"
    lanes: int = 32
    steps: int = 300
    lr: float = 3e-4
    test_episodes: int = 100
    test_seed: int = 900_000


def run(args: Args) -> dict[str, Any]:
    """Improve; the adapter is written to ``adapter/`` of the run folder. Resumes after a kill.

    Raises:
        ImagineError: an option is out of range, starts overlap those of the proof, or no dream succeeded.
    """
    for name in ("episodes", "candidates", "lanes", "steps"):
        if getattr(args, name) < 1:
            raise ImagineError(f"--{name} is {getattr(args, name)}, expected at least 1.")
    if args.seed < args.test_seed + args.test_episodes and args.test_seed < args.seed + args.episodes:
        raise ImagineError(
            f"seeds {args.seed} to {args.seed + args.episodes - 1} to learn from overlap those of the proof "
            f"(from {args.test_seed}); choose another --seed."
        )
    from imagine.model import WorldActionModel
    from policy.adapter import weights_hash

    model = WorldActionModel.from_pretrained(args.model)
    folder = RunFolder.of("improve", args)
    begin, frozen = time.time(), weights_hash(model)
    answer: dict[str, Any] = learn(args, model, folder.path)
    if weights_hash(model) != frozen:
        raise AssertionError("the weights of the dream moved while the policy learnt")
    answer["seconds"] = round(time.time() - begin, 1)
    if args.test_episodes:
        answer |= prove(args, model, str(folder / "adapter"))
    folder.save_metrics(answer)
    return answer


def learn(args: Args, model: Any, folder: Any) -> dict[str, Any]:
    """Dream, filter, imitate; returns how much was imagined and kept."""
    from agents.finetune.filtered_bc import BCConfig, filtered_bc, keep
    from agents.planner import BestOfN, DreamScorer
    from agents.rollout import rollout
    from imagine.model import resolve
    from policy.policy import JointPolicy
    from rewards.latent import LatentJudge

    from .. import build

    policy: Any = JointPolicy(model)
    if args.candidates > 1:
        policy = BestOfN(policy, DreamScorer(model, LatentJudge.load(resolve(args.model))), args.candidates)
    seeds = range(args.seed, args.seed + args.episodes)
    with bar("dreaming") as tell:
        dreams = build.lanes("imagined", model, args.model, args.lanes, judged_by=args.judge)
        records = rollout(dreams, policy, seeds, keep=True, tell=tell)
    good = keep(records)
    console.print(f"{len(good)} of {len(records)} imagined episodes were judged successes")
    cfg = BCConfig()
    cfg = cfg.model_copy(update={"fit": cfg.fit.model_copy(update={"steps": args.steps, "lr": args.lr})})
    filtered_bc(model, records, cfg, folder)
    chunks = sum(len(r.actions) for r in records)
    return {
        "imagined_episodes": len(records),
        "imagined_successes": len(good),
        "imagined_chunks": chunks * args.candidates,
    }


def prove(args: Args, model: Any, adapter: str) -> dict[str, Any]:
    """Real success before and after, on the same starts, and their paired difference."""
    from agents.evaluate import evaluate
    from agents.statistics import paired_difference

    from .. import build

    seeds = range(args.test_seed, args.test_seed + args.test_episodes)
    lanes = build.lanes("real", model, args.model, 16)
    answer, outcomes = {}, {}
    for name, policy in {"before": "base", "after": adapter}.items():
        with bar(f"real world, {name}") as tell:
            result, records = evaluate(
                lanes, build.policy(policy, model, args.model), seeds, task_of=build.task_of, tell=tell
            )
        answer[name], outcomes[name] = result, [r.success for r in records]
    gain = paired_difference(outcomes["after"], outcomes["before"])
    return {**answer, "gain": {"value": gain.value, "ci_low": gain.low, "ci_high": gain.high, "n": gain.n}}
