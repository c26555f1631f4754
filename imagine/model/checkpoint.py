"""Model folders: where they are, and weights out of them, each wrong name or shape named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from imagine.types import CheckpointMismatch, ImagineError

SHIPPED = Path(__file__).parent.parent / "checkpoints"


def resolve(
    name: str | Path,
    wanted: Sequence[str] = ("*.json", "*.safetensors"),
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Folder of a shipped model, a local path or a hub id, of which it fetches what is ``wanted`` at a ``revision``.

    Raises:
        CheckpointMismatch: there is none, or a file in it is a link that leads out of it.
    """
    is_shipped = len(Path(name).parts) == 1 and (SHIPPED / str(name) / "config.json").is_file()
    if revision is not None and (is_shipped or Path(name).is_dir()):
        raise CheckpointMismatch(f"{name} is a folder, without revisions; leave out revision={revision!r}.")
    if is_shipped:
        return SHIPPED / str(name)
    if Path(name).is_dir():
        return within(Path(name))
    shipped = sorted(p.name for p in SHIPPED.glob("*") if (p / "config.json").is_file())
    if str(name).count("/") == 1 and not str(name).startswith((".", "/")):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(str(name), allow_patterns=list(wanted), revision=revision, token=token))
        except Exception as error:
            raise CheckpointMismatch(
                f"{str(name)!r} is neither a folder nor a reachable hub repository ({type(error).__name__}); "
                f"shipped models: {', '.join(shipped)}."
            ) from None
    raise CheckpointMismatch(f"no model at {str(name)!r}; give a folder, a hub id, or one of: {', '.join(shipped)}.")


def as_dtype(given: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point dtype by itself or by name; None for None and "auto".

    Raises:
        ImagineError: there is no such dtype.
    """
    found = None if given in (None, "auto") else getattr(torch, given, given) if isinstance(given, str) else given
    if found is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ImagineError(f"dtype is {given!r}, expected float32, bfloat16, float16 or auto.")
    return found


def within(folder: Path) -> Path:
    """The folder itself, if what is in it lies in it (or, of a hub's snapshot, among the blobs beside it).

    Raises:
        CheckpointMismatch: a file is a link that leads out of it, and might be anybody's.
    """
    home = folder.resolve()
    homes = (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)
    for path in [*folder.glob("*"), *folder.glob("*/*")]:
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in homes):
            raise CheckpointMismatch(f"{path} is a link out of its folder, which is not followed; copy the file there.")
    return folder


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file as float32.

    Raises:
        CheckpointMismatch: missing or truncated, or a weight in it is NaN or infinite.
    """
    if not path.is_file():
        raise CheckpointMismatch(f"{path} is missing; copy the whole model folder.")
    try:
        state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatch(f"{path} is truncated or not safetensors ({error}); copy it again.") from None
    if broken := [k for k, v in state.items() if not torch.isfinite(v).all()]:
        raise CheckpointMismatch(f"{path}: {broken[0]} holds NaN or infinity ({len(broken)} tensors); copy it again.")
    return state


def load_parts(folder: Path, prefixes: Mapping[str, str], sizes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of several files of a model folder, each under its prefix.

    Args:
        folder: of the model.
        prefixes: by file name; the last one, "", takes the rest.
        sizes: every tensor that is wanted, of which only the shape counts.

    Raises:
        CheckpointMismatch: a file is missing or truncated, or a tensor of it is missing, unexpected or mis-shaped.
    """
    state, rest = dict[str, Tensor](), dict(sizes)
    for name, prefix in prefixes.items():
        own = {k: rest.pop(k) for k in list(rest) if k.startswith(prefix)}
        found = {prefix + k: v for k, v in load_weights(folder / name).items()}
        refuse_misfits(own, found, folder / name)
        state |= found
    return state


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One clause for every tensor of ``state`` that is missing, unexpected or mis-shaped; empty where all fit."""
    wrong = [f"{k} is missing" for k in own if k not in state]
    wrong += [f"{k} is unexpected" for k in state if k not in own]
    wrong += [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    return wrong


def load_into(module: nn.Module, state: dict[str, Tensor], source: Path) -> None:
    """Strict load that names every missing, unexpected and mis-shaped tensor."""
    refuse_misfits(module.state_dict(), state, source)
    module.load_state_dict(state)


def refuse_misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: Path) -> None:
    """Raise CheckpointMismatch where :func:`misfits` finds any."""
    if wrong := misfits(own, state):
        raise CheckpointMismatch(
            f"weights in {source} do not fit its config: {'; '.join(wrong[:8])} ({len(wrong)} in all)."
        )
