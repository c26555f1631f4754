"""The words every part shares: observations, contexts, chunks, noise levels, clips, scores, and three protocols.

Dimension letters, used in every docstring: B batch (lanes), N candidates, T context frames, F frames per chunk,
K actions per chunk, H W canvas pixels, C h w latent channels, height, width, L words, D width, P proprio, A action.

``t`` always means control time. A noise level is called ``sigma``: 1 is pure noise, 0 is clean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:  # a robot's own computer speaks these words without torch
    import torch
    from torch import Tensor

INSTRUCTION_BYTES = 512
"""Room for an instruction in an observation, UTF-8 bytes; recorded task sentences take 20 to 300."""


class ImagineError(ValueError):
    """Something the caller can mend; the message says what was wrong, got against expected, and what to do."""


class ShapeError(ImagineError):
    """An array has the wrong shape, dtype, range or unit."""


class UntrainedQuestion(ImagineError):
    """A checkpoint was asked a question it was never trained to answer."""


class UnknownWord(ImagineError):
    """An instruction holds words that the model's text encoder has never seen."""


class CheckpointMismatch(ImagineError):
    """A checkpoint folder is missing, truncated, or made for something else."""


class DatasetError(ImagineError):
    """A dataset is missing, corrupt, or of another embodiment; names the file and the episode."""


def first_fault(error: Any) -> tuple[str, str]:
    """Where pydantic's ``ValidationError`` begins, as ``a.b`` ("" for the whole), and what it says there."""
    first = error.errors()[0]
    return ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")


class RewardUnavailable(ImagineError):
    """The judge could not be reached or gave no usable answer."""


class Batched:
    """Tensor fields share a leading batch axis; adds ``to``, ``index`` and ``repeat``."""

    def _map(self, change: Callable[[Tensor], Tensor]) -> Any:
        from torch import Tensor

        new = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                new[f.name] = change(value)
            elif isinstance(value, dict):
                new[f.name] = {k: change(v) for k, v in value.items()}  # type: ignore[assignment]
        return replace(self, **new)  # type: ignore[type-var]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Move every tensor field, as ``torch.Tensor.to``."""
        return self._map(lambda x: x.to(*args, **kwargs))

    def index(self, rows: Any) -> Any:
        """Keep some rows of the batch axis."""
        return self._map(lambda x: x[rows])

    def repeat(self, n: int) -> Any:
        """Repeat each row ``n`` times, rows of one source adjacent: (B, ...) to (B * n, ...)."""
        return self._map(lambda x: x.repeat_interleave(n, 0))


@dataclass(frozen=True)
class Observation(Batched):
    """What the robot sees and feels, newest frame last.

    Attributes:
        canvas: (B, T, H, W, 3) uint8 RGB, all views tiled as the embodiment says.
        proprio: (B, T, P) float32 in robot units (the embodiment names them).
    """

    canvas: Tensor
    proprio: Tensor


@dataclass(frozen=True)
class Context(Batched):
    """What is given and never denoised.

    Attributes:
        video: (B, T, C, h, w) float, normalised latents of observed frames, newest last.
        proprio: (B, T, P) float, normalised.
        text: (B, L, D) float, the encoded instruction, zero after its last word (as Wan does; no mask).
        image: (B, I, E) float, tokens of the first frame for models that look at them (Wan I2V), else None.
        condition: (B, n, Cc, h, w) float, what frames are given beside their own latents, for models that take it (Wan
            I2V: a mask and the first frame), else None. Row i belongs to the i-th of the frames that are remembered at
            the time, the chunk's own behind them, so n = most that are remembered + F serves an endless episode.
        memory: (B, M, h, w) float, what a model with memory keeps of the scene beyond its frames, else None; None of a
            model that has it means that nothing but the newest frame has been seen.
    """

    video: Tensor
    proprio: Tensor
    text: Tensor
    image: Tensor | None = None
    condition: Tensor | None = None
    memory: Tensor | None = None

    def __len__(self) -> int:
        return self.video.shape[0]

    def named(self) -> dict[str, Tensor]:
        """What is there, by name, always in the same order."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class Chunk(Batched):
    """One chunk of future: video (latents and proprioception) and actions; an absent modality is None.

    Attributes:
        video: (B, F, C, h, w) float latents, or None.
        proprio: (B, F, P) float, normalised, or None; present exactly when video is.
        action: (B, K, A) float, normalised, or None.
        memory: (B, M, h, w) float, the scene after the chunk, of a model with memory; see :class:`Context`.
    """

    video: Tensor | None = None
    proprio: Tensor | None = None
    action: Tensor | None = None
    memory: Tensor | None = None


@dataclass(frozen=True)
class NoiseLevels(Batched):
    """How noisy each modality of a chunk is: 0 is clean, 1 is pure noise.

    Attributes:
        video: (B,) float in [0, 1], or (B, F / pt) where temporal patches differ; also the level of the predicted
            proprioception.
        action: (B,) float in [0, 1].
    """

    video: Tensor
    action: Tensor


@dataclass(frozen=True)
class Clip:
    """What a judge is shown: the start of an episode, the newest frames of it, and what is known of the newest chunk.

    Attributes:
        latents: (B, 1 + F, C, h, w) float; the episode's first frame, then the newest chunk.
        proprio: (B, 1 + F, P) float, normalised, same frames.
        decode: gives the frames asked for by index, or all of them, as (B, frames, H, W, 3) uint8; called only by
            judges that look at pixels.
        action: (B, K, A) float32 the chunk commanded, absolute robot units; None where there was none.
        pose: (B, A) float32 where the robot was before it, absolute robot units; None likewise.
        inverse_error: (B,) float32 root mean square between the action that INVERSE reads from the chunk's video and
            the one commanded, normalised action units; None where nobody asked.
    """

    latents: Tensor
    proprio: Tensor
    decode: Callable[..., Tensor]
    action: Tensor | None = None
    pose: Tensor | None = None
    inverse_error: Tensor | None = None


@dataclass(frozen=True)
class Score:
    """A judgement of B clips: reward, success, the end of the episode and validity, each for itself.

    Attributes:
        reward: (B,) float32, any sign and size; it never ends an episode.
        success: (B,) float32 in [0, 1], the probability that the instruction has been carried out.
        valid: (B,) bool; False where the judge could not tell. Never read the other fields where it is False.
        terms: named (B,) float32 parts of the reward, reported in ``info["reward_terms"]``.
        terminated: (B,) bool, the episode is over because the instruction has been carried out. Left out, it is where
            ``success`` is at least 0.5; a judge with a threshold of its own says so here.
    """

    reward: Tensor
    success: Tensor
    valid: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    terminated: Tensor = None  # type: ignore[assignment]  # always a tensor after construction

    def __post_init__(self) -> None:
        ends = self.success >= 0.5 if self.terminated is None else self.terminated
        object.__setattr__(self, "terminated", ends & self.valid)


def takes_committed(policy: object) -> bool:
    """Whether a policy's ``act`` takes ``committed``, (B, D, A) in robot units: how its chunks begin in any case."""
    return bool(getattr(policy, "takes_committed", False))


@runtime_checkable
class RewardModel(Protocol):
    """Judges clips. Implementations live in ``rewards`` and know only this module."""

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """Judge each of the B clips against its instruction."""
        ...


@runtime_checkable
class Policy(Protocol):
    """Acts on observations. One call answers a whole batch of parallel episodes.

    Who is acted for and which noise is drawn are two arguments: a policy that remembers keys its memory on
    ``episodes`` and draws from ``seeds``. A row's answer is a function of its own observation, seed and episode (and of
    what that episode showed before), bit for bit, whatever other rows there are.
    """

    def act(
        self,
        observation: dict[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        episodes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Choose one chunk per row.

        Args:
            observation: batched environment observations, as ``imagine.world.spaces.observation_space`` describes.
            seeds: one per row, any whole numbers; all noise of this decision is derived from them. None: fresh noise.
            episodes: one per row, any whole numbers: which episode it belongs to. None: row i is always the same one.

        Returns:
            (B, K, A) float32 in robot units.
        """
        ...

    def reset(self, episodes: Sequence[int] | None = None) -> None:
        """Forget these episodes, or all."""
        ...


@runtime_checkable
class Robot(Protocol):
    """A real robot, or the simulator that stands in for it, driven one chunk at a time."""

    def reset(self, seed: int, instruction: str | None = None) -> dict[str, np.ndarray]:
        """Start an episode; returns one unbatched observation."""
        ...

    def execute(self, chunk: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Carry out (K, A) actions in robot units; returns the F observations seen on the way, newest last."""
        ...


class TickRobot(Protocol):
    """A robot, or the simulator in its place, one control tick at a time."""

    @property
    def success(self) -> bool:
        """The instruction has been carried out since the reset; always False where nobody knows."""
        ...

    def reset(self, seed: int, instruction: str | None = None) -> Any:
        """Begin an episode; a simulator's is a function of the seed."""
        ...

    def observe(self) -> dict[str, np.ndarray]:
        """What is seen and felt now, one observation without batch axis (``imagine.world.spaces``)."""
        ...

    def anchor(self) -> np.ndarray:
        """(A,) float32, what relative actions that begin now are measured from (``Embodiment.anchor_of``)."""
        ...

    def features(self) -> dict[str, np.ndarray]:
        """As LeRobot records them: ``observation.state`` (S,) now, ``action`` (A',) the whole last command, float32."""
        ...

    def tick(self, move: np.ndarray) -> None:
        """Carry out one tick; ``move`` (A,) float32 is absolute, in robot units."""
        ...

    def close(self) -> None:
        """Let the robot go."""
        ...


def pack_instruction(text: str) -> np.ndarray:
    """UTF-8 bytes of an instruction, zero padded to (512,) uint8, so that it can live in an observation.

    Raises:
        ShapeError: the text is empty or longer than 512 bytes.
    """
    raw = text.strip().encode()
    if not 0 < len(raw) <= INSTRUCTION_BYTES:
        raise ShapeError(
            f"instruction {text[:40]!r} has {len(raw)} bytes, expected 1 to {INSTRUCTION_BYTES}; say it more briefly."
        )
    out = np.zeros(INSTRUCTION_BYTES, np.uint8)
    out[: len(raw)] = np.frombuffer(raw, np.uint8)
    return out


def unpack_instruction(packed: np.ndarray) -> str:
    """Inverse of :func:`pack_instruction`; (512,) uint8 to text."""
    return bytes(np.asarray(packed, np.uint8)).rstrip(b"\0").decode("utf-8", "replace")


def seeded(seed: int) -> torch.Generator:
    """A CPU generator; noise is drawn on the CPU per row so that bytes do not depend on batch size or device.

    Args:
        seed: in [0, 2^63), as :func:`imagine.seeds.derive` gives.
    """
    import torch

    return torch.Generator().manual_seed(int(seed))
