"""``imagine rollout``: let a policy act in the dream or on its simulator, and record videos of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.worlds import Episodes, world_of
from imagine.configs.runfolder import RunFolder
from imagine.files import atomic_write
from imagine.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Args(Episodes):
    """Record videos of a policy.

    Attributes:
        policy: base, random, expert (simulator only), or any other that `imagine evaluate` takes.
        world: sim (the robot's simulator) or imagined (the dream).
        instruction: what to do, instead of each start's own task.
    """

    policy: str = "base"
    world: str = "imagined"
    episodes: int = 4
    num_envs: int = 4
    instruction: str = ""


def run(args: Args) -> dict[str, Any]:
    """Roll out; one mp4 per episode in the run folder.

    Raises:
        ImagineError: an option is out of range, or the instruction is not understood.
    """
    seeds = args.seeds()
    from imagine.agents.evaluate import EXPERT
    from imagine.agents.rollout import rollout
    from imagine.configs.build import parallel_envs
    from imagine.configs.policies import load_policy
    from imagine.configs.report import encode_mp4

    loaded, world = args.load(), world_of(args.world)
    model = loaded.model
    instruction = args.instruction or None
    if instruction:
        model.text.tokenize([instruction])  # refuses unknown words before anything is written
    policy = None if args.policy == EXPERT else load_policy(args.policy, model, loaded.folder)
    n = min(args.num_envs, len(seeds))
    envs = parallel_envs(loaded, world, n, judge=args.judge, starts=args.starts or None)
    folder = RunFolder.of("rollout", args)
    with Progress("rollout") as on_progress:
        records = rollout(envs, policy, seeds, instruction=instruction, frames=True, on_progress=on_progress)
    fps = model.body.control_hz / model.body.frame_stride
    episodes = []
    for r in records:
        name = f"{world}-{r.seed}.mp4"
        atomic_write(folder / name, encode_mp4(r.frames, fps))
        worst = round(max(r.hallucination), 4) if r.hallucination else None
        episodes.append(
            {"seed": r.seed, "instruction": r.instruction, "success": r.success, "hallucination": worst, "video": name}
        )
    answer = {"out": str(folder.path), "world": world, "policy": args.policy, "episodes": episodes}
    folder.save_metrics(answer)
    return answer
