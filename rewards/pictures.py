"""How a vision-language model is shown pictures: placeholders among its tokens, and pixels beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from imagine.rewards.prompts import Frames
from imagine.types import ImagineError

Grid = tuple[int, int]


class Pictures(Protocol):
    """What the packing of prompts needs to know about pictures. A clip holds M moments of V views of G pictures."""

    merged: int  # how many successive pictures one visual token may span; 1: none
    token: int  # id of a picture's placeholder

    def grid(self, clips: Tensor) -> Grid:
        """Size of every picture of (R, M, V, G, H, W, 3) clips, in the model's own terms."""
        ...

    def ids(self, prompt: str, pictures: int, grid: Grid) -> tuple[int, ...]:
        """Token ids of a rendered prompt with so many pictures, each placeholder repeated as the model wants it."""
        ...

    def positions(self, ids: Sequence[int], grid: Grid, pictures: int) -> np.ndarray:
        """(axes, tokens) int64 position ids of a prompt; axes is 1, or 3 where positions are temporal and spatial."""
        ...

    def pixels(self, clips: Tensor) -> dict[str, Tensor]:
        """The model's pixel arguments for (R, M, V, G, H, W, 3) uint8 clips."""
        ...

    def plain(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The model's whole input for one rendered prompt per clip, padded on the left; positions are the model's."""
        ...


class QwenPictures:
    """Qwen2-VL, 2.5-VL and 3-VL: flattened patches and three-axis positions, without their processor.

    Source: ``Qwen2VLImageProcessor`` of transformers, to which a test compares the patches.
    """

    def __init__(self, model: Any, tokenizer: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        vision = model.config.vision_config
        self.model, self.tokenizer = model, tokenizer
        self.patch, self.merge = int(vision.patch_size), int(vision.spatial_merge_size)
        self.merged, self.token = int(vision.temporal_patch_size), int(model.config.image_token_id)
        self.mean, self.std = torch.tensor(mean) * 255, torch.tensor(std) * 255
        if self.mean.shape != (3,) or self.std.shape != (3,) or not (self.std > 0).all():
            raise ValueError(f"image_mean is {mean} and image_std {std}, expected three numbers each")

    def grid(self, clips: Tensor) -> Grid:
        """(rows, columns) of patches, whole groups of ``merge``, nearest to the picture's size."""
        unit = self.patch * self.merge
        height, width = (max(1, round(side / unit)) * self.merge for side in clips.shape[4:6])
        return height, width

    def ids(self, prompt: str, pictures: int, grid: Grid) -> tuple[int, ...]:
        """See :class:`Pictures`."""
        each = grid[0] * grid[1] // self.merge**2
        out: list[int] = []
        for i in self.tokenizer.encode(prompt, add_special_tokens=False):
            out += [i] * (each if i == self.token else 1)
        return tuple(out)

    def positions(self, ids: Sequence[int], grid: Grid, pictures: int) -> np.ndarray:
        """See :class:`Pictures`; three axes."""
        row = torch.tensor([ids])
        grids = torch.tensor([[1, *grid]] * pictures)
        kinds = (row == self.token).int()
        at, _ = self.model.model.get_rope_index(row, image_grid_thw=grids, mm_token_type_ids=kinds)
        return np.asarray(at[:, 0].numpy(), np.int64)

    def pixels(self, clips: Tensor) -> dict[str, Tensor]:
        """See :class:`Pictures`."""
        rows, columns = self.grid(clips)
        size = (rows * self.patch, columns * self.patch)
        device = self.model.device  # where pictures are cut into patches as well
        x = clips.flatten(0, 2).to(device).permute(0, 1, 4, 2, 3).float()  # (n, G, 3, H, W)
        n = len(x)
        if tuple(x.shape[-2:]) != size:
            x = F.interpolate(x.flatten(0, 1), size, mode="bicubic", antialias=True).clamp(0, 255).unflatten(0, (n, -1))
        mean, std = self.mean.to(device), self.std.to(device)
        x = (x - mean[:, None, None]) / std[:, None, None]
        x = x.expand(-1, self.merged, -1, -1, -1) if x.shape[1] == 1 else x
        p, m = self.patch, self.merge
        x = x.reshape(n, self.merged, 3, rows // m, m, p, columns // m, m, p)
        x = x.permute(
            0, 3, 6, 4, 7, 2, 1, 5, 8
        )  # picture, row and column of the merged patch, those within it, content
        flat = x.reshape(n * rows * columns, 3 * self.merged * p * p)
        return {"pixel_values": flat, "image_grid_thw": torch.tensor([[1, rows, columns]] * n)}

    def plain(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """See :class:`Pictures`."""
        grid, n = self.grid(clips), clips.shape[1] * clips.shape[2]
        rows = [self.ids(text, n, grid) for text in prompts]
        longest = max(len(r) for r in rows)
        ids = torch.full((len(rows), longest), int(self.tokenizer.pad_token_id or 0))
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :], mask[i, longest - len(row) :] = torch.tensor(row), 1
        kinds = (ids == self.token).int()
        return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds, **self.pixels(clips)}


class ProcessorPictures:
    """Everybody else, through the checkpoint's own processor: Idefics3, SmolVLM, InternVL, Gemma, LLaVA."""

    merged = 1

    def __init__(self, processor: Any, token: int) -> None:
        self.processor, self.token = processor, token
        splits = hasattr(processor.image_processor, "do_image_splitting")
        self.options = {"do_image_splitting": False} if splits else {}  # frames are small; one tile each

    def grid(self, clips: Tensor) -> Grid:
        """(height, width), pixels."""
        height, width = clips.shape[4:6]
        return height, width

    def ids(self, prompt: str, pictures: int, grid: Grid) -> tuple[int, ...]:
        """See :class:`Pictures`."""
        blank = [np.zeros((*grid, 3), np.uint8)] * pictures
        made = self.processor(text=prompt, images=[blank], add_special_tokens=False, **self.options)
        ids = made["input_ids"]
        return tuple(ids[0] if isinstance(ids[0], list) else ids)

    def positions(self, ids: Sequence[int], grid: Grid, pictures: int) -> np.ndarray:
        """See :class:`Pictures`; one axis."""
        return np.arange(len(ids), dtype=np.int64)[None]

    def pixels(self, clips: Tensor) -> dict[str, Tensor]:
        """See :class:`Pictures`."""
        nested = [[picture.numpy() for picture in row.flatten(0, 2)] for row in clips.cpu()]
        made = self.processor.image_processor(images=nested, return_tensors="pt", **self.options)
        return {k: v for k, v in made.items() if isinstance(v, Tensor)}

    def plain(self, clips: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """See :class:`Pictures`."""
        nested = [[picture.numpy() for picture in row.flatten(0, 2)] for row in clips.cpu()]
        made = self.processor(
            text=list(prompts), images=nested, padding=True, padding_side="left", return_tensors="pt", **self.options
        )
        return dict(made)


def pictures_of(model: Any, tokenizer: Any, path: str | Path) -> Pictures:
    """How a loaded model is shown pictures.

    Raises:
        ImportError: its processor cannot be built on this machine.
    """
    from transformers import AutoImageProcessor, AutoProcessor

    kind = model.config.model_type
    if kind.startswith("qwen"):
        images = AutoImageProcessor.from_pretrained(path)
        return QwenPictures(model, tokenizer, images.image_mean, images.image_std)
    if kind == "smolvlm":  # its own processor wants torchvision for videos; pictures are Idefics3's
        from transformers import Idefics3Processor

        length = int(model.model.image_seq_len)
        processor = Idefics3Processor(AutoImageProcessor.from_pretrained(path), tokenizer, image_seq_len=length)
    else:
        processor = AutoProcessor.from_pretrained(path)
    return ProcessorPictures(processor, _image_token(model, processor))


def _image_token(model: Any, processor: Any) -> int:
    for name in ("image_token_id", "image_token_index"):
        if (found := getattr(model.config, name, None)) is not None:
            return int(found)
    return int(processor.image_token_id)


def views_of(frames: Tensor, cfg: Frames) -> list[Tensor]:
    """Each view cut out of the canvases (B, T, H, W, 3) uint8, (B, T, h, w, 3).

    Raises:
        ImagineError: a view lies outside, or views of several sizes have no common size to be shown at.
    """
    if not cfg.views:
        return [frames]
    height, width = frames.shape[2:4]
    for top, left, h, w in cfg.views:
        if min(top, left) < 0 or h < 1 or w < 1 or top + h > height or left + w > width:
            raise ImagineError(
                f"view {(top, left, h, w)} lies outside the canvas of {height} x {width} pixels; give "
                "(top, left, height, width) inside it."
            )
    if cfg.size is None and len({v[2:] for v in cfg.views}) > 1:
        raise ImagineError("views of several sizes need one size to be shown at; set Frames.size.")
    return [frames[:, :, top : top + h, left : left + w] for top, left, h, w in cfg.views]


def resized(frames: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Frames (B, T, h, w, 3) uint8 at another (height, width); None leaves them."""
    if size is None or tuple(frames.shape[2:4]) == size:
        return frames
    x = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size, mode="bicubic", antialias=True).round().clamp(0, 255).to(torch.uint8)
    return x.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])
