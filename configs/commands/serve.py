"""``imagine serve``: a policy for robots over websockets, and a judge of what other policies propose."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from dataclasses import dataclass
from typing import Any

from imagine.configs.commands.common import Common, console
from imagine.configs.defaults import MODEL
from imagine.configs.runfolder import RunFolder
from imagine.types import ImagineError


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
    """Serve until Ctrl-C or SIGTERM; the answer counts what was served; ImagineError where it cannot."""
    if not 0 <= args.port <= 65_535:
        raise ImagineError(f"--port is {args.port}, expected 0 to 65535.")
    if args.policy == "expert":
        raise ImagineError("the scripted expert reads the true state, which no client sends; serve another policy.")
    from imagine.agents.serving import DreamJudge, warm_up
    from imagine.configs import build
    from imagine.configs.judges import load_judge
    from imagine.configs.policies import load_policy
    from imagine.model.model import WorldActionModel
    from imagine.policy.server import PolicyServer, ServerConfig

    folder = RunFolder.of("serve", args)
    model = WorldActionModel.from_pretrained(args.model)
    policy = load_policy(args.policy, model, args.model, steps=args.steps)
    scorer = None
    if args.judge != "none":
        judge = load_judge(args.judge, args.model, str(model.device))
        scorer = DreamJudge(build.dreamer(model, args.model), judge, build.dream_config(args.model), args.seed)
    sys.setswitchinterval(5e-4)  # seconds: whoever reads messages lets the model go on sooner than Python would
    warm_up(policy, scorer, model)
    cfg = ServerConfig(host=args.host, port=args.port, seed=args.seed)
    with PolicyServer(policy, model.body, scorer=scorer, cfg=cfg) as server:
        console.print(f"serving {args.policy} of {args.model} at {server.url}; Ctrl-C stops", soft_wrap=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("stopping")
    counts = {name: server.counts[name] for name in ("clients", "acted", "scored", "refused", "failed")}
    answer = {"policy": args.policy, "url": server.url, **counts}
    folder.save_metrics(answer)
    atexit.register(_leave_at_once)
    return answer


def _leave_at_once() -> None:
    """End without tidying up the interpreter: that takes seconds, and aborts while a call hangs in torch."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
