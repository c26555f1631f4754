"""``imagine embodiment``: draft the file that says how a dataset's numbers and cameras are to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from imagine.configs.commands.common import Common, console
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Args(Common):
    """Draft an embodiment file from a LeRobot dataset: views, slices, kinds, units, modes, bounds and chunk.

    Attributes:
        dataset: folder of a LeRobot dataset (v2.x or v3.0).
        out: the file to write, ROBOT.yaml in this folder if left out; an existing one is not overwritten.
    """

    dataset: str = "datasets/g1"
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None


def run(args: Args) -> dict[str, Any]:
    """Write the draft and check the dataset with it.

    Returns:
        ``file``; ``chunk`` and ``canvas`` in words; names of ``views``, ``state`` and ``action`` slices.

    Raises:
        ImagineError: the file exists, or the dataset has no camera, state or action.
    """
    from imagine.data.check import check_dataset
    from imagine.data.draft import draft
    from imagine.data.read import LeRobotDataset
    from imagine.files import atomic_write

    dataset = LeRobotDataset.open(args.dataset)
    body, text = draft(dataset)
    file = args.out or Path(f"{body.name}.yaml")
    if file.exists():
        raise ImagineError(f"{file} exists; choose another --out, or delete it")
    report = check_dataset(dataset, body)
    for sentence in [*report.errors, *report.warnings]:
        console.print(sentence, highlight=False, soft_wrap=True)
    atomic_write(file, text)
    return {
        "file": str(file),
        "chunk": f"{body.chunk_actions} actions at {body.control_hz} Hz, {body.chunk_frames} frames",
        "canvas": f"{body.canvas_height}x{body.canvas_width}",
        "views": [v.name for v in body.views],
        "state": [s.name for s in body.state],
        "action": [f"{a.name} ({a.mode}, {a.low:g} to {a.high:g} {a.unit})" for a in body.action],
        "errors": len(report.errors),
        "warnings": len(report.warnings),
    }
