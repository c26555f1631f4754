"""Run by test_lerobot.py in an environment that has LeRobot: does to a dataset what its users do to theirs.

``python lerobot_worker.py DATASET WORK`` leaves folders in WORK and prints one JSON object of what was seen.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets, split_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset

NEW = 12  # rows of an appended episode


def opened(root: Path) -> LeRobotDataset:
    return LeRobotDataset(f"test/{root.name}", root=root, video_backend="pyav")


def seen(root: Path) -> dict[str, Any]:
    """Every row's numbers, and the mean colour of some of its pictures."""
    dataset = opened(root)
    rows = [dataset.hf_dataset[i] for i in range(len(dataset))]
    looked = range(0, len(dataset), 7)
    cameras = dataset.meta.camera_keys
    items = [dataset[i] for i in looked]
    return {
        "episodes": dataset.num_episodes,
        "episode_index": [int(r["episode_index"]) for r in rows],
        "action": [np.asarray(r["action"]).tolist() for r in rows],
        "looked": list(looked),
        "task": [item["task"] for item in items],
        "colour": [[float(item[key].float().mean()) for key in cameras] for item in items],
    }


def recorded(dataset: LeRobotDataset, task: str) -> None:
    """One more episode, as a robot would add it."""
    rng = np.random.default_rng(0)
    own = ("timestamp", "frame_index", "episode_index", "index", "task_index")
    for _ in range(NEW):
        frame: dict[str, Any] = {"task": task}
        for key, feature in dataset.features.items():
            shape = tuple(feature["shape"])
            if feature["dtype"] == "video":
                frame[key] = np.full(shape, 90, np.uint8)
            elif key not in own:
                frame[key] = rng.normal(size=shape).astype(feature["dtype"])
        dataset.add_frame(frame)
    dataset.save_episode(parallel_encoding=False)


def finished(dataset: LeRobotDataset) -> None:
    dataset.finalize()


def main(source: Path, work: Path) -> dict[str, Any]:
    answer: dict[str, Any] = {"lerobot": version("lerobot"), "open": seen(source)}

    grown = Path(shutil.copytree(source, work / "grown"))
    resume = getattr(LeRobotDataset, "resume", None)
    dataset = resume("test/grown", root=grown) if resume else LeRobotDataset("test/grown", root=grown)
    recorded(dataset, "wave")
    recorded(dataset, "pick it up")
    finished(dataset)
    answer["grown"] = seen(grown)

    plain = opened(source).meta
    features = {k: f for k, f in plain.features.items() if k not in ("timestamp", "frame_index", "episode_index")}
    features = {k: {n: v for n, v in f.items() if n != "info"} for k, f in features.items()}
    features = {k: f for k, f in features.items() if k not in ("index", "task_index")}
    how: dict[str, Any] = {"vcodec": "h264"}  # files are joined as they are: of one codec, and without B-frames
    if resume:
        from lerobot.configs.video import RGBEncoderConfig

        how = {"rgb_encoder": RGBEncoderConfig(vcodec="h264", extra_options={"bf": 0})}
    place = {"root": work / "own", "robot_type": "tiny"}
    own = LeRobotDataset.create("test/own", fps=plain.fps, features=features, **place, **how)
    recorded(own, "wave")
    finished(own)

    merge_datasets([opened(source), opened(source)], "test/merged", output_dir=work / "merged")
    others = ["own", "merged", "deleted", "split/first", "split/rest"]
    if resume:  # older ones want the names under "info" to be theirs; newer ones have renamed one
        merge_datasets([opened(source), opened(work / "own")], "test/mixed", output_dir=work / "mixed")
        others.append("mixed")
    delete_episodes(opened(source), [1], output_dir=work / "deleted", repo_id="test/deleted")
    half = list(range(plain.total_episodes // 2))
    rest = list(range(len(half), plain.total_episodes))
    split_dataset(opened(source), {"first": half, "rest": rest}, output_dir=work / "split")
    for name in others:
        answer[name] = seen(work / name)
    return answer


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
