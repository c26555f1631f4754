"""Training of the joint model and of its frame codec, with the figures to watch from the first minute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from imagine.data.batches import WindowSampler
from imagine.data.check import refuse_out_of_bounds
from imagine.data.windows import WindowBatch, Windows, statistics
from imagine.files import write_json
from imagine.model.codec import CodecConfig, FrameCodec
from imagine.model.dit import DiTConfig
from imagine.model.model import ModelConfig, Statistics, WorldActionModel
from imagine.model.sizes import fitted
from imagine.model.text import TextConfig, split_words, vocabulary
from imagine.questions import DYNAMICS, INVERSE, POLICY
from imagine.sampler import sample
from imagine.seeds import Stream, derive
from imagine.train.fit import FitConfig, fit, generator_on
from imagine.train.losses import JointConfig, joint_loss, on_own_frames, to_tensors
from imagine.train.sequences import Usual, draw_sequences, sequence_loss
from imagine.types import DatasetError, ImagineError
from imagine.world.fidelity import decibel

MIN_WORDS = 10
"""Instructions of a new model may have this many words even where its dataset's are shorter."""
_CODEC_HELD_OUT = 200  # frames


def trained_answers(cfg: JointConfig, has_actions: bool) -> tuple[str, ...]:
    """The questions that training with ``cfg`` brings into distribution; a checkpoint must claim no other."""
    share, acts = cfg.shares, has_actions
    trained = {
        "POLICY": acts and cfg.policy_passes > 0,
        "DYNAMICS": acts and share.dynamics > 0,
        "INVERSE": acts and share.inverse > 0,
        "JOINT": acts and share.joint > 0,
        "VIDEO": cfg.video_only > 0,
    }
    return tuple(name for name, is_trained in trained.items() if is_trained)


def build_model(
    windows: Windows, codec: FrameCodec, dit: DiTConfig, joint: JointConfig, *, name: str, text_dim: int = 128
) -> WorldActionModel:
    """A fresh model for a dataset: sizes from its embodiment, vocabulary and statistics from its training windows.

    Raises:
        ImagineError: the recipe does not fit the embodiment; names the key.
        DatasetError: the recorded actions lie outside the embodiment's bounds.
    """
    body, stats = windows.embodiment, statistics(windows)
    refuse_out_of_bounds(windows)
    sizes = {"channels": codec.cfg.channels, "text_dim": text_dim}
    dit = fitted(dit, body, codec.cfg.factor).model_copy(update=sizes)
    words = max(len(split_words(text)) for text in windows.instructions)
    cfg = ModelConfig(
        name=name,
        embodiment=body,
        dit=dit,
        codec=codec.cfg,
        text=TextConfig(words=vocabulary(windows.instructions), length=max(MIN_WORDS, words), dim=text_dim),
        statistics=Statistics(
            proprio_mean=tuple(stats["proprio"]["mean"].tolist()),
            proprio_std=tuple(stats["proprio"]["std"].clip(1e-3).tolist()),
            action_mean=tuple(stats["action"]["mean"].tolist()),
            action_std=tuple(stats["action"]["std"].clip(1e-3).tolist()),
        ),
        answers=trained_answers(joint, bool(windows.actions(windows.rows("all")[::100])[1].any())),
    )
    model = WorldActionModel(cfg)
    model.codec.load_state_dict(codec.state_dict())
    model.codec.requires_grad_(False)
    return model


@torch.no_grad()
def held_out(model: WorldActionModel, windows: Windows, rows: np.ndarray, steps: int = 1) -> dict[str, float]:
    """The three figures to watch from the first minute, on held-out windows; see :mod:`imagine.world.fidelity` for all.

    Latent PSNR is taken in pixels after decoding. Action errors are root mean squares in normalised units.
    """
    model.eval()
    out: dict[str, list[float]] = {}
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        context, clean, masks = to_tensors(model, windows.batch(part))
        cache, seeds = model.prefill(context), [int(r) for r in part]
        truth = model.decode(clean.video)  # type: ignore[arg-type]
        other = torch.roll(torch.arange(len(part)), max(1, len(part) // 2))
        dreams = {"true": clean.action, "shuffled": clean.action[other]}  # type: ignore[index]
        for name, action in dreams.items():
            dream = sample(model, DYNAMICS, context, action=action, steps=steps, seeds=seeds, cache=cache)
            out.setdefault(f"psnr_{name}", []).append(psnr(model.decode(dream.video), truth))  # type: ignore[arg-type]
        still = model.decode(context.video[:, -1:]).expand_as(truth)
        out.setdefault("psnr_copy", []).append(psnr(still, truth))
        inverse = sample(model, INVERSE, context, video=clean.video, proprio=clean.proprio, steps=4, seeds=seeds)
        out.setdefault("inverse_rms", []).append(rms(inverse.action, clean.action, masks["action"]))
        wrong = replace(context, text=context.text[other])
        for name, ctx in {"policy_rms": context, "policy_wrong": wrong}.items():
            act = sample(model, POLICY, ctx, steps=2, seeds=seeds).action
            out.setdefault(name, []).append(rms(act, clean.action, masks["policy"]))
    return {k: float(np.mean(v)) for k, v in out.items()}


def psnr(a: Tensor, b: Tensor) -> float:
    """:func:`imagine.world.fidelity.decibel` of uint8 frames."""
    return decibel(float((a.float() - b.float()).square().mean()))


def rms(a: Tensor | None, b: Tensor | None, mask: Tensor) -> float:
    """Root mean square over the actions that ``mask`` (B, K) keeps."""
    assert a is not None and b is not None
    return float((((a - b).square().mean(2) * mask).sum() / mask.sum().clamp(min=1)).sqrt())


def train_joint(
    windows: Windows, model: WorldActionModel, cfg: JointConfig, run: FitConfig, folder: Path, *, out: Path
) -> WorldActionModel:
    """Train (or resume) the joint model and publish its moving average, with metrics beside it, to ``out``."""
    _check_memory(cfg, model.cfg.dit)
    rows = windows.rows("train")
    if not len(rows):
        raise DatasetError("the dataset has no training window; record more or longer episodes.")
    held = windows.rows("held_out")
    held = held if len(held) else rows  # a dataset of one episode holds nothing out
    held = held[np.random.default_rng(0).permutation(len(held))[:256]]

    def publish(ema: nn.Module, numbers: dict[str, float]) -> None:
        assert isinstance(ema, WorldActionModel)
        ema.save_pretrained(out)
        write_json(out / "training.json", numbers)

    def evaluate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, WorldActionModel)
        return held_out(ema, windows, held)

    loss = (_Sequences if cfg.chunks else _Loss)(windows, model, cfg, run)
    ema = fit(model, loss, run, folder, evaluate=evaluate, publish=publish, on_share=loss.go_on, name="model")
    assert isinstance(ema, WorldActionModel)
    return ema


class _Loss:
    """What each step learns from: windows of any behaviour, and others that the policy may imitate."""

    def __init__(self, windows: Windows, model: WorldActionModel, cfg: JointConfig, run: FitConfig) -> None:
        self.windows, self.model, self.cfg, self.share = windows, model, cfg, 0.0
        rows, self.good = windows.rows("train"), None
        self.sampler = WindowSampler(rows, run.batch, seed=run.seed)
        imitable = rows[windows.imitable(rows)]
        if len(imitable) and cfg.policy_batch:
            self.good = WindowSampler(imitable, cfg.policy_batch, derive(run.seed, Stream.POLICY))

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step, and numbers to log."""
        model, cfg, rows = self.model.train(), self.cfg, self.sampler.at(step)
        demonstrations = None if self.good is None else self._batch(self.good.at(step), generator)
        return joint_loss(model, self._batch(rows, generator), cfg, generator, demonstrations)

    def go_on(self, share: float) -> None:
        """Be told how much of the run is done."""
        self.share = share

    def _batch(self, rows: np.ndarray, generator: torch.Generator) -> WindowBatch:
        return on_own_frames(self.model, self.windows, rows, self.windows.batch(rows), self.cfg, generator)


class _Sequences(_Loss):
    """As :class:`_Loss` of sequences, whose length grows as training goes on; can be replayed."""

    def __init__(self, windows: Windows, model: WorldActionModel, cfg: JointConfig, run: FitConfig) -> None:
        super().__init__(windows, model, cfg, run)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            windows.to(device)
        self.usual = Usual.of(windows)
        self.words = model.text.tokenize(list(windows.instructions)).to(device)

    def draw(self, step: int, generator: torch.Generator) -> tuple[int | None, dict[str, Tensor]]:
        """See :class:`imagine.train.replay.Replayable`; the key is the length, None without actions (VIDEO)."""
        cfg = self.cfg
        self.silent = bool(torch.rand((), generator=generator) < cfg.video_only)
        chunks = 1 if self.silent else cfg.chunks[min(int(len(cfg.chunks) * self.share), len(cfg.chunks) - 1)]
        shown = None if self.good is None or not cfg.policy_passes else self.good.at(step)
        drawn = draw_sequences(self.windows, self.sampler.at(step), chunks, cfg, generator, shown)
        return None if self.silent else chunks, drawn

    def compute(self, given: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict[str, Any]]:
        """See :class:`imagine.train.replay.Replayable`."""
        model = self.model.train()
        return sequence_loss(
            model, self.windows, self.words, given, self.cfg, self.usual, generator, silent=self.silent
        )  # fmt: skip

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """The loss of one step, and numbers to log."""
        _, drawn = self.draw(step, generator)
        device = self.words.device
        given = {name: value.to(device) for name, value in drawn.items()}
        return self.compute(given, generator_on(device, generator))


def _check_memory(cfg: JointConfig, dit: DiTConfig) -> None:
    if bool(cfg.chunks) != bool(dit.decoder.memory):
        raise ImagineError(
            f"joint.chunks is {list(cfg.chunks)} and dit.decoder.memory is {dit.decoder.memory}, expected both or "
            "neither: memory is learnt on sequences; set joint.chunks, as 2,4,6, or dit.decoder={}."
        )


def train_codec(frames: np.ndarray, cfg: CodecConfig, run: FitConfig, folder: Path) -> FrameCodec:
    """Train (or resume) the frame codec on canvases (M, H, W, 3) uint8; sets its latent mean and std at the end."""
    codec = FrameCodec(cfg).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    canvases = torch.from_numpy(frames).to(device)
    order = np.random.default_rng(run.seed).permutation(len(frames))
    few = min(_CODEC_HELD_OUT, len(order) // 10)
    train, held = np.sort(order[few:]), np.sort(order[:few] if few else order)

    def evaluate(ema: nn.Module) -> dict[str, float]:
        assert isinstance(ema, FrameCodec)
        with torch.no_grad():
            x = canvases[torch.from_numpy(held).to(device)]
            ema.mean.zero_(), ema.std.fill_(1.0)
            return {"psnr_codec": psnr(ema.decode(ema.encode_raw(x)), x)}

    ema = fit(codec, _Codec(codec, canvases, train, run.batch), run, folder, evaluate=evaluate, name="codec")
    assert isinstance(ema, FrameCodec)
    with torch.no_grad():
        some = np.random.default_rng(1).choice(len(frames), min(4000, len(frames)), replace=False)
        parts = [torch.from_numpy(np.sort(part)).to(device) for part in np.array_split(some, 16)]
        z = torch.cat([ema.encode_raw(canvases[part]) for part in parts])
        ema.mean.copy_(z.mean((0, 2, 3))), ema.std.copy_(z.std((0, 2, 3)))
    return ema


class _Codec:
    """What a frame codec learns from; pixels count by how far they are from the mean canvas, as small things would not.

    Can be replayed; see :class:`imagine.train.replay.Replayable`.
    """

    def __init__(self, codec: FrameCodec, canvases: Tensor, train: np.ndarray, batch: int) -> None:
        self.codec, self.canvases, self.train, self.batch = codec, canvases, torch.from_numpy(train), batch
        some = canvases[:: max(1, len(canvases) // 2000)]
        self.mean = some.float().mean(0).div(127.5).sub(1).permute(2, 0, 1)

    def draw(self, step: int, generator: torch.Generator) -> tuple[int, dict[str, Tensor]]:
        """The numbers of the frames of a step."""
        return 0, {"pick": self.train[torch.randint(len(self.train), (self.batch,), generator=generator)]}

    def compute(self, given: dict[str, Tensor], generator: torch.Generator | None) -> tuple[Tensor, dict[str, Any]]:
        """The loss, and decibels."""
        codec, x = self.codec.train(), self.canvases[given["pick"]]
        z = codec.encode_raw(x)
        noise = torch.randn(z.shape, generator=generator, device=z.device)
        z = z + 0.02 * noise.to(z) * z.detach().float().std().to(z)
        target = x.permute(0, 3, 1, 2).float() / 127.5 - 1
        error = codec.decode_raw(z).float() - target
        weight = 1 + 4 * (target - self.mean).abs()
        value = (weight * (error.square() + 0.1 * error.abs())).mean() + 1e-4 * z.float().square().mean()
        return value, {"psnr": 10 * (4 / error.detach().square().mean()).log10()}

    def __call__(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        """The loss of one step, and numbers to log."""
        given = {name: value.to(self.canvases.device) for name, value in self.draw(step, generator)[1].items()}
        return self.compute(given, generator_on(self.canvases.device, generator))
