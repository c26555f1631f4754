"""Options and helpers shared by the commands that run policies in worlds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from imagine.configs.commands.common import Common, console
from imagine.types import ImagineError


@dataclass(frozen=True, kw_only=True)
class Episodes(Common):
    """Options of commands that run episodes.

    Attributes:
        model: a shipped model's name, a folder, or a hub id.
        episodes: how many; episode i starts from seed SEED + i, the same start in every world.
        judge: who scores a dream: a shipped judge's name, own (the best one beside the model's weights), latent,
            trajectory, a folder or hub id of an image-text-to-text model, or http://HOST/v1#MODEL.
        lanes: episodes run side by side.
        seed: first start seed; nothing shipped was trained on seeds from 900000 on.
        blocks: on the table. The shipped model has seen two; more are clutter it never learnt about.
    """

    model: str = "g1-table-tiny"
    judge: str = "judge-tiny"
    episodes: int = 100
    lanes: int = 16
    seed: int = 900_000
    blocks: int = 2

    def seeds(self) -> list[int]:
        """The start seeds.

        Raises:
            ImagineError: no episodes, no lanes, a negative seed, or a table that cannot be laid.
        """
        from imagine.policy.robots.g1_table.scene import COLOURS

        if not 1 <= self.blocks <= len(COLOURS):
            raise ImagineError(f"--blocks is {self.blocks}, expected 1 to {len(COLOURS)}, one of each colour at most.")
        for name, least in (("episodes", 1), ("lanes", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ImagineError(f"--{name} is {getattr(self, name)}, expected at least {least}.")
        return list(range(self.seed, self.seed + self.episodes))


@contextmanager
def bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with ETA on stderr, told (done, total)."""
    from rich.progress import Progress

    from imagine.train.fit import columns

    with Progress(*columns(), console=console) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
