"""The one progress bar: how far, since when and until when, on stderr; plain lines where stderr is a file."""

from __future__ import annotations

from collections.abc import Mapping


class Progress:
    """A bar while its ``with`` block runs; what the block gets is called with (done, total).

    ``with Progress("train", total=100) as on_progress: on_progress(7)``.
    """

    def __init__(self, name: str, total: int | None = None, done: int = 0, *, silent: bool = False):
        """Show nothing yet.

        Args:
            name: of what is going on.
            total: how many there are; None until somebody says so.
            done: how many of them already.
            silent: show nothing at all.
        """
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True, width=None if Console(stderr=True).is_terminal else 220, quiet=silent)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        times = TimeElapsedColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, *times, console=self.console, disable=not self.console.is_terminal)
        self.name, self.task = name, self.bar.add_task(name, total=total, completed=done)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __call__(self, done: int, total: int | None = None) -> None:
        """So many are done, of so many if that is new."""
        self.bar.update(self.task, completed=done, total=total)

    def report(self, step: int, numbers: Mapping[str, float], speed: float | None = None) -> None:
        """Print a line of numbers above the bar, and how many samples a second there are; moves the bar to ``step``."""
        text = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
        rate = f"  {speed:.0f}/s" if speed is not None else ""
        self(step)
        self.console.print(f"{self.name} {step}  {text}{rate}", highlight=False, soft_wrap=True)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
