"""Weights in safetensors files, read one tensor at a time and written in pieces; it knows no network.

A 14 B model is 33 GB: what is loaded goes straight to where it stays, and shapes are checked before anything is read.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from imagine.files import atomic_path, write_json
from imagine.types import CheckpointMismatch

STEMS = ("diffusion_pytorch_model", "model", "adapter_model")
"""Beginnings of the names of weight files, in the order in which a folder is searched for them."""
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}
_PART = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


@dataclass(frozen=True)
class Header:
    """What a file says about a tensor before it is read."""

    file: Path
    name: str
    shape: tuple[int, ...]


def headers(folder: Path, *extra: str) -> dict[str, Header]:
    """Every tensor of a folder by name, none of them loaded.

    Args:
        folder: holds one ``*.safetensors``, or several with or without their ``.index.json``.
        extra: further files to read as well, where they exist.

    Raises:
        CheckpointMismatch: no weights, or pickled ones; a file is missing, truncated or ambiguous; a tensor that the
            index names is not there, or one is there twice.
    """
    files, promised = _files(folder)
    found: dict[str, Header] = {}
    for file in [*files, *(folder / name for name in extra if (folder / name).is_file())]:
        for name, shape in _header(file).items():
            if name in found:
                raise CheckpointMismatch(f"{name!r} is both in {found[name].file} and in {file}; copy it again.")
            found[name] = Header(file, name, shape)
    if lost := sorted(promised - found.keys()):
        raise CheckpointMismatch(f"the index of {folder} names {some(lost)}, which its files do not hold; copy again.")
    return found


def stream(wanted: Mapping[str, Header], device: str | torch.device = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Each tensor under the name it is wanted by, straight to ``device``, file by file; none of them is kept."""
    by_file: dict[Path, list[str]] = {}
    for name, header in wanted.items():
        by_file.setdefault(header.file, []).append(name)
    for file, inside in by_file.items():
        with _opened(file, str(device)) as shard:
            for name in inside:
                yield name, shard.get_tensor(wanted[name].name)


def write(folder: Path, state: Mapping[str, Tensor], *, stem: str = STEMS[0], shard_bytes: int = 5 * 10**9) -> None:
    """Write tensors in files of at most ``shard_bytes`` (a larger tensor has one of its own), with an index if many."""
    plan: list[list[str]] = [[]]
    room = shard_bytes
    for name, value in state.items():
        if value.nbytes > room and plan[-1]:
            plan.append([])
            room = shard_bytes
        plan[-1].append(name)
        room -= value.nbytes
    weight_map: dict[str, str] = {}
    for i, names in enumerate(plan, 1):
        file = f"{stem}.safetensors" if len(plan) == 1 else f"{stem}-{i:05d}-of-{len(plan):05d}.safetensors"
        part = {n: state[n].detach().cpu().contiguous() for n in names}
        with atomic_path(folder / file) as temporary:
            save_file(part, temporary, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(plan) > 1:
        total = {"total_size": sum(v.nbytes for v in state.values())}
        index = {"metadata": total, "weight_map": dict(sorted(weight_map.items()))}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def some(names: Collection[str], most: int = 8) -> str:
    """The first few names and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > most else f" ({len(names)} in all)"
    return ", ".join(list(names)[:most]) + more


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointMismatch: missing, unreadable, or something else than an object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointMismatch(f"{path} is missing or not JSON ({error}); copy the whole folder.") from None
    if not isinstance(value, dict):
        raise CheckpointMismatch(f"{path} holds a JSON {type(value).__name__}, expected an object.")
    return value


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from the file's own header; opening it would map all of it, which a large one may not allow."""
    try:
        with file.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            about = json.loads(f.read(min(length, 10**8)))
        about.pop("__metadata__", None)
        size, want = file.stat().st_size, 8 + length + max((v["data_offsets"][1] for v in about.values()), default=0)
        if size != want:
            raise ValueError(f"{size} bytes, expected {want}")
        return {name: tuple(v["shape"]) for name, v in about.items()}
    except FileNotFoundError:
        raise CheckpointMismatch(f"{file} is missing; copy the whole folder.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise CheckpointMismatch(f"{file} is truncated or not safetensors ({error}); copy it again.") from None


def _opened(file: Path, device: str) -> Any:
    try:
        return safe_open(file, framework="pt", device=device)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatch(f"{file} is truncated or not safetensors ({error}); copy it again.") from None


def _files(folder: Path) -> tuple[list[Path], set[str]]:
    """Weight files of a folder, and the tensors that their index promises."""
    for stem in STEMS:
        # The plain name before one of a variant, as in "model.fp16.safetensors".
        indexes = sorted(folder.glob(f"{stem}*.index*.json"), key=lambda p: (len(p.name), p.name))
        files = sorted(folder.glob(f"{stem}*.safetensors"))
        if indexes:
            return _indexed(indexes[0])
        if folder / f"{stem}.safetensors" in files or (len(files) == 1 and not _PART.search(files[0].name)):
            return [min(files, key=lambda p: len(p.name))], set()
        if files:
            return _numbered(files), set()
    if pickles := sorted(p.name for p in folder.glob("*") if p.suffix in PICKLES):
        raise CheckpointMismatch(
            f"{folder} holds pickled weights ({some(pickles)}), which can run any code when they are opened; "
            "convert them to safetensors where you trust them, or fetch a repository that has them."
        )
    raise CheckpointMismatch(
        f"{folder} holds no weights; expected one of {', '.join(f'{s}*.safetensors' for s in STEMS)}."
    )


def _indexed(index: Path) -> tuple[list[Path], set[str]]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(Path(str(f)).name == f for f in weight_map.values()):
        raise CheckpointMismatch(f"{index} has no weight_map of file names in its own folder; copy it again.")
    return [index.parent / f for f in sorted(set(weight_map.values()))], set(weight_map)


def _numbered(files: list[Path]) -> list[Path]:
    """Parts that came without their index: all of one set, or it is not loadable."""
    parts = [_PART.search(p.name) for p in files]
    sets = {p.name[: m.start()] + m[2] for p, m in zip(files, parts, strict=True) if m}
    if not all(parts) or len(sets) != 1:
        raise CheckpointMismatch(f"{files[0].parent} holds {some([p.name for p in files])}; keep one set of weights.")
    missing = set(range(1, int(parts[0][2]) + 1)) - {int(m[1]) for m in parts if m}  # type: ignore[index]
    if missing:
        raise CheckpointMismatch(
            f"{files[0].parent} lacks part {some([str(m) for m in sorted(missing)])}; copy it again."
        )
    return files
