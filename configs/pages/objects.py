"""Tables by chunk of what dreams make of objects, and films in which their faults are outlined."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.object_fidelity import CATEGORIES, FAULTS
from imagine.agents.true_rollouts import TrueRollouts
from imagine.files import atomic_write
from imagine.world.objects import Scene

LARGER = 3
"""Times by which pictures are enlarged."""
SHOWN = 6
"""Rollouts on a sheet at most."""
ERASED, GHOST = (255, 255, 255), (255, 0, 255)
"""Outlines: what should be seen and is not; what is seen and should not be."""


def tables(answer: Mapping[str, Any]) -> str:
    """Markdown, one table per question; a row per kind of picture and object, a column per chunk."""
    chunks = [str(c + 1) for c in range(answer["chunks"])]
    parts = [f"{answer['n']} rollouts; share of frames in which a visible thing is painted in its colour where it is:"]
    rows = [
        [name, kind, _share(each[name]["all"]), *(_share(x, bare=True) for x in each[name]["by_chunk"])]
        for name in CATEGORIES
        for kind, each in answer["painted"].items()
        if each[name]["frames"]
    ]
    parts += [_table(["things", "picture", "all chunks", *chunks], rows), "Peak signal-to-noise ratio, dB:"]
    groups = list(dict.fromkeys(g for each in answer["db"].values() for g in each))
    rows = [
        [group, kind, _db(each[group]["all"]), *(_db(x, bare=True) for x in each[group]["by_chunk"])]
        for group in groups
        for kind, each in answer["db"].items()
        if each[group]["all"]
    ]
    parts += [_table(["object", "picture", "all chunks", *chunks], rows), "Share of dreams with a fault:"]
    rows = [
        [name, kind, *(_share(x) for x in each[name].values())]
        for name in FAULTS
        for kind, each in answer["faults"].items()
    ]
    within = list(next(iter(answer["faults"].values()))[FAULTS[0]])
    parts += [_table(["fault", "picture", *(f"{w} chunks" for w in within)], rows)]
    if "error_without_tokens" in answer:
        each = ", ".join(f"{g} {_share(x)}" for g, x in answer["error_without_tokens"].items() if x)
        parts += [f"Squared error without the transformer's tokens, as a multiple of that with them: {each}."]
    if answer["left_out"]:
        parts += [f"Left out: {', '.join(answer['left_out'])}."]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _share(x: Mapping[str, Any] | None, *, bare: bool = False) -> str:
    return _interval(x, ".2f", bare)


def _db(x: Mapping[str, Any] | None, *, bare: bool = False) -> str:
    return _interval(x, ".1f", bare)


def _interval(x: Mapping[str, Any] | None, form: str, bare: bool) -> str:
    if x is None:
        return ""
    value = format(x["value"], form)
    return value if bare else f"{value} [{format(x['ci_low'], form)}, {format(x['ci_high'], form)}]"


class Sheet:
    """Collects the first rollouts, one per policy: the dream with its faults outlined above the truth."""

    def __init__(self, rollouts: TrueRollouts) -> None:
        """``rollouts`` say which are shown."""
        first = {name: i for i, name in reversed(list(enumerate(rollouts.policies.tolist())))}
        others = [i for i in range(len(rollouts)) if i not in first.values()]
        self.wanted = sorted([*first.values(), *others][:SHOWN])
        self.rollouts = rollouts
        self.films: dict[int, np.ndarray] = {}

    def __call__(self, number: int, scene: Scene, pictures: Mapping[str, np.ndarray]) -> None:
        """See :data:`imagine.agents.object_fidelity.OnScene`."""
        if number in self.wanted:
            self.films[number] = np.concatenate([outlined(scene, pictures["dream"]), _larger(scene.frames)], 1)

    def write(self, folder: Path, fps: float) -> None:
        """``objects.png``, the newest frame of every chunk, and ``objects.mp4``, all of them."""
        from PIL import Image, ImageDraw

        from imagine.configs.report import encode_mp4

        films, r = list(self.films.items()), self.rollouts
        strips = [np.concatenate(list(film[:: r.chunk_frames]), 1) for _, film in films]
        height, width = strips[0].shape[:2]
        page = Image.new("RGB", (width, (height + 14) * len(strips)), "white")
        pen = ImageDraw.Draw(page)
        for k, ((i, _), strip) in enumerate(zip(films, strips, strict=True)):
            text = f"{r.policies[i]}, seed {r.seeds[i]}: {r.instructions[i]}. Dream above, truth below."
            pen.text((2, k * (height + 14) + 1), f"{text} White: erased, magenta: ghost.", fill="black")
            page.paste(Image.fromarray(strip), (0, k * (height + 14) + 14))
        page.save(folder / "objects.png")
        beside = np.concatenate([film for _, film in films], 2)
        atomic_write(folder / "objects.mp4", encode_mp4(beside, fps, upscale=1))


def outlined(scene: Scene, pictures: np.ndarray) -> np.ndarray:
    """Pictures (T, H, W, 3) uint8, enlarged, with the faults of things outlined."""
    out = _larger(pictures)
    lost = scene.painted(scene.codec) & ~scene.painted(pictures) & scene.seen
    marks = {ERASED: (scene.own & lost[..., None, None]).any(1), GHOST: scene.ghosts(pictures).any(1)}
    for colour, mask in marks.items():
        whole = np.zeros(pictures.shape[:3], bool)
        whole[:, *scene.window] = mask
        out[_border(_larger(whole))] = colour
    return out


def _larger(x: np.ndarray) -> np.ndarray:
    return x.repeat(LARGER, 1).repeat(LARGER, 2)


def _border(mask: np.ndarray) -> np.ndarray:
    """Pixels of (T, h, w) bool with a neighbour outside."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    inside = padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    return mask & ~inside
