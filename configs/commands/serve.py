"""``imagine serve``: a policy for robots over websockets, and a judge of what other policies propose."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from imagine.configs.commands.common import Common, console
from imagine.configs.defaults import MODEL
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError, Policy, RewardModel, pack_instruction, unpack_instruction

if TYPE_CHECKING:
    from imagine.model.model import WorldActionModel
    from imagine.world.dream import DreamConfig


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Serve a policy over openpi's websocket protocol until interrupted.

    Attributes:
        policy: base, random, an adapter in the model folder, the folder of an adapter or model, or module:name.
        model: a shipped model's name, a folder, or a hub id; it also dreams what is scored.
        judge: who scores candidates, as for imagine evaluate; or none.
        host: address to listen on; 0.0.0.0 lets other machines in.
        port: where; 0 takes any that is free.
        steps: denoising steps of the policy.
    """

    policy: str = "base"
    model: str = MODEL
    judge: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    steps: int = 4


def run(args: Args) -> dict[str, Any]:
    """Serve until Ctrl-C or SIGTERM; the answer counts what was served.

    Raises:
        ImagineError: the policy, model, judge or address cannot be had.
    """
    if not 0 <= args.port <= 65_535:
        raise ImagineError(f"--port is {args.port}, expected 0 to 65535.")
    if args.policy == "expert":
        raise ImagineError("the scripted expert reads the true state, which no client sends; serve another policy.")
    from imagine.configs import build
    from imagine.configs.judges import load_judge
    from imagine.configs.policies import load_policy
    from imagine.model.model import WorldActionModel
    from imagine.policy.server import PolicyServer, ServerConfig

    model = WorldActionModel.from_pretrained(args.model)
    policy = load_policy(args.policy, model, args.model, steps=args.steps)
    scorer = None
    if args.judge != "none":
        judge = load_judge(args.judge, args.model, str(model.device))
        scorer = DreamJudge(build.dreamer(model, args.model), judge, build.dream_config(args.model), args.seed)
    warm_up(policy, scorer, model)
    cfg = ServerConfig(host=args.host, port=args.port, seed=args.seed)
    with _terminated_as_interrupted(), PolicyServer(policy, model.body, scorer=scorer, cfg=cfg) as server:
        folder = RunFolder.of("serve", args)
        console.print(f"serving {args.policy} of {args.model} at {server.url}; Ctrl-C stops", soft_wrap=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("stopping")
    names = ("clients", "acted", "scored", "refused", "failed")
    answer = {"policy": args.policy, "url": server.url, **{name: server.counts[name] for name in names}}
    folder.save_metrics(answer)
    return answer


class DreamJudge:
    """A :class:`imagine.policy.scoring.Scorer` that imagines each candidate and has its end judged."""

    def __init__(self, model: WorldActionModel, judge: RewardModel, cfg: DreamConfig | None = None, seed: int = 0):
        from imagine.agents.planner import DreamScorer
        from imagine.policy.policy import JointPolicy
        from imagine.world.dream import DreamConfig

        self.score = DreamScorer(model, judge, cfg=cfg or DreamConfig())
        self.eyes, self.seed = JointPolicy(model), seed

    def __call__(
        self, observation: dict[str, np.ndarray], start: dict[str, np.ndarray]
    ) -> Callable[[np.ndarray], tuple[np.ndarray, dict[str, np.ndarray]]]:
        """See :class:`imagine.policy.scoring.Scorer`; all candidates dream under the same noise."""
        import torch

        from imagine.agents.scorer import PlanningState, read

        told = tuple(unpack_instruction(row) for row in observation["instruction"])
        now, first = self.eyes.context(observation), self.eyes.context(start)
        with torch.inference_mode():
            state = PlanningState(now, first, told, (self.seed,), read(self.eyes.model, now))

        def judge(candidates: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            scores = self.score(state, torch.from_numpy(candidates)[None])
            columns = {**scores.terms, "spread": scores.spread}
            return scores.value[0].cpu().numpy(), {k: v[0].cpu().numpy() for k, v in columns.items()}

        return judge


def warm_up(policy: Policy, scorer: DreamJudge | None, model: WorldActionModel) -> None:
    """Act and judge once on black pictures, so that no robot waits for a first time or finds the judge away."""
    body = model.body
    blank = {v.name: np.zeros((1, v.height, v.width, 3), np.uint8) for v in body.views}
    blank["proprio"] = model.proprio_mean[None].cpu().numpy()
    blank["instruction"] = pack_instruction(model.text.cfg.words[0])[None]
    chunk = policy.act(blank, [0])
    if scorer is not None:
        scorer(blank, blank)(body.check_action(chunk))


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
