"""LeRobot itself on datasets of ours; its interpreters, one for each version, are listed in IMAGINE_LEROBOT.

They stand between colons, as in PATH, each of an environment with ``lerobot[dataset]``; `make lerobot` makes them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagine.data.check import check_dataset
from imagine.data.draft import draft
from imagine.data.read import LeRobotDataset
from imagine.data.write import DatasetWriter, EpisodeData
from imagine.types import DatasetError

PYTHONS = [p for p in os.environ.get("IMAGINE_LEROBOT", "").split(os.pathsep) if p]
EPISODES, SHARD = 7, 3
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHONS, reason="IMAGINE_LEROBOT names no interpreter that has LeRobot"),
]


def episode(seed: int) -> EpisodeData:
    rng = np.random.default_rng(seed)
    n = 14 + seed % 3
    features = {
        "observation.state": rng.normal(size=(n, 5)).astype(np.float32),
        "action": rng.normal(size=(n, 4)).astype(np.float32),
        "next.success": np.arange(n) > n - 3,
        "is_expert": np.ones(n, bool),
        "observation.grip": rng.uniform(size=(n, 1)).astype(np.float32),
    }
    grey = rng.integers(30, 220, (n // 2 + 1, 1, 1, 1))
    shown = {f"observation.images.{name}": grey * np.ones((1, 64, 64, 3)) for name in ("head", "hand")}
    views = {key: frames.astype(np.uint8) for key, frames in shown.items()}
    task = ["pick it up"] * (n // 2) + ["put it down" if seed % 2 else "pick it up"] * (n - n // 2)
    return EpisodeData(features, task, views, np.arange(n) // 2, seed, "miss" if seed % 3 == 0 else "")


@pytest.fixture(scope="module", params=PYTHONS or [""])
def handled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with what LeRobot made of our dataset, and what it saw there."""
    work = tmp_path_factory.mktemp("lerobot")
    writer = DatasetWriter(work / "ours", "tiny", 30, SHARD)
    for shard in range(-(-EPISODES // SHARD)):
        writer.write_shard(shard, [episode(s) for s in range(EPISODES)[shard * SHARD : (shard + 1) * SHARD]])
    writer.finalize()
    caches = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub"), "HF_DATASETS_CACHE": str(work / "datasets")}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | caches
    worker = Path(__file__).with_name("lerobot_worker.py")
    command = [request.param, str(worker), str(work / "ours"), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return work, json.loads(done.stdout.splitlines()[-1])


def actions(seeds: Any) -> np.ndarray:
    return np.concatenate([episode(s).features["action"] for s in seeds])


def test_it_sees_what_was_recorded(handled: tuple[Path, dict[str, Any]]) -> None:
    seen = handled[1]["open"]
    np.testing.assert_array_equal(np.float32(seen["action"]), actions(range(EPISODES)))
    every = [episode(s) for s in range(EPISODES)]
    grey = np.concatenate([e.views["observation.images.head"][e.view_index, 0, 0, 0] for e in every])
    task = [text for e in every for text in e.task]
    assert seen["task"] == [task[i] for i in seen["looked"]]
    np.testing.assert_allclose(np.array(seen["colour"]), grey[seen["looked"], None] / 255 * [1, 1], atol=0.02)


@pytest.mark.parametrize(
    ("name", "seeds", "more"),
    [
        ("grown", list(range(EPISODES)), 2),
        ("merged", [*range(EPISODES), *range(EPISODES)], 0),
        ("mixed", list(range(EPISODES)), 1),
        ("deleted", [0, *range(2, EPISODES)], 0),
        ("split/first", list(range(EPISODES // 2)), 0),
        ("split/rest", list(range(EPISODES // 2, EPISODES)), 0),
    ],
)
def test_what_it_makes_of_ours_is_read_by_both(
    name: str, seeds: list[int], more: int, handled: tuple[Path, dict[str, Any]]
) -> None:
    work, answer = handled
    if name not in answer:
        pytest.skip(f"LeRobot {answer['lerobot']} names what it knows of videos otherwise and merges only with itself")
    assert answer[name]["episodes"] == len(seeds) + more
    theirs = np.float32(answer[name]["action"])
    np.testing.assert_array_equal(theirs[: len(actions(seeds))], actions(seeds))
    dataset = LeRobotDataset.open(work / name)
    ours = np.concatenate([dataset.features(i, ["action"])["action"] for i in range(len(dataset))])
    np.testing.assert_array_equal(ours, theirs)
    for i, seed in enumerate(seeds):
        rows = np.arange(dataset[i].length)
        e = episode(seed)
        grey = e.views["observation.images.hand"][e.view_index, 0, 0, 0].astype(float)
        shown = dataset.frames(i, "observation.images.hand", rows)[:, 20:40, 20:40].mean((1, 2, 3))
        np.testing.assert_allclose(shown, grey, atol=6)
        assert dataset.instructions(i) == e.task
    assert not check_dataset(dataset, draft(dataset)[0]).errors


def test_seeds_stay_with_their_episodes_and_nothing_is_collected_over_others(
    handled: tuple[Path, dict[str, Any]],
) -> None:
    grown = LeRobotDataset.open(handled[0] / "grown")
    assert [e.seed for e in grown.layout.episodes] == [*range(EPISODES), None, None]
    with pytest.raises(DatasetError, match="others have changed it"):
        DatasetWriter(grown.root, "tiny", 30, SHARD).refuse_changed()
