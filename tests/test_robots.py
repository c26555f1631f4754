"""Robots are found by name, module or file, and answer what the library asks of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from imagine.embodiment import Embodiment
from imagine.policy.robots.plugin import RobotPlugin
from imagine.policy.robots.registry import DEFAULT, RecordedRobot, load_robot, remember, robot_of, spec_of
from imagine.types import ImagineError

OWN = """
from imagine.policy.robots.plugin import RobotPlugin

class Arm(RobotPlugin):
    name = "arm"

made = Arm()
nothing = 3
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_lab_robot.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_installed_robot_is_found_by_its_name() -> None:
    assert load_robot(DEFAULT).name == DEFAULT and load_robot(load_robot(DEFAULT)) is load_robot(DEFAULT)


@pytest.mark.parametrize("what", ["Arm", "made"])
def test_a_robot_of_the_working_directory_is_found(what: str, project: Path) -> None:
    assert load_robot(f"my_lab_robot:{what}").name == "arm"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("g1_tabel", "did you mean 'g1_table'"),
        ("zzz", "installed are"),
        ("my_lab_robot:nothing", "expected a RobotPlugin"),
        ("my_lab_robot:lost", "cannot be imported"),
        ("lost.yaml", "does not exist"),
    ],
)
def test_what_is_no_robot_is_refused_in_one_sentence(spec: str, expected: str, project: Path) -> None:
    with pytest.raises(ImagineError, match=expected) as caught:
        load_robot(spec)
    assert "\n" not in str(caught.value)


def test_a_bare_embodiment_is_a_robot_without_a_simulator(tmp_path: Path) -> None:
    body = load_robot(DEFAULT).embodiment()
    assert body is not None
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(body.model_dump(mode="json")))
    robot = load_robot(path)
    assert isinstance(robot, RecordedRobot) and robot.embodiment() == body and not robot.has_env
    with pytest.raises(ImagineError, match="no environment to act in"):
        robot.make_env(body, horizon=1)
    assert robot.task_of("fold the towel") == "fold the towel" and robot.distractor("fold", 0, {}) is None


def test_a_model_folder_remembers_its_robot_and_can_travel(tmp_path: Path) -> None:
    body = load_robot(DEFAULT).embodiment()
    assert isinstance(body, Embodiment)
    (tmp_path / "away").mkdir()
    assert spec_of(tmp_path / "away") is None and robot_of(tmp_path / "away", body).name == body.name
    remember(DEFAULT, tmp_path / "away")
    assert robot_of(tmp_path / "away", body).name == DEFAULT
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(body.model_dump(mode="json")))
    remember(file, tmp_path / "away")
    file.unlink()
    assert robot_of(tmp_path / "away", body).embodiment() == body
    (tmp_path / "away/robot.json").write_text(json.dumps([1]))
    with pytest.raises(ImagineError, match=r"robot.json is damaged"):
        spec_of(tmp_path / "away")


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_what_the_table_says_of_its_tasks_is_true(seed: int) -> None:
    robot = load_robot(DEFAULT)
    body = robot.embodiment()
    assert body is not None and robot.has_env
    env = robot.make_env(body, horizon=2)
    options = robot.options()
    _, info = env.reset(seed=seed)
    instruction, before = info["instruction"], robot.truth(env)
    assert before is not None and robot.task_of(instruction) == info["task_family"]
    possible = [text for text in robot.instructions() if robot.answers(before, before, text)["possible"]]
    assert instruction in possible and robot.distractor(instruction, seed, options) not in possible
    for what in robot.swaps():
        other = robot.other_instruction(what, instruction, seed, options)
        assert other in possible and other != instruction
    for text in possible:
        assert bool(robot.answers(before, before, text)["success"]) == robot.carried_out(env, text)
    chunk = robot.expert(env)
    assert chunk is not None and chunk.shape == env.action_space.shape and np.isfinite(chunk).all()


def test_a_plug_in_that_knows_nothing_says_so() -> None:
    robot = RobotPlugin()
    nothing = (robot.embodiment(), robot.limits, robot.recorder(), robot.swaps(), robot.options())
    assert nothing[0] is None and nothing[2] is None and nothing[3] == () and nothing[4] == {}
