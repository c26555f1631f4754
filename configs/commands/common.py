"""Options of every command, and checks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from imagine.types import ImagineError

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
"""Several words as one option: ``--policy base,random``."""

Pairs = tyro.conf.UseAppendAction[tuple[str, ...]]
"""``NAME=VALUE``, any number of times."""

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


def at_least(args: Any, **least: float) -> None:
    """Refuse options that are too small.

    Args:
        args: the command's options.
        least: the smallest value allowed, by the option's name.

    Raises:
        ImagineError: names the first that is smaller.
    """
    for name, value in least.items():
        if not getattr(args, name) >= value:
            option = name.replace("_", "-")
            raise ImagineError(f"--{option} is {getattr(args, name):g}, expected at least {value:g}.")


def options_of(pairs: Sequence[str]) -> dict[str, str]:
    """Options by name.

    Raises:
        ImagineError: one is not NAME=VALUE.
    """
    for text in pairs:
        if "=" not in text:
            raise ImagineError(f"--option is {text!r}, expected NAME=VALUE.")
    return dict(text.split("=", 1) for text in pairs)
