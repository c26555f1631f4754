"""Stages of the first call: episodes on the cores, codec and joint model on the GPU, one model folder to send back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from imagine.agents.collect_cache import caches_in
from imagine.data.windows import Windows
from imagine.files import write_json
from imagine.model.codec import FrameCodec
from imagine.model.model import WorldActionModel, load_weights
from imagine.policy.robots.registry import DEFAULT, load_robot, remember
from imagine.train.joint import build_model, train_codec, train_joint
from imagine.world.dream import DreamConfig
from imagine.world.fidelity import inverse_errors
from imagine.world.starts import MOST_SAVED, Start, save_starts
from lease.parts import ROOT, Lease

BESIDE = 15.0  # seconds that each of them costs beside training, before this is known
SHARES = (0.3, 0.65, 1.0)  # of the model's time; at each its training pauses, is shipped and takes in new data
ENDING = 8.0  # seconds that nothing is planned for
CODEC_FRAMES = 24_000


class Recorder:
    """Episodes recorded in the background, at a lower priority than training."""

    def __init__(self, lease: Lease, seconds: float) -> None:
        args, environment = lease.args, dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        options = [part for option in args.option for part in ("--option", option)]
        command = [
            sys.executable, "-m", "imagine.configs.cli", "collect", "--cache", "--out", str(lease.folder),
            "--episodes", str(args.episodes), "--workers", str(lease.workers), "--seconds", f"{seconds:.0f}", *options,
        ]  # fmt: skip
        self.folder, self.log = lease.folder / "cache", lease.folder / "collect.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["nice", "-n", "10", *command], env=environment, cwd=lease.folder, stdout=log, stderr=log
            )
        self.began = time.monotonic()

    def wait_for(self, episodes: int, seconds: float) -> list[Path]:
        """The finished caches as soon as they hold so many episodes, or when time is up or recording has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.count() >= episodes or self.process.poll() is not None:
                break
            time.sleep(0.5)
        if not caches_in(self.folder):
            raise SystemExit(f"nothing was recorded: {self.log.read_text()[-2000:]}")
        return caches_in(self.folder)

    def count(self) -> int:
        """Episodes in finished caches, about: those before the last are full."""
        return 50 * len(caches_in(self.folder))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def train_model(lease: Lease) -> None:
    """Collect and train until the time is up; ``g1-table-tiny`` in the work folder, and in ``out``."""
    recorder = Recorder(lease, seconds=lease.left - ENDING - 0.3 * lease.left)
    try:
        body = load_robot(DEFAULT).embodiment()
        assert body is not None
        windows = Windows(recorder.wait_for(lease.args.first, 120.0), body, 1)
        rate = len(np.unique(windows.seeds(windows.rows()))) / (time.monotonic() - recorder.began)
        lease.say("collect", episodes_per_second=rate, first_frames=int(windows._a["episode_frames"].sum()))
        codec = _codec(lease, windows)
        model: WorldActionModel | None = None
        trained, beside = 0.0, BESIDE
        for i, share in enumerate(SHARES):
            begun, ahead = lease.spent, lease.left - ENDING - beside * (len(SHARES) - i)
            windows = _latents(lease, codec, caches_in(recorder.folder), body)
            fresh = model is None
            model = model or _fresh(lease, windows, codec)
            seconds = trained + max(5.0, ahead)
            target = max(trained + 1.0, share * seconds)
            ema = _joint(lease, windows, model, seconds, target, share, compiled=fresh and lease.compile)
            _complete(lease, windows, ema)
            beside, trained = lease.spent - begun - (target - trained), target
    finally:
        recorder.stop()


def _codec(lease: Lease, windows: Windows) -> FrameCodec:
    """The codec, trained on the first episodes, and what it measured."""
    recipe, path = lease.recipe, lease.folder / "codec.safetensors"
    codec = FrameCodec(recipe.codec)
    if path.is_file():
        codec.load_state_dict(load_weights(path))
        return codec.to(lease.args.device).eval()
    at = windows.training_frames()
    at = np.sort(np.random.default_rng(0).permutation(at)[:CODEC_FRAMES])
    fit = recipe.codec_fit.model_copy(
        update={"steps": 10**6, "seconds": lease.args.codec_seconds, "eval_every": 10**6, "save_every": 10**6}
    )
    began = time.monotonic()
    codec = train_codec(windows.video[at], recipe.codec, fit, lease.folder / "codec")
    save_file({k: v.detach().cpu().contiguous() for k, v in codec.state_dict().items()}, path)
    metrics = json.loads((lease.folder / "codec/metrics.json").read_text())
    lease.say("codec", **metrics, frames_per_second=metrics["step"] * fit.batch / (time.monotonic() - began))
    return codec.to(lease.args.device).eval()


def _latents(lease: Lease, codec: FrameCodec, caches: list[Path], body: Any) -> Windows:
    """Latent windows, on the GPU, of all that has been recorded by now."""
    began = time.monotonic()
    windows = Windows(caches, body, context_frames=2).encoded(codec.encode, lease.args.device)
    frames = len(windows.video)
    lease.say("data", episodes=len(windows._a["episode_frames"]), frames=frames, seconds=time.monotonic() - began)
    return windows


def _fresh(lease: Lease, windows: Windows, codec: FrameCodec) -> WorldActionModel:
    """The joint model before it is trained; statistics and vocabulary are those of what is recorded by now."""
    torch.manual_seed(lease.recipe.model_fit.seed)
    model = build_model(windows, codec, lease.recipe.dit, lease.recipe.joint, name=lease.args.name)
    return model.to(lease.args.device)


def _joint(
    lease: Lease, windows: Windows, model: WorldActionModel, seconds: float, target: float, share: float, compiled: bool
) -> WorldActionModel:
    """Train the joint model until ``target`` of ``seconds`` are over; the moving average."""
    recipe, where = lease.recipe, lease.folder / "model_fit"
    fit = recipe.model_fit.model_copy(
        update={
            "steps": 10**6, "seconds": seconds, "pause": target if share < 1 else 0.0, "eval_every": 10**6,
            "save_every": 10**6, "compile": compiled,
        }
    )  # fmt: skip
    before = json.loads((where / "metrics.json").read_text())["step"] if (where / "metrics.json").is_file() else 0
    began = time.monotonic()
    ema = train_joint(windows, model, recipe.joint, fit, where, out=lease.model)
    metrics, taken = json.loads((where / "metrics.json").read_text()), time.monotonic() - began
    per_second = (metrics["step"] - before) / taken
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    lease.say(
        "model", **metrics, share=share, steps_per_second=per_second, samples_per_second=per_second * fit.batch,
        memory_gib=memory, parameters=sum(p.numel() for p in ema.dit.parameters()),
    )  # fmt: skip
    return ema


def _complete(lease: Lease, windows: Windows, model: WorldActionModel) -> None:
    """What a model folder holds beside the weights; then it is ready to be sent back."""
    remember(DEFAULT, lease.model)
    held = windows.rows("held_out")
    held = held if len(held) else windows.rows()
    cfg = DreamConfig()
    found = inverse_errors(model.eval(), windows, np.random.default_rng(0).permutation(held)[:2000], cfg)
    limit = float(np.quantile(found, 0.99))
    write_json(lease.model / "dream.json", cfg.model_copy(update={"hallucination_limit": limit}).model_dump())
    caches = caches_in(lease.folder / "cache")[:40]
    canvases = Windows(caches, windows.embodiment, context_frames=1, in_memory=False)
    first = np.unique(canvases.episode_rows(canvases.rows("held_out"))[0])[:MOST_SAVED]
    if len(first):
        save_starts([_start(canvases, int(row)) for row in first], lease.model)
    lease.ship(lease.model, "model")


def _start(canvases: Windows, row: int) -> Start:
    batch = canvases.batch(np.array([row]))
    text = batch.instructions[int(batch.instruction_id[0])]
    return Start(batch.video[0, 0].numpy(), batch.proprio[0, 0].numpy(), text, f"recorded-{row}")
