"""RobometerJudge: progress and success after every frame of a clip, from one forward pass of a Qwen3-VL.

What this is: a loader for Robometer's layout (arXiv:2603.02115). The instruction comes first, then the frames, and
after each frame a token of its own, at whose last hidden state two small heads read progress and success. The text
half is causal, so each frame is judged by what was seen up to it. What this is not: its training, its comparison of
two clips (the ``preference_head`` is left where it is), nor its video mode.

A folder holds a ``transformers`` Qwen3-VL checkpoint whose tokenizer knows the token, and ``robometer.json``
(:class:`RobometerConfig`). The heads lie in ``heads.safetensors``, or inside the checkpoint's own files under the
same names, as in the published Robometer-4B: ``{progress_head,success_head}.{0,1,4}.{weight,bias}``, with 0 the first
linear map, 1 the layer norm and 4 the second linear map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from imagine.files import atomic_write
from imagine.memo import Memo
from imagine.rewards.local import LocalVLM
from imagine.rewards.pictures import QwenPictures
from imagine.rewards.robometer_heads import (
    RobometerConfig,
    RobometerHeads,
    expectation,
    fitting,
    head_tensors,
    prefixes,
)
from imagine.types import CheckpointMismatch, Clip, Score, ShapeError


@dataclass(frozen=True)
class Curve:
    """What was judged after each of F frames.

    Attributes:
        progress: (B, F) float32 in [0, 1].
        success: (B, F) float32 in [0, 1], a probability.
        understood: (B,) bool, False where the tokenizer did not know a word of the instruction.
    """

    progress: Tensor
    success: Tensor
    understood: Tensor


class RobometerJudge:
    """A ``RewardModel``: success and progress of a clip, from its frames and the instruction."""

    def __init__(self, vlm: LocalVLM, heads: RobometerHeads, cfg: RobometerConfig) -> None:
        """Join a model and its heads.

        Args:
            vlm: a Qwen-VL; its tokenizer knows ``cfg.token``.
            heads: for its hidden states.
            cfg: how they are read.

        Raises:
            CheckpointMismatch: the model shows pictures in another way than Qwen's, or has no such token.
        """
        if not isinstance(vlm.pictures, QwenPictures):
            raise CheckpointMismatch(
                f"got a {vlm.kind} model, expected qwen3_vl, on which Robometer's heads are built."
            )
        token = vlm.tokenizer.encode(cfg.token, add_special_tokens=False)
        if len(token) != 1 or token[0] == vlm.tokenizer.unk_token_id:
            raise CheckpointMismatch(
                f"the tokenizer reads {cfg.token} as {len(token)} token(s) that it does not know as one, expected one "
                "of its own; add it as the training did, in the same order, and save the tokenizer."
            )
        self.vlm, self.cfg, self.pictures, self._token = vlm, cfg, vlm.pictures, int(token[0])
        self.heads = heads.to(vlm.model.device).eval()
        self._prompt = Memo(self._rendered, 1024)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> RobometerJudge:
        """Read a judge from a folder; see the head of this file.

        Args:
            path: the folder.
            device: where it runs; the backbone keeps its own dtype there (float32 on a CPU), the heads float32.

        Raises:
            CheckpointMismatch: something is missing or does not fit; names the tensors.
        """
        folder = Path(path)
        try:
            cfg = RobometerConfig.model_validate_json((folder / "robometer.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise CheckpointMismatch(
                f"no usable robometer.json in {folder}: {' '.join(str(error).split())[:200]}; write one, {{}} stands "
                "for the published layout with our prompt."
            ) from None
        vlm = LocalVLM.load(folder, device=device)
        heads = RobometerHeads(int(vlm.model.config.get_text_config().hidden_size), cfg.bins)
        heads.load_state_dict(fitting(head_tensors(folder, cfg), heads.state_dict(), folder))
        return cls(vlm, heads, cfg)

    def save(self, folder: str | Path) -> None:
        """Write ``heads.safetensors`` and ``robometer.json`` beside a backbone that ``transformers`` has saved.

        Args:
            folder: an existing folder.
        """
        folder = Path(folder)
        state = {self._named(k): v.detach().cpu().contiguous() for k, v in self.heads.state_dict().items()}
        atomic_write(folder / "heads.safetensors", save(state))
        atomic_write(folder / "robometer.json", self.cfg.model_dump_json(indent=1))

    # ---------------------------------------------------------------- judging

    def __call__(self, clip: Clip, instruction: Sequence[str]) -> Score:
        """Judge B clips by their newest frame; see :class:`imagine.types.RewardModel`.

        Returns:
            Reward 1 and the end of the episode where success exceeds the threshold, else 0; terms ``success`` and
            ``progress``, each in [0, 1]; not valid where the instruction holds a word that the tokenizer does not know,
            or an answer is not finite.

        Raises:
            ShapeError: there is not one instruction per clip, or the clip's frames are no pictures.
        """
        curve = self._watch(clip, instruction)
        success, progress = curve.success[:, -1], curve.progress[:, -1]
        valid = curve.understood & torch.isfinite(success) & torch.isfinite(progress)
        done = success > self.cfg.threshold
        terms = {"success": success, "progress": progress}
        return Score(done.float(), success, valid, terms, terminated=done)

    def progress(self, clip: Clip, instruction: Sequence[str]) -> Tensor:
        """Progress after each frame shown, (B, n) float32 in [0, 1], from one forward pass.

        The frames are those of :meth:`shown`, so n is the clip's length, or ``max_frames`` where it is longer.

        Raises:
            ShapeError: as for a call.
        """
        return self._watch(clip, instruction).progress

    def shown(self, length: int) -> list[int]:
        """Which frames of a clip of some length are shown: all, or ``max_frames`` of them spread evenly.

        The first and the newest are always among them; where only one may be shown, it is the newest.
        """
        n = min(length, self.cfg.max_frames)
        return [round(i * (length - 1) / (n - 1)) for i in range(n)] if n > 1 else [length - 1]

    @torch.inference_mode()
    def curve(self, frames: Tensor, instruction: Sequence[str]) -> Curve:
        """Judge clips after every frame, in one forward pass.

        Args:
            frames: (B, F, H, W, 3) uint8 RGB, oldest first, F at most ``max_frames``.
            instruction: B texts.

        Raises:
            ShapeError: wrong shape or dtype, too many frames, not one instruction per clip, or an instruction that
                holds one of the model's own placeholders.
        """
        cfg = self.cfg
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
            raise ShapeError(f"frames are {tuple(frames.shape)} {frames.dtype}, expected (B, F, H, W, 3) uint8.")
        if frames.shape[1] > cfg.max_frames:
            raise ShapeError(
                f"got {frames.shape[1]} frames, expected at most {cfg.max_frames}; choose some, as shown() does."
            )
        if len(instruction) != len(frames):
            raise ShapeError(f"got {len(instruction)} instructions for {len(frames)} clips, expected one per clip.")
        hidden = self._hidden(frames, instruction)
        progress, success = self.heads(hidden.float())
        return Curve(expectation(progress).cpu(), torch.sigmoid(success).cpu(), self._understands(instruction))

    # ---------------------------------------------------------------- parts

    def _watch(self, clip: Clip, instruction: Sequence[str]) -> Curve:
        return self.curve(clip.decode(self.shown(clip.latents.shape[1])), instruction)

    def _hidden(self, frames: Tensor, instruction: Sequence[str]) -> Tensor:
        """Last hidden states at the tokens after each frame, (B, F, width)."""
        clips = frames[:, :, None, None]  # one view, no pictures merged
        grid, count = self.pictures.grid(clips), frames.shape[1]
        prompts = [self._prompt(text, count, grid) for text in instruction]
        length = max(len(ids) for ids, _ in prompts)
        # Padding lies behind every token that is read; what is causal never sees it.
        ids = np.full((len(prompts), length), int(self.vlm.tokenizer.pad_token_id or 0))
        positions = np.zeros((3, len(prompts), length), np.int64)
        mask = np.zeros((len(prompts), length), np.int64)
        for r, (row, where) in enumerate(prompts):
            ids[r, : len(row)], positions[:, r, : len(row)], mask[r, : len(row)] = row, where, 1
        inputs = {
            "input_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(positions),
            "attention_mask": torch.from_numpy(mask),
            **self.pictures.pixels(clips),
        }
        device = self.vlm.model.device
        moved = {k: v.to(device) for k, v in inputs.items()}
        hidden = self.vlm.model.model(**moved, use_cache=False).last_hidden_state
        return hidden[moved["input_ids"] == self._token].unflatten(0, (len(prompts), count))

    def _rendered(self, instruction: str, frames: int, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (L,) and positions (3, L) of one prompt."""
        content: list[dict[str, str]] = [{"type": "text", "text": self._asked(instruction)}]
        content += [{"type": "image"}, {"type": "text", "text": self.cfg.token}] * frames
        prompt = self.vlm.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=False, add_vision_id=True
        )
        ids = self.pictures.ids(str(prompt), frames, grid)
        each = grid[0] * grid[1] // self.pictures.merge**2
        if ids.count(self._token) != frames or ids.count(self.pictures.token) != frames * each:
            raise ShapeError(
                f"instruction {instruction[:40]!r} holds a placeholder of the model, expected plain words; leave out "
                f"{self.cfg.token} and the like."
            )
        return np.array(ids), self.pictures.positions(ids, grid, frames)

    def _asked(self, instruction: str) -> str:
        return self.cfg.prompt.replace("{instruction}", instruction.strip().rstrip("."))

    def _understands(self, instruction: Sequence[str]) -> Tensor:
        tokenizer = self.vlm.tokenizer
        unknown = tokenizer.unk_token_id
        known = [
            unknown is None or unknown not in tokenizer.encode(self._asked(text), add_special_tokens=False)
            for text in instruction
        ]
        return torch.tensor(known)

    def _named(self, key: str) -> str:
        """The name of a tensor in the file."""
        return next(theirs + key[len(ours) :] for ours, theirs in prefixes(self.cfg) if key.startswith(ours))
