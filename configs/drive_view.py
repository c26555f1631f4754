"""What is seen of a drive while it goes on: a table in a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from imagine.policy.drive import Drive

PER_SECOND = 4
EVERY = 5.0
"""Seconds between two lines where there is no terminal."""


class DriveView:
    """Shows the newest state of a drive; being told of a tick keeps two references and the time, and draws nothing.

    It is drawn in a thread of its own, four times a second.
    """

    def __init__(self, name: str, episodes: int, hz: float, console: Console | None = None) -> None:
        """Show nothing yet.

        Args:
            name: of what is going on.
            episodes: how many there will be.
            hz: control ticks per second.
            console: by default stderr.
        """
        self.name, self.episodes, self.hz = name, episodes, hz
        self.console = console or Console(stderr=True)
        self.drive, self.queue, self.done, self.succeeded = Drive(), 0, 0, 0
        self._said = time.monotonic()
        self._begin, self._tick = self._said, 0
        self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=PER_SECOND)

    def __enter__(self) -> DriveView:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def on_tick(self, drive: Drive, queue: int) -> None:
        """See ``imagine.policy.drive.Driver``."""
        if drive is not self.drive:
            self._begin = time.monotonic()
        self.drive, self.queue, self._tick = drive, queue, len(drive.commands)

    def on_episode(self, drive: Drive) -> None:
        """An episode is over."""
        self.done, self.succeeded = self.done + 1, self.succeeded + drive.success
        last = self.done == self.episodes or bool(drive.lost)
        if not self.console.is_terminal and (last or time.monotonic() - self._said >= EVERY):
            self._said = time.monotonic()
            said = "  ".join(f"{name} {value}" for name, value in self.numbers().items() if value)
            self.console.print(f"{self.name}  {said}", highlight=False, soft_wrap=True)

    def numbers(self) -> dict[str, str]:
        """What is shown, by name."""
        drive, tick = self.drive, self._tick
        seconds = max(time.monotonic() - self._begin, 1e-9)
        latency = drive.latencies[-1:]
        missed = sum(late > 1 / self.hz for late in drive.late[:tick])
        events = drive.events[-1:]
        return {
            "episodes": f"{self.done} of {self.episodes}, {self.succeeded} successful",
            "time": f"{tick / self.hz:.1f} s",
            "rate": f"{tick / seconds:.1f} ticks/s of {self.hz:g}, {missed} missed",
            "latency": f"{1000 * latency[0] / self.hz:.0f} ms" if latency else "no answer yet",
            "queue": f"{self.queue} ticks, {drive.held} held",
            "guard": f"{len(drive.events)} events, last {events[0].rule}: {events[0].response}"
            if events
            else "nothing",
            "hallucination": "" if drive.hallucination is None else f"{drive.hallucination:.3f}",
            "notes": "; ".join(f"{note} ({n})" for note, n in drive.notes.copy().most_common(2)),
        }

    def table(self) -> Group:
        """What is drawn."""
        grid = Table.grid(padding=(0, 2))
        for name, value in self.numbers().items():
            grid.add_row(Text(name, style="dim"), Text(value))
        return Group(Text(self.name, style="bold"), grid)
