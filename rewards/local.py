"""Any ``transformers`` image-text-to-text checkpoint as a judge: P(yes) from one forward pass, no generation.

A prompt is a path through the clip: the pictures up to some moment, then a question. Prompts about one clip share
their beginning, so all of them are packed behind one copy of it: each question sees the pictures up to its own moment
and itself, at the positions it would have had alone. The answers are those of separate prompts; the pictures are paid
for once.

torchvision is not needed. Processors that insist on it (Qwen's) are replaced by their tokenizer and our own patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagine.extras import TRANSFORMERS_LOADING
from imagine.intact import intact
from imagine.memo import Memo
from imagine.rewards.pictures import Pictures, pictures_of
from imagine.types import CheckpointMismatch, ImagineError, ShapeError

PACKABLE = ("qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm")
"""Model types whose text half is plainly causal and takes a mask and positions of ours (proved by a test)."""


@dataclass(frozen=True)
class Ask:
    """A question at a moment of a clip.

    Attributes:
        text: the question, filled in.
        moments: how many of the clip's moments it sees, from the first one on.
        yes: words that affirm, each one token of its own.
        no: words that deny.
    """

    text: str
    moments: int
    yes: tuple[str, ...]
    no: tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """What was answered.

    Attributes:
        margin: (B, J) float32, log odds of yes against no.
        coverage: (B, J) float32, P(yes) + P(no) among all next tokens.
        understood: (B,) bool, False where the tokenizer did not know a word of a question.
    """

    margin: Tensor
    coverage: Tensor
    understood: Tensor


@dataclass(frozen=True)
class _Packed:
    """Prompts of one clip behind their common beginning."""

    trunk: np.ndarray  # (trunk,) ids up to the last picture
    trunk_positions: np.ndarray  # (axes, trunk)
    seen: tuple[int, ...]  # per question, how much of the trunk is its own beginning
    rest: tuple[np.ndarray, ...]  # per question, the ids that follow
    rest_positions: tuple[np.ndarray, ...]


class LocalVLM:
    """A loaded checkpoint that answers questions about pictures."""

    def __init__(self, model: Any, tokenizer: Any, pictures: Pictures, *, slot: int = 0) -> None:
        """Wrap a model.

        Args:
            model: an image-text-to-text model.
            tokenizer: its tokenizer, with a chat template.
            pictures: how it is shown pictures.
            slot: fewest tokens reserved per question. Questions up to that length then give the same bits whatever
                the other clips of the batch are asked.
        """
        self.model, self.tokenizer, self.pictures, self.slot = model.eval(), tokenizer, pictures, slot
        self.kind: str = model.config.model_type
        self._padding = int(tokenizer.pad_token_id or 0)
        self._words = Memo(self._word_ids, 256)
        self._rendered = Memo(self._render, 4096)
        self._plain_ids = Memo(self._encode_plain, 4096)
        self._alone = Memo(self._placed, 4096)
        self._pack = Memo(self._packed, 4096)

    @classmethod
    def load(
        cls, path: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | str = "auto", slot: int = 0
    ) -> LocalVLM:
        """Load a checkpoint by folder or hub id.

        Args:
            path: folder or hub id.
            device: where it runs.
            dtype: of the weights; ``auto`` is float32 on a CPU and the checkpoint's own elsewhere.
            slot: see :class:`LocalVLM`.

        Raises:
            CheckpointMismatch: it is missing, incomplete, or no image-text-to-text model.
        """
        with TRANSFORMERS_LOADING:
            model, tokenizer, pictures, report = _load(path, torch.device(device).type == "cpu", dtype)
        if lacking := sorted(report["missing_keys"]):
            raise CheckpointMismatch(
                f"{path} lacks {len(lacking)} weights, first {lacking[0]}; fetch the whole checkpoint."
            )
        if broken := [name for name, value in model.named_parameters() if not value.isfinite().all()]:
            raise CheckpointMismatch(f"weights in {path}: {broken[0]} holds NaN or infinity; fetch them again.")
        judge = cls(model.to(device), tokenizer, pictures, slot=slot)
        with intact(f"the chat template of {path}", "fetch the whole checkpoint"):
            if "so?" not in (one := judge._render(1, "so?")) or one == judge._render(2, "so?"):
                raise ValueError("it leaves out the question or the pictures")
        return judge

    # ---------------------------------------------------------------- asking

    @torch.inference_mode()
    def ask(self, clips: Tensor, asks: Sequence[Sequence[Ask]], *, share: bool = True) -> Answers:
        """Answer J questions about each of B clips.

        Args:
            clips: (B, M, V, G, H, W, 3) uint8: M moments, V views, G pictures that are merged into one (1, or
                ``pictures.merged``).
            asks: B lists of J questions; question j sees as many moments in every list.
            share: pack the questions of a clip behind its pictures, where the model is known to allow it; otherwise
                each is a prompt of its own. The answers are the same.

        Raises:
            ShapeError: no clips, not uint8, questions that do not fit them, or a question about moments not shown.
        """
        asks = self._checked(clips, asks)
        every = range(len(asks[0]))
        groups = [list(every)] if share and self.kind in PACKABLE else [[j] for j in every]
        parts = [self.answer_logits(clips, [[a[j] for j in group] for a in asks]) for group in groups]
        log_p = torch.log_softmax(torch.cat(parts, 1).float(), -1)
        margin, coverage = torch.empty(log_p.shape[:2]), torch.empty(log_p.shape[:2])
        for j, first in enumerate(asks[0]):
            yes, no = (torch.logsumexp(log_p[:, j, self._words(w)], -1) for w in (first.yes, first.no))
            margin[:, j], coverage[:, j] = (yes - no).cpu(), (yes.exp() + no.exp()).cpu()
        return Answers(margin, coverage, torch.tensor([self._understands(a) for a in asks]))

    def answer_logits(self, clips: Tensor, asks: Sequence[Sequence[Ask]]) -> Tensor:
        """Logits of the token that would follow each question, (B, J, vocabulary) float; differentiable.

        Args:
            clips: as for :meth:`ask`.
            asks: likewise.
        """
        shown = clips[:, : max(q.moments for q in asks[0])]
        device = self.model.device
        if self.kind in PACKABLE:
            grid, views = self.pictures.grid(shown), shown.shape[2]
            packed = [self._pack(tuple((q.moments, q.text) for q in a), grid, views) for a in asks]
            inputs = {**self._assembled(packed), **self.pictures.pixels(shown)}
        else:
            prompts = [self._rendered(a[0].moments * shown.shape[2], a[0].text) for a in asks]
            inputs = {**self.pictures.plain(shown, prompts), "logits_to_keep": torch.tensor([-1])}
        moved = {k: v.to(device) for k, v in inputs.items()}
        return self.model(**moved, use_cache=False).logits

    @torch.inference_mode()
    def say(
        self, clips: Tensor, asks: Sequence[Sequence[Ask]], votes: int, tokens: int, temperature: float
    ) -> list[list[list[str]]]:
        """Sample free text after each question, as protocols that reason aloud and vote want it.

        Args:
            clips: as for :meth:`ask`.
            asks: likewise.
            votes: samples per question.
            tokens: most tokens per sample.
            temperature: of sampling; 0 takes the likeliest token.

        Returns:
            B lists of J lists of ``votes`` texts.
        """
        asks = self._checked(clips, asks)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        out: list[list[list[str]]] = [[] for _ in asks]
        for clip, row, texts in zip(clips, asks, out, strict=True):
            for q in row:
                # As so many rows: generate's own num_return_sequences fails on a Qwen3-VL without deepstack.
                inputs = self._alone_inputs(clip[None, : q.moments].expand(votes, *[-1] * 6), q)
                sampled = self.model.generate(**inputs, **sampling, max_new_tokens=tokens, pad_token_id=self._padding)
                new = sampled[:, inputs["input_ids"].shape[1] :]
                texts.append(self.tokenizer.batch_decode(new, skip_special_tokens=True))
        return out

    def _alone_inputs(self, clips: Tensor, ask: Ask) -> dict[str, Tensor]:
        """One prompt about each clip as the model takes it for generation."""
        prompt = self._rendered(clips.shape[1] * clips.shape[2], ask.text)
        inputs = self.pictures.plain(clips, [prompt] * len(clips))
        return {k: v.to(self.model.device) for k, v in inputs.items()}

    # ---------------------------------------------------------------- prompts

    def _checked(self, clips: Tensor, asks: Sequence[Sequence[Ask]]) -> list[tuple[Ask, ...]]:
        want = "(B, M, V, G, H, W, 3) uint8"
        if clips.ndim != 7 or clips.shape[-1] != 3 or clips.dtype != torch.uint8 or 0 in clips.shape:
            raise ShapeError(f"pictures are {tuple(clips.shape)} {clips.dtype}, expected {want}; show at least one.")
        if clips.shape[3] not in (1, self.pictures.merged):
            raise ShapeError(
                f"got {clips.shape[3]} pictures to merge into one, expected 1 or {self.pictures.merged}, "
                f"as {self.kind} does; show each by itself."
            )
        if len(asks) != len(clips) or len({len(a) for a in asks}) != 1 or not asks[0]:
            raise ShapeError(f"got questions for {len(asks)} clips, expected equally many for each of {len(clips)}.")
        most = max(q.moments for a in asks for q in a)
        if not 1 <= min(q.moments for a in asks for q in a) <= most <= clips.shape[1]:
            raise ShapeError(f"a question is about moment {most} of a clip, expected 1 to {clips.shape[1]}.")
        return [tuple(a) for a in asks]

    def _word_ids(self, words: tuple[str, ...]) -> Tensor:
        """Ids of those words that are one token, with or without a space before them."""
        forms = {f for w in words for f in (w, " " + w)}
        ids = {tuple(self.tokenizer.encode(form, add_special_tokens=False)) for form in forms}
        single = sorted({i[0] for i in ids if len(i) == 1} - {self.tokenizer.unk_token_id})
        if not single:
            raise ImagineError(
                f"none of {', '.join(words)} is a single token of this model, expected at least one; "
                "give the prompt other words for yes and no."
            )
        return torch.tensor(single, device=self.model.device)

    def _encode_plain(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _understands(self, asks: Sequence[Ask]) -> bool:
        unknown = self.tokenizer.unk_token_id
        return unknown is None or all(unknown not in self._plain_ids(q.text) for q in asks)

    def _render(self, pictures: int, text: str) -> str:
        """The prompt as the model's chat template has it; each picture is one placeholder."""
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def _placed(self, pictures: int, text: str, grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (L,) and positions (axes, L) of one prompt by itself."""
        ids = self.pictures.ids(self._rendered(pictures, text), pictures, grid)
        return np.array(ids), self.pictures.positions(ids, grid, pictures)

    def _packed(self, asks: tuple[tuple[int, str], ...], grid: tuple[int, int], views: int) -> _Packed:
        shown = [moments * views for moments, _ in asks]
        both = [self._alone(n, text, grid) for n, (_, text) in zip(shown, asks, strict=True)]
        alone, where = [ids for ids, _ in both], [at for _, at in both]
        longest = max(range(len(asks)), key=lambda j: (shown[j], len(alone[j])))
        # Pictures belong to the trunk; with one question only, it ends where they do.
        end = int(np.flatnonzero(alone[longest] == self.pictures.token).max()) + 1
        seen = [min(_common(ids, alone[longest][:end]), len(ids) - 1) for ids in alone]
        return _Packed(
            alone[longest][:end],
            where[longest][:, :end],
            tuple(seen),
            tuple(ids[s:] for ids, s in zip(alone, seen, strict=True)),
            tuple(w[:, s:] for w, s in zip(where, seen, strict=True)),
        )

    def _assembled(self, packed: Sequence[_Packed]) -> dict[str, Tensor]:
        """Rows of equal length: trunk, then one right-aligned slot per question; mask and positions to match."""
        trunk = max(len(p.trunk) for p in packed)
        widths = [max(self.slot, *(len(p.rest[j]) for p in packed), 1) for j in range(len(packed[0].rest))]
        starts = trunk + np.cumsum([0, *widths])
        rows, length = len(packed), int(starts[-1])
        axes = len(packed[0].trunk_positions)
        ids, positions = np.full((rows, length), self._padding, np.int64), np.zeros((axes, rows, length), np.int64)
        allowed, causal = np.zeros((rows, length, length), bool), np.tril(np.ones((length, length), bool))
        for r, p in enumerate(packed):
            at = trunk - len(p.trunk)
            ids[r, at:trunk], positions[:, r, at:trunk] = p.trunk, p.trunk_positions
            allowed[r, at:trunk, at:trunk] = causal[: trunk - at, : trunk - at]
            for j, (rest, where, seen) in enumerate(zip(p.rest, p.rest_positions, p.seen, strict=True)):
                end, begin = int(starts[j + 1]), int(starts[j + 1]) - len(rest)
                ids[r, begin:end], positions[:, r, begin:end] = rest, where
                allowed[r, begin:end, at : at + seen] = True
                allowed[r, begin:end, begin:end] = causal[: len(rest), : len(rest)]
        allowed |= np.eye(length, dtype=bool)  # padding sees itself: a row without any key would be NaN
        mask = torch.zeros(rows, 1, length, length, dtype=self.model.dtype)
        mask.masked_fill_(~torch.from_numpy(allowed)[:, None], torch.finfo(mask.dtype).min)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": mask,
            "position_ids": torch.from_numpy(positions if axes > 1 else positions[0]),
            "logits_to_keep": torch.from_numpy(starts[1:] - 1),
        }


def _load(path: str | Path, on_cpu: bool, dtype: torch.dtype | str) -> tuple[Any, Any, Pictures, dict[str, Any]]:
    """Model, tokenizer, pictures, and what transformers reports of its loading."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    if on_cpu:
        logging.disable_progress_bar()  # small enough to load at once; a bar would only stand among our own
        dtype = torch.float32 if dtype == "auto" else dtype
    remedy = "expected a transformers folder or hub id with config, weights, tokenizer and chat template"
    try:
        with intact(f"image-text-to-text model {path}", remedy):
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                path, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
            )
            model, report = loaded
            tokenizer = AutoTokenizer.from_pretrained(path)
            if len(tokenizer) > (known := model.get_input_embeddings().num_embeddings):
                raise ValueError(f"its tokenizer has {len(tokenizer)} tokens, the model {known}")
            return model, tokenizer, pictures_of(model, tokenizer, path), report
    finally:
        if bars:
            logging.enable_progress_bar()


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common beginning."""
    n = min(len(a), len(b))
    differs = np.flatnonzero(a[:n] != b[:n])
    return int(differs[0]) if len(differs) else n
