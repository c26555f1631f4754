"""WorldActionModel: codec, text encoder and JointDiT behind five verbs - encode, prefill, velocity, decode, save.

It is robot-blind: what it knows of a body is the embodiment file and the statistics stored in its folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .cache import ContextCache
from .codec import CodecConfig, FrameCodec
from .dit import DiTConfig, JointDiT
from .embodiment import Embodiment
from .noise import clean_from_velocity, velocity_from_clean
from .questions import QUESTIONS, Question
from .text import TextConfig, WordEncoder
from .types import CheckpointMismatch, Chunk, Context, NoiseLevels, Observation, ShapeError

SHIPPED = Path(__file__).parent / "checkpoints"
FORMAT = 1


class Statistics(BaseModel):
    """Mean and standard deviation of proprioception and of (relative) actions, in robot units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    proprio_mean: tuple[float, ...]
    proprio_std: tuple[float, ...]
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]


class ModelConfig(BaseModel):
    """Everything needed to rebuild a model around its weights; ``config.json`` in its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    format: int = FORMAT
    embodiment: Embodiment
    dit: DiTConfig
    codec: CodecConfig
    text: TextConfig
    statistics: Statistics
    context_frames: int = 2
    answers: tuple[str, ...] = ()
    schedule_shift: float = 1.0

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format}, expected {FORMAT}; use the version of imagine that wrote it")
        if unknown := set(self.answers) - set(QUESTIONS):
            raise ValueError(f"answers hold {sorted(unknown)}, expected some of {sorted(QUESTIONS)}")
        return self


class WorldActionModel(nn.Module):
    """One network that is a policy, a world model and an inverse dynamics model, depending on the question.

    Attributes:
        answers: the questions this checkpoint was trained to answer; :func:`imagine.sample` refuses any other.
        chunk_shapes: per modality, the shape of one lane's chunk.
    """

    proprio_mean: Tensor
    proprio_std: Tensor
    action_mean: Tensor
    action_std: Tensor
    anchor: Tensor
    anchored: Tensor

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.body = cfg.embodiment
        self.codec = FrameCodec(cfg.codec)
        self.text = WordEncoder(cfg.text)
        self.dit = JointDiT(cfg.dit)
        self.answers: frozenset[Question] = frozenset(QUESTIONS[n] for n in cfg.answers)
        self.schedule_shift = cfg.schedule_shift
        body, factor = cfg.embodiment, cfg.codec.factor
        latent = (cfg.codec.channels, body.canvas_height // factor, body.canvas_width // factor)
        self.chunk_shapes: dict[str, tuple[int, ...]] = {
            "video": (body.chunk_frames, *latent),
            "proprio": (body.chunk_frames, body.proprio_dim),
            "action": (body.chunk_actions, body.action_dim),
        }
        self.dit.chunk_blocks = body.chunk_frames // cfg.dit.patch[0]
        for name in ("proprio_mean", "proprio_std", "action_mean", "action_std"):
            self.register_buffer(name, torch.tensor(getattr(cfg.statistics, name)), persistent=False)
        anchors = body.anchors_in_proprio()
        self.register_buffer("anchor", torch.tensor([max(i, 0) for i in anchors]), persistent=False)
        self.register_buffer("anchored", torch.tensor([float(i >= 0) for i in anchors]), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.proprio_mean.device

    # ------------------------------------------------------------------ robot units <-> normalised
    def normalise_proprio(self, proprio: Tensor) -> Tensor:
        """(..., P) robot units to zero mean, unit variance."""
        return (proprio - self.proprio_mean) / self.proprio_std

    def restore_proprio(self, proprio: Tensor) -> Tensor:
        """Inverse of :meth:`normalise_proprio`."""
        return proprio * self.proprio_std + self.proprio_mean

    def normalise_action(self, action: Tensor) -> Tensor:
        """(..., A) robot units (relative to the chunk's first state) to zero mean, unit variance."""
        return (action - self.action_mean) / self.action_std

    def restore_action(self, action: Tensor) -> Tensor:
        """Inverse of :meth:`normalise_action`, clipped to the embodiment's bounds."""
        low, high = (torch.from_numpy(x).to(action) for x in (self.body.action_low, self.body.action_high))
        return torch.minimum(torch.maximum(action * self.action_std + self.action_mean, low), high)

    # ------------------------------------------------------------------ encode, predict, decode
    def encode(self, observation: Observation, instruction: Sequence[str]) -> Context:
        """Observations and instructions into a context.

        Args:
            observation: T frames; fewer than ``cfg.context_frames`` are filled by repeating the oldest.
            instruction: one per lane.

        Raises:
            ShapeError: the canvas or proprioception does not fit the embodiment.
            UnknownWord: an instruction holds a word the model never heard.
        """
        b, t = observation.canvas.shape[:2]
        want = (self.body.canvas_height, self.body.canvas_width, 3)
        if tuple(observation.canvas.shape[2:]) != want or observation.proprio.shape[-1] != self.body.proprio_dim:
            raise ShapeError(
                f"observation has canvas {tuple(observation.canvas.shape[2:])} and {observation.proprio.shape[-1]} "
                f"proprio values, expected {want} and {self.body.proprio_dim} of embodiment {self.body.name!r}."
            )
        if len(instruction) != b:
            raise ShapeError(f"got {len(instruction)} instructions for {b} lanes; give one per lane.")
        canvas = observation.canvas.to(self.device)
        video = self.codec.encode(canvas.flatten(0, 1)).unflatten(0, (b, t))
        proprio = self.normalise_proprio(observation.proprio.to(self.device, torch.float32))
        return self.context(video, proprio, instruction)

    def context(self, video: Tensor, proprio: Tensor, instruction: Sequence[str]) -> Context:
        """Latents (B, T, C, h, w) and normalised proprioception (B, T, P), newest last, into a context."""
        keep = self.cfg.context_frames
        missing = keep - video.shape[1]
        if missing > 0:
            video = torch.cat([video[:, :1].expand(-1, missing, -1, -1, -1), video], 1)
            proprio = torch.cat([proprio[:, :1].expand(-1, missing, -1), proprio], 1)
        return Context(video=video[:, -keep:], proprio=proprio[:, -keep:], text=self.embed_text(instruction))

    def embed_text(self, instruction: Sequence[str]) -> Tensor:
        """(B, L, D) float."""
        return self.text(self.text.tokenize(instruction).to(self.device))

    def prefill(self, context: Context) -> ContextCache:
        """Read a context once; the cache then serves any number of questions and denoising steps."""
        cache = self.dit.prefill(context)
        cache.origin = self._origin(context.proprio[:, -1])
        return cache

    def _origin(self, proprio: Tensor) -> Tensor:
        """Where a zero action leads, (B, A) in normalised action units, for the newest proprioception (B, P)."""
        scale = self.proprio_std[self.anchor] / self.action_std  # both centred on the mean pose
        return proprio[:, self.anchor] * scale * self.anchored

    def predict(self, noisy: Chunk, sigma: NoiseLevels, cache: ContextCache) -> Chunk:
        """The clean chunk that the network believes is behind a noisy one; normalised units."""
        raw = self.dit(noisy, sigma, cache)
        return raw if self.cfg.dit.prediction == "clean" else _each(clean_from_velocity, noisy, raw, sigma)

    def sketch(self, noisy: Chunk, sigma: NoiseLevels, context: Context) -> Tensor:
        """The clean video (B, F, C, h, w) as the painter draws it without the transformer; ``JointDiT.sketch``."""
        raw = self.dit.sketch(noisy, sigma, context, self._origin(context.proprio[:, -1]))
        if self.cfg.dit.prediction == "clean":
            return raw
        assert noisy.video is not None
        return clean_from_velocity(noisy.video, raw, sigma.video)

    def velocity(self, noisy: Chunk, sigma: NoiseLevels, context: Context, cache: ContextCache | None = None) -> Chunk:
        """Predict the flow velocity (eps - clean) of each present modality at decoupled noise levels.

        Args:
            noisy: video (B, F, C, h, w), proprio (B, F, P), action (B, K, A), normalised; absent ones are None.
            sigma: video (B,) and action (B,), each in [0, 1]; 0 is clean, 1 is pure noise.
            context: what is given and never denoised.
            cache: :meth:`prefill` of that context, if at hand.

        Source: UWM, arXiv:2504.02792 (decoupled noise); flow matching with x = (1 - sigma) clean + sigma eps.
        """
        raw = self.dit(noisy, sigma, self.prefill(context) if cache is None else cache)
        return raw if self.cfg.dit.prediction == "velocity" else _each(velocity_from_clean, noisy, raw, sigma)

    def decode(self, video: Tensor) -> Tensor:
        """Latents (B, F, C, h, w) to canvases (B, F, H, W, 3) uint8."""
        b, f = video.shape[:2]
        return self.codec.decode(video.flatten(0, 1)).unflatten(0, (b, f))

    def film(self, latents: Tensor, known: Mapping[int, Tensor] | None = None) -> Callable[..., Tensor]:
        """A ``Clip.decode`` of latents (B, F, C, h, w): frames by index or all of them, each decoded once at most.

        Args:
            latents: normalised.
            known: frames that are decoded already, (B, H, W, 3) uint8 by index from 0.
        """
        frames = dict(known or {})

        @torch.inference_mode()
        def decode(wanted: Sequence[int] | None = None) -> Tensor:
            n = latents.shape[1]
            at = range(n) if wanted is None else [int(i) % n for i in wanted]
            for i in at:
                if i not in frames:
                    frames[i] = self.decode(latents[:, i : i + 1])[:, 0]
            return torch.stack([frames[i] for i in at], 1)

        return decode

    # ------------------------------------------------------------------ folders
    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write ``config.json`` and the weights: ``codec``, ``painter`` if there is one, and all else in ``model``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in self.state_dict().items()}
        for name, prefix in self._files().items():
            part = {k.removeprefix(prefix): state.pop(k) for k in list(state) if k.startswith(prefix)}
            save_file(part, folder / f"{name}.tmp")
            (folder / f"{name}.tmp").rename(folder / name)
        (folder / "config.json.tmp").write_text(self.cfg.model_dump_json(indent=1))
        (folder / "config.json.tmp").rename(folder / "config.json")

    def _files(self) -> dict[str, str]:
        """Weight files of a folder and the prefix of what is in each; the last one takes the rest."""
        painter = {"painter.safetensors": "dit.painter."} if self.cfg.dit.painter.blocks else {}
        return {"codec.safetensors": "codec.", **painter, "model.safetensors": ""}

    @classmethod
    def from_pretrained(cls, name: str | Path, *, device: str | torch.device = "cpu") -> WorldActionModel:
        """Load a shipped model by name, a folder by path, or a hub repository by id.

        Raises:
            CheckpointMismatch: nothing there, a file is missing or truncated, or names and shapes disagree.
        """
        folder = resolve(name)
        try:
            cfg = ModelConfig.model_validate_json((folder / "config.json").read_bytes())
        except (OSError, ValidationError, json.JSONDecodeError) as error:
            raise CheckpointMismatch(f"{folder / 'config.json'} is not a usable model config: {error}") from None
        model = cls(cfg)
        state: dict[str, Tensor] = {}
        for name, prefix in model._files().items():
            state |= {prefix + k: v for k, v in load_weights(folder / name).items()}
        load_into(model, state, folder)
        return model.to(device).eval()


def _each(convert, noisy: Chunk, raw: Chunk, sigma: NoiseLevels) -> Chunk:  # type: ignore[no-untyped-def]
    levels = {"video": sigma.video, "proprio": sigma.video, "action": sigma.action}
    out = {}
    for name, level in levels.items():
        x, y = getattr(noisy, name), getattr(raw, name)
        out[name] = None if x is None else convert(x, y, level)
    return Chunk(**out)


def resolve(name: str | Path) -> Path:
    """Folder of a shipped model, a local path or a hub id; fails with what was tried."""
    if (SHIPPED / str(name) / "config.json").is_file():
        return SHIPPED / str(name)
    if Path(name).is_dir():
        return Path(name)
    shipped = sorted(p.name for p in SHIPPED.glob("*") if (p / "config.json").is_file())
    if str(name).count("/") == 1 and not str(name).startswith((".", "/")):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors"]))
        except Exception as error:
            raise CheckpointMismatch(
                f"{str(name)!r} is neither a folder nor a reachable hub repository ({type(error).__name__}); "
                f"shipped models: {', '.join(shipped)}."
            ) from None
    raise CheckpointMismatch(f"no model at {str(name)!r}; give a folder, a hub id, or one of: {', '.join(shipped)}.")


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file as float32.

    Raises:
        CheckpointMismatch: missing or truncated.
    """
    if not path.is_file():
        raise CheckpointMismatch(f"{path} is missing; copy the whole model folder.")
    try:
        return {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatch(f"{path} is truncated or not safetensors ({error}); copy it again.") from None


def load_into(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Strict load that names every missing, unexpected and mis-shaped tensor."""
    own = module.state_dict()
    wrong = [f"{k} is missing" for k in own if k not in state]
    wrong += [f"{k} is unexpected" for k in state if k not in own]
    wrong += [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if wrong:
        raise CheckpointMismatch(f"weights in {source} do not fit: {'; '.join(wrong[:8])} ({len(wrong)} in all).")
    module.load_state_dict(state)


def as_observation(frames: np.ndarray, proprio: np.ndarray) -> Observation:
    """Numpy (B, T, H, W, 3) uint8 and (B, T, P) float into an Observation."""
    return Observation(
        torch.from_numpy(np.ascontiguousarray(frames)), torch.from_numpy(np.asarray(proprio, np.float32))
    )
