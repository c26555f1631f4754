"""What was played, as an episode of a LeRobot dataset, with an embodiment file that says how to read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from imagine.agents.play.moments import Moment
from imagine.data.shard import EpisodeData
from imagine.data.write import DatasetWriter
from imagine.embodiment import Embodiment
from imagine.files import atomic_write
from imagine.types import ImagineError

STATE, ACTION = "observation.state", "action"


class PlayRecorder:
    """Adds episodes to a new LeRobot dataset, one file each.

    A dream has the numbers that the model observes and commands, no others: they lie side by side, in the order of the
    embodiment, and ``embodiment.yaml`` in the folder says where. Between two imagined frames the state is interpolated.
    """

    def __init__(self, folder: Path, body: Embodiment) -> None:
        """Make nothing yet.

        Raises:
            ImagineError: the folder is not empty.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ImagineError(f"{folder} is not empty; choose a new folder, and join datasets with lerobot.")
        self.folder, self.body, self.count = folder, _packed(body), 0
        names = {STATE: _names(self.body, self.body.proprio), ACTION: self.body.action_names}
        self._writer = DatasetWriter(folder, body.robot_type, body.control_hz, 1, names)

    def add(self, line: Sequence[Moment]) -> int:
        """Write one more episode; returns its number of ticks.

        Args:
            line: moments from a start on.

        Raises:
            ImagineError: nothing was played.
        """
        if len(line) < 2:
            raise ImagineError("nothing was played since the start, so there is no episode to save.")
        episode = episode_of(line, self.body)
        self._writer.write_shard(self.count, [episode])
        self._writer.finalize()
        values = yaml.safe_dump(self.body.model_dump(mode="json"), sort_keys=False)
        atomic_write(self.folder / "embodiment.yaml", values)
        self.count += 1
        return len(episode)


def episode_of(line: Sequence[Moment], body: Embodiment) -> EpisodeData:
    """The episode of moments from a start on.

    Args:
        line: at least two.
        body: of which state and action hold nothing else than proprioception and actions, in order.
    """
    chunks = [moment.chunk for moment in line[1:]]
    ticks, count = body.chunk_actions, body.chunk_actions * len(chunks)
    motion = np.concatenate([line[0].chunk.motion, *(c.motion for c in chunks)])
    seen = np.arange(len(motion)) * count / (len(motion) - 1)
    state = np.stack([np.interp(np.arange(count), seen, column) for column in motion.T], 1).astype(np.float32)
    frames = np.concatenate([line[0].chunk.frames, *(c.frames for c in chunks)])[:-1]
    actions = [
        body.absolute_action(c.action, body.anchor_of({STATE: state[i * ticks]}))
        for i, c in enumerate(chunks)
        if c.action is not None
    ]
    features = {
        STATE: state,
        ACTION: np.concatenate(actions),
        "next.success": np.repeat([c.judgement.result().success for c in chunks], ticks),
        "is_expert": np.zeros(count, bool),
    }
    views = {v.key: frame for v in body.views for name, frame in body.untile(frames).items() if name == v.name}
    task = [c.instruction for c in chunks for _ in range(ticks)]
    return EpisodeData(features, task, views, np.arange(count) * len(frames) // count, line[0].seed)


def _packed(body: Embodiment) -> Embodiment:
    """The same robot, recorded with its proprioception alone as state, and its actions alone as action."""
    state, action, at = [], [], 0
    known = {s.name: s for s in body.state}
    for name in body.proprio:
        state.append(known[name].model_copy(update={"key": STATE, "start": at, "stop": at + known[name].size}))
        at += known[name].size
    at = 0
    for part in body.action:
        action.append(part.model_copy(update={"key": ACTION, "start": at, "stop": at + part.size}))
        at += part.size
    if missing := [a.relative_to for a in action if a.relative_to and a.relative_to not in body.proprio]:
        raise ImagineError(
            f"actions of embodiment {body.name!r} are relative to {missing[0]!r}, which the model does not observe, so "
            "that what is played cannot be saved as what a robot is commanded."
        )
    return body.model_copy(update={"state": tuple(state), "action": tuple(action)})


def _names(body: Embodiment, proprio: Sequence[str]) -> list[str]:
    size = {s.name: s.size for s in body.state}
    return [f"{name}.{i}" for name in proprio for i in range(size[name])]
