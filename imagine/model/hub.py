"""A model folder that others can use: a card that says what it takes and gives, LeRobot's entry point, and the hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imagine.files import atomic_write
from imagine.intact import intact
from imagine.model.config import ModelConfig
from imagine.types import ImagineError

CARD, ENV = "README.md", "env.py"
MOST_METRICS = 40  # rows of the card's table
_ENV = '''"""LeRobot's EnvHub: make_env("USER/REPO", trust_remote_code=True) dreams with the model beside this."""

from pathlib import Path

from imagine.configs.envhub import make_envs


def make_env(n_envs=1, use_async_envs=False, cfg=None):
    return make_envs(Path(__file__).parent, n_envs, use_async_envs)
'''


def describe(cfg: ModelConfig, folder: Path) -> None:
    """Write the card, and the file that LeRobot's ``make_env`` looks for, into a model folder."""
    metrics: Mapping[str, Any] = {}
    if (folder / "metrics.json").is_file():
        with intact(folder / "metrics.json", "delete it"):
            metrics = dict(json.loads((folder / "metrics.json").read_text()))
    atomic_write(folder / CARD, card(cfg, metrics))
    atomic_write(folder / ENV, _ENV)


def card(cfg: ModelConfig, metrics: Mapping[str, Any]) -> str:
    """The model card: what the model is, its action contract, and what was measured of it.

    Args:
        cfg: of the model.
        metrics: nested mappings; of those that are intervals the value and its bounds are shown.
    """
    body, stats = cfg.embodiment, cfg.statistics
    names = [(f"{s.name}.{i}", s.unit) for n in body.proprio for s in body.state if s.name == n for i in range(s.size)]
    modes = [(a, i) for a in body.action for i in range(a.size)]
    action = [
        f"| {j} | {a.name}.{i} | {a.unit} | {a.mode} | {a.low:g} to {a.high:g} | {mean:.4g} | {std:.4g} |"
        for j, ((a, i), mean, std) in enumerate(zip(modes, stats.action_mean, stats.action_std, strict=True))
    ]
    proprio = [
        f"| {j} | {name} | {unit} | {mean:.4g} | {std:.4g} |"
        for j, ((name, unit), mean, std) in enumerate(zip(names, stats.proprio_mean, stats.proprio_std, strict=True))
    ]
    views = [f"| {v.name} | {v.height} x {v.width} |" for v in body.views]
    measured = [f"| {name} | {value} |" for name, value in list(_rows(metrics))[:MOST_METRICS]]
    lines = [
        "---", "library_name: imagine-wam", "pipeline_tag: robotics", "tags: [world-model, robotics, lerobot]", "---",
        "", f"# {cfg.name}", "",
        f"A joint world-action model of {body.name} ({body.robot_type}): it answers {', '.join(cfg.answers)}.", "",
        "```python", "import imagine", "", 'model = imagine.WorldActionModel.from_pretrained("USER/REPO")', "```", "",
        "## Actions", "",
        f"A chunk is {body.chunk_actions} actions at {body.control_hz} Hz, in this order; relative ones are measured "
        "from the state in which the chunk begins. A normalised action is (action - mean) / std.", "",
        "| | name | unit | mode | bounds | mean | std |", "|---|---|---|---|---|---|---|", *action, "",
        "## Observations", "", "| | state | unit | mean | std |", "|---|---|---|---|---|", *proprio, "",
        "| view | uint8 RGB |", "|---|---|", *views, "",
        *(["## Measured", "", "| what | value |", "|---|---|", *measured, ""] if measured else []),
    ]  # fmt: skip
    return "\n".join(lines)


def _rows(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in metrics.items():
        if isinstance(value, Mapping) and {"ci_low", "ci_high"} <= value.keys():
            point = next((value[k] for k in ("value", "success_rate") if k in value), None)
            numbers = (point, value["ci_low"], value["ci_high"])
            if all(isinstance(x, int | float) for x in numbers):
                yield prefix + key, "{:.4g} [{:.4g}, {:.4g}]".format(*numbers)
        elif isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{key}, ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + key, f"{value:.4g}"


def push(model: Any, repo_id: str, folder: str | Path | None, **how: Any) -> str:
    """See :meth:`imagine.model.model.WorldActionModel.push_to_hub`."""
    from huggingface_hub import HfApi

    revision, create_pr = how.pop("revision"), how.pop("create_pr")
    message, private, token = (how.pop(key) for key in ("commit_message", "private", "token"))
    with tempfile.TemporaryDirectory() as at:
        where = Path(at) if folder is None else Path(folder)
        if folder is None:
            model.save_pretrained(where)
        describe(model.cfg, where)
        try:
            api = HfApi(token=token)
            repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo, folder_path=where, commit_message=message, revision=revision, create_pr=create_pr
            )
        except Exception as error:  # whatever the network or the hub has to say
            raise ImagineError(f"{repo_id} cannot be pushed to ({' '.join(str(error).split())[:200]}).") from None
    return str(done.commit_url)
