"""What every command takes, and where it may speak while it works."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

console = Console(stderr=True)
"""Progress goes here; standard output is for the answer."""

Words = Annotated[
    tuple[str, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B,...",
        instance_from_str=lambda given: tuple(word.strip() for word in given[0].split(",") if word.strip()),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(value)],
    ),
]
"""Several words as one option: ``--policy base,novice``."""


Folder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")]
"""A folder to write to; None where the command names one itself."""


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every command.

    Attributes:
        out: folder for everything the command writes; by default runs/COMMAND-xxxxxx, named after the options.
        seed: the seed of every random draw; same options and seed, same answer.
        json: print exactly one JSON object on standard output.
    """

    out: Folder = None
    seed: int = 0
    json: bool = False
