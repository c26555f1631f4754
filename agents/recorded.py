"""Recorded episodes of a dataset: what was done, and what came of it, to be dreamt again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from imagine.agents.envs import DreamEnvs, RecordedEnvs
from imagine.agents.rollout import EpisodeRecord, rollout
from imagine.data.read import LeRobotDataset
from imagine.model.model import WorldActionModel
from imagine.types import ImagineError
from imagine.world.dream import Dream
from imagine.world.starts import DatasetStarts


class RecordedEpisodes(Mapping[int, np.ndarray]):
    """Actions of recorded episodes, ``actions`` of :class:`imagine.agents.envs.RecordedEnvs`.

    An episode's number in the dataset is its start seed. Where the instruction changes on the way, the episode ends.
    Episodes without a whole chunk of actions for one instruction are left out.

    Attributes:
        starts: where the episodes begin.
    """

    def __init__(self, model: WorldActionModel, dataset: str, cache: Path) -> None:
        """Decode the dataset once.

        Raises:
            DatasetError: it is unusable or of another embodiment.
        """
        self.starts = DatasetStarts(LeRobotDataset.open(Path(dataset)), model.body, cache, in_order=True)
        self.windows, self.body = self.starts.windows, model.body
        first, last = self.windows.episode_rows(self.starts.rows)
        self._rows: dict[int, np.ndarray] = {}
        for number, (begin, end) in enumerate(zip(first, last, strict=True)):
            rows = np.arange(begin, end + 1, self.body.chunk_frames)
            texts = self.windows.instruction_ids(rows)
            whole = self.windows.actions(rows)[1].all(1) & (np.cumsum(texts != texts[0]) == 0)
            if whole[0]:
                self._rows[number] = rows[: int(whole.argmin()) if not whole.all() else len(rows)]

    def __getitem__(self, seed: int) -> np.ndarray:
        """(T, K, A) float32 in robot units, within bounds."""
        return np.clip(self.windows.actions(self._rows[seed])[0], self.body.action_low, self.body.action_high)

    def __iter__(self) -> Iterator[int]:
        """Numbers of the episodes."""
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def longest(self) -> int:
        """Chunks of the longest episode, at least 1."""
        return max((len(rows) for rows in self._rows.values()), default=1)

    @property
    def tells_success(self) -> bool:
        """Whether the dataset has a ``success`` feature."""
        return bool(self.windows.batch(self.starts.rows[:1]).success_valid.all())

    def happened(self, seed: int) -> EpisodeRecord:
        """What the recording says of an episode.

        Raises:
            ImagineError: the dataset does not tell success.
        """
        rows = self._rows[seed]
        batch = self.windows.batch(rows)
        if not bool(batch.success_valid.all()):
            raise ImagineError("the dataset has no `success` feature; evaluate it in the imagined world alone.")
        instruction = self.windows.instructions[int(batch.instruction_id[0])]
        # Success as the dream is judged: at the end of a chunk at the earliest.
        return EpisodeRecord(seed, instruction, success=bool(batch.success_future.any()), rewards=[0.0] * len(rows))


def replay(dream: Dream, records: Sequence[EpisodeRecord]) -> list[np.ndarray]:
    """Dream each record's start under its recorded actions.

    Args:
        dream: of the same starts, by their seeds.
        records: episodes with their frames and actions.

    Returns:
        Per record (T, H, W, 3) uint8, as long as its own frames; the first one is the recorded one.
    """
    given = {r.seed: np.stack(r.actions) for r in records}
    envs = DreamEnvs(dream, len(records), horizon=max(map(len, given.values())))
    dreams = rollout(RecordedEnvs(envs, given, whole=True), None, list(given), frames=True)
    return [np.concatenate([r.frames[:1], d.frames[1:]]) for r, d in zip(records, dreams, strict=True)]
