"""Play put together: who dreams, judges and drives, what stands beside the dream, and the page."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch

from imagine.agents.play.controls import Controls
from imagine.agents.play.record import PlayRecorder
from imagine.agents.play.requests import Requests
from imagine.agents.play.server import PlayServer
from imagine.agents.play.session import PlaySession
from imagine.agents.play.twin import Twin
from imagine.agents.serving import warm_up
from imagine.configs.build import dream, dream_config
from imagine.configs.commands.common import console
from imagine.configs.defaults import HORIZON
from imagine.configs.judges import Judge, judge_name
from imagine.configs.loaded import Loaded
from imagine.configs.policies import load_policy
from imagine.configs.runfolder import RunFolder
from imagine.policy.policy import JointPolicy
from imagine.policy.worker import Worker
from imagine.world.dream import Dream

PAGE = Path(__file__).with_name("play")


def session_of(loaded: Loaded, *, policy: str = "base", judge: Judge | None = None, starts: str = "") -> PlaySession:
    """A session of play that has not begun.

    Args:
        loaded: who dreams, and of which robot.
        policy: at the wheel on demand, see :func:`imagine.configs.policies.load_policy`.
        judge: see :func:`imagine.configs.judges.load_judge`.
        starts: see :func:`imagine.configs.build.starts_of`. The simulator stands beside dreams that begin as it does.

    Raises:
        ImagineError: one of them cannot be had.
    """
    model = loaded.model
    # Alone in its tile, an environment is imagined eight times faster; its bytes are those of no larger batch then.
    cfg = dream_config(loaded.folder).model_copy(update={"tile": 1})
    several = dream(loaded, cfg, judge=judge, starts=starts or None)
    later = {"inverse_steps": 0} if cfg.history == "read" else {}  # is asked while the frames are shown
    first = Dream(several.model, several.judge, several.starts, cfg.model_copy(update=later))
    acts = load_policy(policy, model, loaded.folder)
    if isinstance(acts, JointPolicy):
        acts.tile = 1
    warm_up(acts, None, model)
    twin = None
    if starts in ("", "sim") and loaded.robot.has_env:
        twin = Twin(loaded.robot, lambda: loaded.sim_env(HORIZON), model.body, Worker())
    controls = Controls(model.body, model.action_std.cpu().numpy())
    return PlaySession(first, several, acts, controls, Worker(), twin)


def share_cores() -> None:
    """Leave cores to simulator and browser: a pool of threads on all of them waits for its slowest one."""
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))


def page() -> str:
    """The page: HTML with its style and script inside; the script's nonce is ``NONCE``."""
    names = ("page.html", "page.css", "page.js", "controls.js")
    html, css, *scripts = ((PAGE / name).read_text("utf-8") for name in names)
    return html.replace("/* STYLE */", css).replace("/* SCRIPT */", "\n".join(scripts))


def play(args: Any) -> dict[str, Any]:
    """Do what ``imagine play`` was asked for; ``args`` is :class:`imagine.configs.commands.play.Args`.

    Raises:
        ImagineError: see :func:`imagine.configs.commands.play.run`.
    """
    loaded = args.load()
    share_cores()
    session = session_of(loaded, policy=args.policy, judge=args.judge or None, starts=args.starts)
    session.start(args.seed, args.instruction or None)
    folder = RunFolder.of("play", args)
    recorder = PlayRecorder(_unused(folder / "played"), loaded.model.body)
    facts = {
        "model": str(args.model), "robot": loaded.robot.name, "policy": args.policy,
        "judge": judge_name(args.judge, loaded.folder),
    }  # fmt: skip
    with PlayServer(Requests(session, recorder, facts), page(), args.port) as server:
        console.print(f"play at {server.url}; Ctrl-C stops", soft_wrap=True, markup=False, highlight=False)
        if args.browser:
            import webbrowser

            webbrowser.open(server.url)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("stopping")
    answer: dict[str, Any] = {"moments": len(session.moments), "requests": server.answered, "episodes": recorder.count}
    if recorder.count:
        answer["saved"] = str(recorder.folder)
    folder.save_metrics(answer)
    return answer


def _unused(folder: Path) -> Path:
    """The folder, or the next one like it that nothing was saved in."""
    k, found = 1, folder
    while found.exists():
        k += 1
        found = folder.with_name(f"{folder.name}-{k}")
    return found
