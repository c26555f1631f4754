"""``imagine rollout``: let a policy act in the dream or on the twin, and film it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.worlds import Episodes, bar
from imagine.configs.runfolder import RunFolder
from imagine.files import atomic_write


@dataclass(frozen=True, kw_only=True)
class Args(Episodes):
    """Film a policy.

    Attributes:
        policy: base, novice, improved, expert (real world only), random, or the folder of an adapter or model.
        world: real (the twin) or imagined (the dream).
        instruction: what to do, instead of each start's own task.
    """

    policy: str = "base"
    world: str = "imagined"
    episodes: int = 4
    lanes: int = 4
    instruction: str = ""


def run(args: Args) -> dict[str, Any]:
    """Roll out; one mp4 per episode in the run folder.

    Raises:
        ImagineError: an option is out of range, or the instruction is not understood.
    """
    seeds = args.seeds()
    from imagine.agents.evaluate import EXPERT
    from imagine.agents.rollout import rollout
    from imagine.configs import build
    from imagine.configs.report import encode_mp4
    from imagine.model.model import WorldActionModel

    model = WorldActionModel.from_pretrained(args.model)
    instruction = args.instruction or None
    if instruction:
        model.text.tokenize([instruction])  # refuses unknown words before anything is written
    policy = None if args.policy == EXPERT else build.policy(args.policy, model, args.model)
    n = min(args.lanes, len(seeds))
    envs = build.lanes(args.world, model, args.model, n, judged_by=args.judge, blocks=args.blocks)
    folder = RunFolder.of("rollout", args)
    with bar("rollout") as tell:
        records = rollout(envs, policy, seeds, instruction=instruction, frames=True, on_progress=tell)
    fps = model.body.control_hz / model.body.frame_stride
    episodes = []
    for r in records:
        name = f"{args.world}-{r.seed}.mp4"
        atomic_write(folder / name, encode_mp4(r.frames, fps))
        worst = round(max(r.hallucination), 4) if r.hallucination else None
        episodes.append(
            {"seed": r.seed, "instruction": r.instruction, "success": r.success, "hallucination": worst, "video": name}
        )
    answer = {"out": str(folder.path), "world": args.world, "policy": args.policy, "episodes": episodes}
    folder.save_metrics(answer)
    return answer
