"""Tables by chunk of what dreams make of objects, and films in which their faults are outlined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagine.agents.object_fidelity import FAULTS
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
    """Markdown, one table per question: the dream over all chunks and by chunk, beside it what it must beat."""
    controls = [kind for kind in answer["db"] if kind != "dream"]
    head = ["dream", *(str(c + 1) for c in range(answer["chunks"])), *controls]
    parts = [f"{answer['n']} rollouts; share of frames in which a visible thing is painted in its colour where it is:"]
    counted = [name for name, found in answer["painted"]["dream"].items() if found["frames"]]
    rows = [[name, *_row(answer["painted"], name, controls, _share)] for name in counted]
    parts += [_table(["things", *head], rows), "Peak signal-to-noise ratio, dB:"]
    groups = [group for group, found in answer["db"]["dream"].items() if found["all"]]
    rows = [[group, *_row(answer["db"], group, controls, _db)] for group in groups]
    parts += [_table(["object", *head], rows), "Share of dreams with a fault:"]
    within = list(next(iter(answer["faults"].values()))[FAULTS[0]])
    rows = [
        [f"{name} within {w.removeprefix('within ')} chunks", *(_share(each[name][w]) for each in kinds)]
        for kinds in [[answer["faults"][k] for k in ("dream", *controls)]]
        for name in FAULTS
        for w in within
    ]
    parts += [_table(["fault", "dream", *controls], rows)]
    if "judges" in answer:
        parts += ["Share of rollouts of which a judge has said by then what is true (and how many more it calls done):"]
        rows = [
            [
                name,
                shown,
                *(f"{_share(a, bare=True)} ({b['value']:+.2f})" for a, b in zip(*found.values(), strict=True)),
            ]
            for name, each in answer["judges"].items()
            for shown, found in each.items()
        ]
        parts += [_table(["judge", "shown", *head[1 : 1 + answer["chunks"]]], rows)]
    if "error_without_tokens" in answer:
        each = ", ".join(f"{g} {_share(x)}" for g, x in answer["error_without_tokens"].items() if x)
        parts += [f"Squared error without the transformer's tokens, as a multiple of that with them: {each}."]
    if answer["left_out"]:
        parts += [f"Left out: {', '.join(answer['left_out'])}."]
    return "\n\n".join(parts) + "\n"


def _row(found: Mapping[str, Any], name: str, controls: list[str], form: Callable[..., str]) -> list[str]:
    """Cells of one question: the dream with its interval and by chunk, and the controls over all chunks."""
    dream = found["dream"][name]
    by_chunk = [form(x, bare=True) for x in dream["by_chunk"]]
    return [form(dream["all"]), *by_chunk, *(form(found[kind][name]["all"], bare=True) for kind in controls)]


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
    lost = scene.seen & ~scene.painted(pictures)
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
