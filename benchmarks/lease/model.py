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

from imagine.agents.collect_cache import TOGETHER, caches_in
from imagine.data.windows import Windows
from imagine.files import write_json
from imagine.model.codec import FrameCodec
from imagine.model.model import WorldActionModel, load_weights
from imagine.policy.robots.registry import DEFAULT, load_robot, remember
from imagine.train.joint import build_model, train_codec, train_joint
from imagine.types import ImagineError
from imagine.world.dream import DreamConfig
from imagine.world.fidelity import inverse_errors
from imagine.world.starts import MOST_SAVED, Start, save_starts
from lease.parts import ROOT, Lease

BESIDE = 15.0  # seconds that each of them costs beside training, before this is known
SHARES = (0.4, 1.0)  # of the model's time; at each its training pauses, is shipped and takes in new data
ENDING = 8.0  # seconds that nothing is planned for
CODEC_FRAMES = 24_000


class Recorder:
    """Episodes recorded in the background, at a lower priority than training."""

    def __init__(self, lease: Lease, seconds: float) -> None:
        args, environment = lease.args, dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        options = [part for option in args.option for part in ("--option", option)]
        command = [
            sys.executable, "-m", "imagine.configs.cli", "record", "--cache", "--out", str(lease.folder),
            "--episodes", str(args.episodes), "--workers", str(lease.workers), "--seconds", f"{seconds:.0f}", *options,
        ]  # fmt: skip
        self.folder, self.log = lease.folder / "cache", lease.folder / "collect.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["nice", "-n", "19", *command], env=environment, cwd=lease.folder, stdout=log, stderr=log
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
        return TOGETHER * len(caches_in(self.folder))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def train_model(lease: Lease) -> None:
    """Collect and train until the time is up; ``g1-table-tiny`` in the work folder, and in ``out``."""
    recorder = Recorder(lease, seconds=0.7 * lease.left - ENDING)
    try:
        body = load_robot(DEFAULT).embodiment()
        assert body is not None
        windows = Windows(recorder.wait_for(lease.args.first, 120.0), body, 1)
        rate = len(np.unique(windows.seeds(windows.rows()))) / (time.monotonic() - recorder.began)
        lease.say("collect", episodes_per_second=rate, first_frames=len(windows.training_frames()))
        training = _Training(lease, _codec(lease, windows), body)
        for i in range(len(SHARES)):
            training.go_on(i, caches_in(recorder.folder))
    finally:
        recorder.stop()


def _codec(lease: Lease, windows: Windows) -> FrameCodec:
    """The codec, trained on the first episodes, and what it measured."""
    recipe, path = lease.recipe, lease.folder / "codec.safetensors"
    if lease.args.init:
        return WorldActionModel.from_pretrained(lease.args.init, device=lease.args.device).codec  # type: ignore[no-any-return]
    codec = FrameCodec(recipe.codec)
    if path.is_file():
        codec.load_state_dict(load_weights(path))
        return codec.to(lease.args.device).eval()
    at = windows.training_frames()
    at = np.sort(np.random.default_rng(0).permutation(at)[:CODEC_FRAMES])
    fit = recipe.codec_fit.model_copy(
        update={"steps": 10**6, "seconds": lease.args.codec_seconds, "eval_every": 10**6, "save_every": 10**6,
                "replay": True}
    )  # fmt: skip
    began = time.monotonic()
    codec = train_codec(windows.video[at], recipe.codec, fit, lease.folder / "codec")
    save_file({k: v.detach().cpu().contiguous() for k, v in codec.state_dict().items()}, path)
    metrics = json.loads((lease.folder / "codec/metrics.json").read_text())
    lease.say("codec", **metrics, frames_per_second=metrics["step"] * fit.batch / (time.monotonic() - began))
    return codec.to(lease.args.device).eval()


class _Training:
    """The joint model, trained in parts, each on all that has been recorded by then."""

    def __init__(self, lease: Lease, codec: FrameCodec, body: Any) -> None:
        self.lease, self.codec, self.body = lease, codec, body
        self.where = lease.folder / "model_fit"
        self.model: WorldActionModel | None = None
        self.latents: dict[Path, torch.Tensor] = {}
        self.trained = float(lease.numbers.get("model", {}).get("trained", 0.0))  # seconds
        self.beside, self.patience = BESIDE, 1.0

    def go_on(self, part: int, caches: list[Path]) -> None:
        """Train up to a share of the time, publish and ship; a diverged part is given up, and the next one slower."""
        lease, begun = self.lease, self.lease.spent
        windows = self._windows(caches)
        seconds = self.trained + max(5.0, lease.left - ENDING - self.beside * (len(SHARES) - part))
        target = max(self.trained + 1.0, SHARES[part] * seconds)
        try:
            ema = self._fit(windows, seconds, target, last=part + 1 == len(SHARES))
        except ImagineError as error:
            self.patience /= 2
            self.model = self.model if (self.where / "state").is_dir() else None
            lease.say("failed", **{f"part {part}": str(error)})
            return
        lease.attempt("complete", lambda: _complete(lease, windows, ema))
        lease.ship(lease.model, "model")
        self.beside, self.trained = lease.spent - begun - (target - self.trained), target

    def _windows(self, caches: list[Path]) -> Windows:
        """Latent windows, on the GPU, of all that has been recorded by now."""
        began, device = time.monotonic(), self.lease.args.device
        windows = Windows(caches, self.body, context_frames=2).encoded(self.codec.encode, device, kept=self.latents)
        episodes = len(np.unique(windows.seeds(windows.rows())))
        self.lease.say("data", episodes=episodes, frames=len(windows.video), seconds=time.monotonic() - began)
        return windows

    def _fit(self, windows: Windows, seconds: float, target: float, last: bool) -> WorldActionModel:
        """Train until ``target`` of ``seconds`` are over; the moving average."""
        lease, recipe = self.lease, self.lease.recipe
        if self.model is None and lease.args.init:
            self.model = WorldActionModel.from_pretrained(lease.args.init, device=lease.args.device)
            self.model.codec.requires_grad_(False)
        if self.model is None:  # statistics and vocabulary are those of what is recorded by now
            torch.manual_seed(recipe.model_fit.seed)
            self.model = build_model(windows, self.codec, recipe.dit, recipe.joint, name=lease.args.name)
            self.model = self.model.to(lease.args.device)
        fit = recipe.model_fit.model_copy(
            update={
                "steps": 10**6, "seconds": seconds, "pause": 0.0 if last else target, "eval_every": 10**6,
                "save_every": 10**6, "replay": True, "lr": recipe.model_fit.lr * self.patience,
            }
        )  # fmt: skip
        before, began = self._step(), time.monotonic()
        ema = train_joint(windows, self.model, recipe.joint, fit, self.where, out=lease.model)
        speed = (self._step() - before) / (time.monotonic() - began)
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        lease.say(
            "model", **json.loads((self.where / "metrics.json").read_text()), trained=target, steps_per_second=speed,
            samples_per_second=speed * fit.batch, memory_gib=memory,
            parameters=sum(p.numel() for p in ema.dit.parameters()),
        )  # fmt: skip
        return ema

    def _step(self) -> int:
        path = self.where / "metrics.json"
        return int(json.loads(path.read_text())["step"]) if path.is_file() else 0


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


def _start(canvases: Windows, row: int) -> Start:
    batch = canvases.batch(np.array([row]))
    text = batch.instructions[int(batch.instruction_id[0])]
    return Start(batch.video[0, 0].numpy(), batch.proprio[0, 0].numpy(), text, f"recorded-{row}")
