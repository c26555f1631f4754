"""Models on the hub: pushed whole, fetched at a revision and in a precision, with a card and LeRobot's entry point."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

from imagine import CheckpointMismatch, ImagineError, WorldActionModel
from imagine.configs.envhub import whole
from imagine.files import write_json


class Hub:
    """Notes what it is asked, in place of ``HfApi``."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, token: Any = None) -> None:
        Hub.calls = [("login", {"token": token})]

    def create_repo(self, repo_id: str, **how: Any) -> Any:
        self.calls.append(("repo", {"repo_id": repo_id, **how}))
        return SimpleNamespace(repo_id=repo_id)

    def create_branch(self, repo_id: str, **how: Any) -> None:
        self.calls.append(("branch", how))

    def upload_folder(self, *, folder_path: Path, **how: Any) -> Any:
        files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        self.calls.append(("upload", {"files": files, **how}))
        return SimpleNamespace(commit_url="https://hub/commit/1")


def test_a_model_is_pushed_with_its_card(
    tiny_model: WorldActionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    told = tiny_model.push_to_hub("me/tiny", revision="v2", private=True, token="secret")
    calls = dict(Hub.calls)
    assert told == "https://hub/commit/1" and calls["login"] == {"token": "secret"}
    assert calls["repo"]["private"] and calls["branch"]["branch"] == calls["upload"]["revision"] == "v2"
    assert {"config.json", "model.safetensors", "codec.safetensors", "README.md", "env.py"} <= calls["upload"][
        "files"
    ].keys()
    assert b"secret" not in b"".join(calls["upload"]["files"].values())

    tiny_model.save_pretrained(tmp_path)
    write_json(tmp_path / "metrics.json", {"real": {"success_rate": 0.5, "ci_low": 0.25, "ci_high": 0.75}, "dB": 26.7})
    tiny_model.push_to_hub("me/tiny", folder=tmp_path)
    card = dict(Hub.calls)["upload"]["files"]["README.md"].decode()
    assert "| real | 0.5 [0.25, 0.75] |" in card and "| dB | 26.7 |" in card
    for a in tiny_model.body.action:
        assert f"{a.name}.0 | {a.unit} | {a.mode} | {a.low:g} to {a.high:g}" in card
    assert f"{tiny_model.body.chunk_actions} actions at {tiny_model.body.control_hz} Hz" in card


def test_a_hub_that_refuses_is_told_in_a_sentence(
    tiny_model: WorldActionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("401\nno entry")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(ImagineError, match=r"^me/tiny cannot be pushed to \(401 no entry\)\.$"):
        tiny_model.push_to_hub("me/tiny")


def test_a_model_is_fetched_at_a_revision_and_in_a_precision(
    tiny_model: WorldActionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.save_pretrained(tmp_path)
    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.update(how) or str(tmp_path))
    model = WorldActionModel.from_pretrained("me/tiny", revision="v2", torch_dtype="bfloat16")
    assert asked["revision"] == "v2" and model.dit.scale_shift_table.dtype == torch.bfloat16
    for dtype, want in ((torch.float16, torch.float16), ("auto", torch.float32), (None, torch.float32)):
        assert WorldActionModel.from_pretrained(tmp_path, dtype=dtype).dit.scale_shift_table.dtype == want
    for wrong in ("int8", "zeros", torch.int64):
        with pytest.raises(ImagineError, match="expected float32, bfloat16, float16 or auto"):
            WorldActionModel.from_pretrained(tmp_path, dtype=wrong)
    with pytest.raises(CheckpointMismatch, match="without revisions"):
        WorldActionModel.from_pretrained(tmp_path, revision="v2")


def test_lerobot_finds_an_environment_in_a_model_folder(foreign: Path) -> None:
    spec = importlib.util.spec_from_file_location("hub_env", foreign / "env.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # as LeRobot does it
    ((_, tasks),) = module.make_env(n_envs=2, use_async_envs=False).items()
    envs = tasks[0]
    observation, _ = envs.reset(seed=[3, 4])
    assert observation["pixels"]["head"].shape == (2, 16, 16, 3) and observation["agent_pos"].shape == (2, 3)
    assert all("bowl" in text for text in envs.call("task_description"))
    most, ticks, ends = envs.call("_max_episode_steps")[0], envs.envs[0].ticks, []
    assert most % ticks == 0
    for tick in range(most):
        before = observation["pixels"]["head"]
        observation, reward, terminated, truncated, info = envs.step(np.zeros((2, 2), np.float32))
        assert reward.shape == (2,) and (tick % ticks == ticks - 1 or (observation["pixels"]["head"] == before).all())
        if (terminated | truncated).any():
            ends.append(tick)
            assert "is_success" in info["final_info"]
            break
    assert ends and envs.render() is not None
    envs.close()


def test_the_rest_of_a_snapshot_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = tmp_path / "models--me--tiny" / "snapshots" / "abc"
    at.mkdir(parents=True)
    asked: list[Any] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **how: asked.append((a, how)) or str(at))
    assert whole(at) == at and asked == [(("me/tiny",), {"revision": "abc", "cache_dir": tmp_path})]
