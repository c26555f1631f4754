"""WorldActionModel: codec, text encoder and JointDiT behind five verbs - encode, prefill, velocity, decode, save.

It is robot-blind: what it knows of a body is the embodiment file and the statistics stored in its folder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from imagine.files import atomic_write
from imagine.intact import intact
from imagine.model import hub
from imagine.model.checkpoint import SHIPPED, as_dtype, load_into, load_parts, load_weights, resolve
from imagine.model.codec import CodecConfig, FrameCodec
from imagine.model.config import ModelConfig, PromptConfig, Statistics, VideoCodecConfig
from imagine.model.dit import JointDiT
from imagine.model.kv_cache import BlockKV, ContextCache
from imagine.model.text import TextConfig, WordEncoder
from imagine.model.units import RobotUnits
from imagine.noise import clean_from_velocity, of_each, velocity_from_clean
from imagine.questions import QUESTIONS, Question
from imagine.types import CheckpointMismatch, Chunk, Context, NoiseLevels, Observation, ShapeError

PRETRAINED = "imagine.wan.load"
"""The module that loads and saves models around a pretrained transformer; imported only for those (extra ``wan``)."""

__all__ = [
    "SHIPPED",
    "ModelConfig",
    "PromptConfig",
    "Statistics",
    "VideoCodecConfig",
    "WorldActionModel",
    "as_observation",
    "load_into",
    "load_weights",
    "resolve",
]  # fmt: skip


class WorldActionModel(RobotUnits):
    """One network that is a policy, a world model and an inverse dynamics model, depending on the question.

    Attributes:
        answers: the questions this checkpoint was trained to answer; :func:`imagine.sample` refuses any other.
        chunk_shapes: per modality, the shape of one chunk.
    """

    _checkpoint_conversion_mapping: ClassVar = {r"^(?!dit\.)": "dit."}
    """Where peft finds the layers of an adapter of the transformer's when it is attached to the whole model."""

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        dit: JointDiT | None = None,
        codec: nn.Module | None = None,
        text: nn.Module | None = None,
        image_encoder: nn.Module | None = None,
    ):
        """Build a model of untrained weights around what is given.

        Args:
            cfg: what to build.
            dit: a transformer that is there already; ``cfg.dit`` must be its.
            codec: encodes video, where ``cfg.codec`` is a pretrained one (:class:`imagine.wan.vae.WanCodec`).
            text: encodes instructions, where ``cfg.text`` is pretrained (:class:`imagine.wan.encoders.PromptEncoder`).
            image_encoder: encodes first frames for ``cfg.dit.image_dim`` (:class:`imagine.wan.encoders.ImageEncoder`).
        """
        super().__init__(cfg.embodiment, cfg.statistics)
        self.cfg = cfg
        self.codec: Any = FrameCodec(cfg.codec) if isinstance(cfg.codec, CodecConfig) else codec
        self.text: Any = WordEncoder(cfg.text) if isinstance(cfg.text, TextConfig) else text
        self.image_encoder = image_encoder
        self.dit = JointDiT(cfg.dit) if dit is None else dit
        self.answers: frozenset[Question] = frozenset(QUESTIONS[n] for n in cfg.answers)
        self.schedule_shift = cfg.schedule_shift
        self.text_shape = cfg.text.length, cfg.text.dim
        body, factor, self.temporal = cfg.embodiment, cfg.codec.factor, cfg.codec.temporal
        latent = (cfg.codec.channels, body.canvas_height // factor, body.canvas_width // factor)
        frames = body.chunk_frames // self.temporal
        self.chunk_shapes: dict[str, tuple[int, ...]] = {
            "video": (frames, *latent),
            "proprio": (frames, body.proprio_dim),
            "action": (body.chunk_actions, cfg.dit.action_dim if cfg.dit.registers else body.action_dim),
        }
        if not cfg.dit.proprio_dim or cfg.dit.registers:  # the next state is never predicted; see `integrate_proprio`
            del self.chunk_shapes["proprio"]
        self.dit.chunk_blocks = frames // cfg.dit.patch[0]

    # ------------------------------------------------------------------ encode, predict, decode
    def encode(self, observation: Observation, instruction: Sequence[str]) -> Context:
        """Observations and instructions into a context.

        Args:
            observation: T frames; fewer than ``cfg.context_frames`` are filled by repeating the oldest.
            instruction: one per observation.

        Raises:
            ShapeError: the canvas or proprioception does not fit the embodiment.
            UnknownWord: an instruction holds a word the model was not trained on.
        """
        b, t = observation.canvas.shape[:2]
        want = (self.body.canvas_height, self.body.canvas_width, 3)
        if tuple(observation.canvas.shape[2:]) != want or observation.proprio.shape[-1] != self.body.proprio_dim:
            raise ShapeError(
                f"observation has canvas {tuple(observation.canvas.shape[2:])} and {observation.proprio.shape[-1]} "
                f"proprio values, expected {want} and {self.body.proprio_dim} of embodiment {self.body.name!r}."
            )
        if len(instruction) != b:
            raise ShapeError(f"got {len(instruction)} instructions for {b} observations; give one each.")
        canvas = observation.canvas.to(self.device)
        proprio = self.normalise_proprio(observation.proprio.to(self.device, torch.float32))
        if self.temporal > 1:
            return self._encode_video(canvas, proprio, instruction)
        video = self.codec.encode(canvas.flatten(0, 1)).unflatten(0, (b, t))
        return self.context(video, proprio, instruction)

    def _encode_video(self, canvas: Tensor, proprio: Tensor, instruction: Sequence[str]) -> Context:
        """A context from video (B, T, H, W, 3): the newest frames that fill it, the oldest one repeated before them."""
        keep, step = self.cfg.context_frames, self.temporal
        wanted = 1 + step * (keep - 1)
        held = torch.arange(canvas.shape[1] - wanted, canvas.shape[1]).clamp(min=0)
        canvas, proprio = canvas[:, held], proprio[:, held]
        image, given = self.image_condition(canvas[:, 0])
        text = self.embed_text(instruction)
        return Context(self.codec.encode(canvas), proprio[:, ::step], text, image=image, condition=given)

    def image_condition(self, first: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Image tokens and condition (of a full context and its chunk) that a Wan I2V takes from a first frame.

        ``first`` is (B, H, W, 3) uint8; see :class:`Context` for what comes back.
        """
        dit, (frames, *_) = self.cfg.dit, self.chunk_shapes["video"]
        image = self.image_encoder(first) if dit.image_dim and self.image_encoder is not None else None
        given = self.codec.condition(first, self.cfg.context_frames + frames) if dit.condition_channels else None
        return image, given

    def context(self, video: Tensor, proprio: Tensor, instruction: Sequence[str]) -> Context:
        """Latents (B, T, C, h, w) and normalised proprioception (B, T, P), newest last, into a context."""
        missing = self.cfg.context_frames - video.shape[1]
        if missing > 0:
            video = torch.cat([video[:, :1].expand(-1, missing, -1, -1, -1), video], 1)
            proprio = torch.cat([proprio[:, :1].expand(-1, missing, -1), proprio], 1)
        nothing = video[:, :0], proprio[:, :0]
        memory = self.dit.decoder.begin(video[:, -1]) if self.cfg.dit.decoder.memory else None
        kept = self.slide(video, nothing[0]), self.slide(proprio, nothing[1])
        return Context(*kept, self.embed_text(instruction), memory=memory)

    def slide(self, old: Tensor, new: Tensor) -> Tensor:
        """What a context keeps of its frames (B, T, ...) when new ones follow: the sinks, and the newest."""
        dit = self.cfg.dit
        sinks = dit.sink_blocks * dit.block * dit.patch[0] - (
            dit.block - 1 if dit.first_alone and dit.sink_blocks else 0
        )
        rolling = torch.cat([old[:, sinks:], new], 1)
        return torch.cat([old[:, :sinks], rolling[:, sinks - self.cfg.context_frames :]], 1)

    def after(self, context: Context, video: Tensor, proprio: Tensor, memory: Tensor | None = None) -> Context:
        """The context in which a chunk of video (B, F, C, h, w) and proprioception (B, F, P) has been observed.

        ``memory`` (B, M, h, w) is the scene after the chunk, as :func:`imagine.sample` gives it with the chunk; without
        it a model with memory begins anew with the newest frame.
        """
        video, proprio = video.to(context.video), proprio.to(context.proprio)
        if memory is None and self.cfg.dit.decoder.memory:
            memory = self.dit.decoder.begin(video[:, -1])
        kept = {"video": self.slide(context.video, video), "proprio": self.slide(context.proprio, proprio)}
        return replace(context, **kept, memory=memory)

    def embed_text(self, instruction: Sequence[str]) -> Tensor:
        """(B, L, D) float."""
        if isinstance(self.cfg.text, PromptConfig):
            return self.text([self.cfg.text.template.replace("{task}", task.lower()) for task in instruction])
        return self.text(self.text.tokenize(instruction).to(self.device))

    def prefill(self, context: Context) -> ContextCache:
        """Read a context once; the cache then serves any number of questions and denoising steps."""
        cache = self.dit.prefill(context)
        if self.cfg.dit.action_dim and not self.cfg.dit.registers:
            cache.origin = self.origin(context.proprio[:, -1])
        return cache

    def predict(self, noisy: Chunk, sigma: NoiseLevels, cache: ContextCache) -> Chunk:
        """The clean chunk that the network believes is behind a noisy one; normalised units."""
        raw = self.dit(noisy, sigma, cache)
        if self.cfg.dit.prediction == "clean":
            return raw
        return replace(of_each(clean_from_velocity, noisy, raw, sigma), memory=raw.memory)

    def velocity(
        self,
        noisy: Chunk,
        sigma: NoiseLevels,
        context: Context,
        cache: ContextCache | None = None,
        block_kv: BlockKV | None = None,
        wanted: Collection[str] | None = None,
    ) -> Chunk:
        """Predict the flow velocity (eps - clean) of each present modality at decoupled noise levels.

        Args:
            noisy: video (B, F, C, h, w), proprio (B, F, P), action (B, K, A), normalised; absent ones are None.
            sigma: video (B,) and action (B,), each in [0, 1]; 0 is clean, 1 is pure noise.
            context: what is given and never denoised.
            cache: :meth:`prefill` of that context, if at hand.
            block_kv: filled with the video's keys and values for ``dit.remember``; None where nobody needs them.
            wanted: names of the modalities whose velocity is wanted; others may be None in the answer.

        Source: UWM, arXiv:2504.02792 (decoupled noise); flow matching with x = (1 - sigma) clean + sigma eps.
        """
        raw = self.dit(noisy, sigma, self.prefill(context) if cache is None else cache, block_kv, wanted)
        if self.cfg.dit.prediction == "velocity":
            return raw
        return replace(of_each(velocity_from_clean, noisy, raw, sigma), memory=raw.memory)

    def decode(self, video: Tensor, before: Tensor | None = None) -> Tensor:
        """Latents (B, F, C, h, w) to canvases (B, F, H, W, 3) uint8, the newest frame that each stands for.

        ``before`` (B, T, C, h, w) are the latents that they follow, which a video codec must know.
        """
        if self.temporal > 1:
            frames = self.decode_frames(video, before)
            return frames[:, -1 - self.temporal * (video.shape[1] - 1) :: self.temporal]
        b, f = video.shape[:2]
        return self.codec.decode(video.flatten(0, 1)).unflatten(0, (b, f))

    def decode_frames(self, video: Tensor, before: Tensor | None = None) -> Tensor:
        """As :meth:`decode`, every frame of a video codec: (B, 4 F, H, W, 3) uint8, or 1 + 4 (F - 1) from a start."""
        if self.temporal == 1:
            return self.decode(video)
        if before is None:
            return self.codec.decode(video)
        return self.codec.decode_after(before, video)

    def lazy_decode(
        self, latents: Tensor, known: Mapping[int, Tensor] | None = None, before: Tensor | None = None
    ) -> Callable[..., Tensor]:
        """A ``Clip.decode`` of latents (B, 1 + F, C, h, w): frames by index or all of them, each decoded once at most.

        Args:
            latents: normalised: an episode's first frame, then its newest chunk.
            known: frames that are decoded already, (B, H, W, 3) uint8 by index from 0.
            before: (B, T, C, h, w) latents that the chunk follows.
        """
        frames = dict(known or {})

        @torch.inference_mode()
        def decode(wanted: Sequence[int] | None = None) -> Tensor:
            n = latents.shape[1]
            at = range(n) if wanted is None else [int(i) % n for i in wanted]
            if self.temporal > 1 and any(i not in frames for i in at):  # a video codec decodes a chunk in one
                chunk = self.decode(latents[:, 1:], before)
                frames.update({i: chunk[:, i - 1] for i in range(1, n) if i not in frames})
            for i in at:
                if i not in frames:
                    frames[i] = self.decode(latents[:, i : i + 1])[:, 0]
            return torch.stack([frames[i] for i in at], 1)

        return decode

    # ------------------------------------------------------------------ folders
    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
        """Write ``config.json`` and the weights: ``codec``, ``decoder`` if there is one, and all else in ``model``.

        Of a pretrained model (Wan, DreamZero) it writes the transformer alone, in the precision it has. Beside it come
        a model card (``README.md``) with the action contract and the metrics that lie in the folder, and LeRobot's
        ``env.py``.
        """
        folder = Path(folder)
        hub.describe(self.cfg, folder)
        if isinstance(self.cfg.codec, VideoCodecConfig):
            return import_module(PRETRAINED).save(self, folder)  # type: ignore[no-any-return]
        state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in self.state_dict().items()}
        for name, prefix in self._files().items():
            part = {k.removeprefix(prefix): state.pop(k) for k in list(state) if k.startswith(prefix)}
            atomic_write(folder / name, save(part))
        atomic_write(folder / "config.json", self.cfg.model_dump_json(indent=1))

    def _files(self) -> dict[str, str]:
        """Weight files of a folder and the prefix of what is in each; the last one takes the rest."""
        decoder = {"decoder.safetensors": "dit.decoder."} if self.cfg.dit.decoder.blocks else {}
        return {"codec.safetensors": "codec.", **decoder, "model.safetensors": ""}

    def push_to_hub(
        self,
        repo_id: str,
        *,
        folder: str | Path | None = None,
        commit_message: str = "Upload a world-action model",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the model to a repository of the hub, as transformers' models do; returns the commit's address.

        Args:
            repo_id: made where it does not exist.
            folder: a whole model folder to upload instead, with its judge, starts and metrics.
            commit_message: of the commit.
            private: who may see a new repository.
            token: None for the one that is logged in.
            revision: a branch, made where it does not exist.
            create_pr: ask for a merge instead.

        Raises:
            ImagineError: the hub cannot be reached, or refuses.
        """
        return hub.push(
            self, repo_id, folder, commit_message=commit_message, private=private, token=token, revision=revision,
            create_pr=create_pr,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> WorldActionModel:
        """Load a shipped model by name, a folder by path, or a hub repository by id.

        Args:
            name: which.
            device: where to.
            dtype: of the weights, as ``torch.bfloat16`` or ``"bfloat16"``; None and ``"auto"`` are float32, and what
                the files have of a pretrained transformer in a foreign checkpoint.
            torch_dtype: the same under its former name in transformers.
            revision: branch, tag or commit of a hub repository.
            token: for a hub repository that is not open to all.

        Raises:
            CheckpointMismatch: nothing there, a file is missing or truncated, or names and shapes disagree.
            ImagineError: there is no such dtype.
        """
        dtype = as_dtype(torch_dtype if dtype is None else dtype)
        folder = resolve(name, revision=revision, token=token)
        try:
            with intact(folder / "config.json", "copy the whole model folder"):
                cfg = ModelConfig.model_validate_json((folder / "config.json").read_bytes())
        except CheckpointMismatch:
            if layout := import_module(PRETRAINED).layout(folder):
                raise CheckpointMismatch(
                    f"{folder} is foreign ({layout}); `imagine convert --checkpoint {name}` makes it a model of ours."
                ) from None
            raise
        if isinstance(cfg.codec, VideoCodecConfig):
            return import_module(PRETRAINED).rebuild(cfg, folder, device, dtype)  # type: ignore[no-any-return]
        with intact(folder / "config.json", "copy the whole model folder"), torch.device("meta"):
            plan = cls(cfg)  # sizes alone, so that nothing large is made before they are known to be those of the files
        state = load_parts(folder, plan._files(), plan.state_dict())
        model = cls(cfg)
        model.load_state_dict(state)
        return model.to(device=device, dtype=dtype).eval()


def as_observation(frames: np.ndarray, proprio: np.ndarray) -> Observation:
    """Numpy (B, T, H, W, 3) uint8 and (B, T, P) float into an Observation."""
    return Observation(
        torch.from_numpy(np.ascontiguousarray(frames)), torch.from_numpy(np.asarray(proprio, np.float32))
    )
