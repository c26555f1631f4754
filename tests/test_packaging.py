"""What a plain installation brings: one package, everything in it once, and a sentence where an extra is missing."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from imagine.extras import LIBRARIES, MissingExtra, explained, extra

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("rewards", "agents", "policy", "configs")
OPTIONAL = sorted({library for libraries in LIBRARIES.values() for library in libraries})


def requirements(lines: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!]", line)[0].replace("-", "_") for line in lines}


# ---------------------------------------------------------------------- extras
def test_extras_are_those_of_pyproject() -> None:
    declared = PROJECT["optional-dependencies"]
    for name, libraries in LIBRARIES.items():
        found = {r for line in declared[name] for r in requirements([line])} - {"imagine_wam"}
        inherited = {
            r for line in declared[name] if "imagine-wam[train]" in line for r in requirements(declared["train"])
        }
        assert found <= set(libraries) <= found | inherited
    base = requirements(PROJECT["dependencies"])
    assert not base & set(OPTIONAL)
    whole = re.fullmatch(r"imagine-wam\[(.*)\]", declared["all"][0])
    assert whole and set(whole[1].split(",")) == set(LIBRARIES)


def test_a_missing_library_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with (
        pytest.raises(
            MissingExtra, match=r'^diffusers is not installed; `pip install "imagine-wam\[wan\]"` brings it.$'
        ),
        extra("wan"),
    ):
        import diffusers  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="nobody_ships_this"), extra("wan"):
        import nobody_ships_this  # noqa: F401
    assert explained(ModuleNotFoundError(name="numpy")) is None


@pytest.mark.parametrize(
    ("words", "library", "name"),
    [
        (["finetune", "steer", "--with", "sb3-ppo"], "stable_baselines3", "rl"),
        (["rollout", "--world", "real", "--episodes", "1"], "mujoco", "sim"),
    ],
)
def test_commands_tell_what_to_install(words: list[str], library: str, name: str, tmp_path: Path) -> None:
    words = [*words, "--out", str(tmp_path / "out")]
    code = f"import sys; sys.modules[{library!r}] = None\nfrom imagine.configs.cli import main\nsys.exit(main({words}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    wanted = f'imagine: {library} is not installed; `pip install "imagine-wam[{name}]"` brings it.'
    assert done.stderr.splitlines()[-1] == wanted


def test_a_robot_is_known_without_its_simulator() -> None:
    code = """
import sys
sys.modules["mujoco"] = None
from imagine.extras import MissingExtra
from imagine.policy.robots.registry import DEFAULT, load_robot
robot = load_robot(DEFAULT)
body = robot.embodiment()
print(robot.limits(body) is not None, robot.task_of("pick up the red block"))
try:
    robot.make_env(body, horizon=1)
except MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("True ") and last.startswith("mujoco is not installed")


def test_policy_and_dream_need_no_extra() -> None:
    """With every optional library out of reach: the shipped model answers, plays, is served, and is a gym's world."""
    code = f"""
import sys
for library in {OPTIONAL}:
    sys.modules[library] = None
import numpy as np, torch
import imagine
from imagine import Observation
from imagine.policy.policy import JointPolicy
import imagine.policy.server, imagine.policy.client, imagine.world.dream, imagine.world.env, imagine.agents.planner
import imagine.agents.evaluate, imagine.agents.agreement, imagine.data.read, imagine.data.write, imagine.rewards.rules
import imagine.configs.report
model = imagine.WorldActionModel.from_pretrained("g1-table-tiny")
body = model.body
canvas = torch.zeros(1, 1, body.canvas_height, body.canvas_width, 3, dtype=torch.uint8)
words = [" ".join(model.cfg.text.words[:2])]
context = model.encode(Observation(canvas, torch.zeros(1, 1, body.proprio_dim)), words)
env = imagine.make_env(model="g1-table-tiny", judge="latent", starts="saved")
env.reset(seed=0)
assert 0 <= env.step(env.action_space.sample())[1] <= 1
print(tuple(imagine.sample(model, imagine.POLICY, context, steps=1).action.shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, ")


# ---------------------------------------------------------------------- what is ours
def absolute_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def test_no_file_takes_our_folders_for_packages_of_their_own() -> None:
    ours = [p for top in ("imagine", *FOLDERS, "tests", "benchmarks", "examples") for p in (ROOT / top).rglob("*.py")]
    wrong = [f"{p.relative_to(ROOT)}: {n}" for p in ours for n in absolute_imports(p) if n.split(".")[0] in FOLDERS]
    assert not wrong


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel and an sdist, built from a copy of the tracked files."""
    place = tmp_path_factory.mktemp("built")
    source = place / "source"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "runs", "datasets", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "shared"
    )
    shutil.copytree(ROOT, source, symlinks=True, ignore=ignore)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), str(source)]
    subprocess.run([*pip, "--no-build-isolation"] if find_spec("setuptools") else pip, check=True)
    if find_spec("setuptools"):
        code = f"from setuptools.build_meta import build_sdist; build_sdist({str(place)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=source, capture_output=True)
    return place


@pytest.mark.slow
def test_the_wheel_holds_one_package_with_everything_once(built: Path) -> None:
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"imagine"}
    assert not [name for name, n in Counter(names).items() if n > 1]
    tracked = subprocess.run(["git", "ls-files", "imagine", *FOLDERS], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0 and tracked.stdout:
        files = {p for p in tracked.stdout.splitlines() if not (ROOT / p).is_symlink() and (ROOT / p).is_file()}
        wanted = {p if p.startswith("imagine/") else f"imagine/{p}" for p in files}
        assert wanted <= set(names)
    assert {"imagine/py.typed", "imagine/configs/tiny.yaml", "imagine/configs/report.css"} <= set(names)
    assert any(n.startswith("imagine/checkpoints/g1-table-tiny/") and n.endswith(".safetensors") for n in names)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools builds the sdist")
def test_the_sdist_holds_every_module_once(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as file:
        names = [m.name.partition("/")[2] for m in file.getmembers() if m.isfile()]
    modules = Counter(re.sub(r"^imagine/", "", name) for name in names if name.endswith(".py") and "/" in name)
    assert modules["agents/rollout.py"] == modules["configs/cli.py"] == modules["model/dit.py"] == 1


@pytest.mark.slow
def test_the_wheel_lives_beside_a_project_with_folders_of_the_same_names(built: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(next(built.glob("*.whl")))], check=True)
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    own = [p.name for p in site.iterdir() if not p.name.endswith((".dist-info", ".pth"))]
    assert own == ["imagine"]
    (site / "libraries.pth").write_text(str(Path(find_spec("torch").origin).parent.parent) + "\n")  # type: ignore[union-attr, arg-type]
    project = tmp_path / "project"
    for name in ("configs", "agents"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("MINE = True\n")
    code = """
import imagine, imagine.agents.rollout, imagine.configs.cli, configs, agents
import gymnasium
from importlib.util import find_spec
assert configs.MINE and agents.MINE
assert imagine.__file__.startswith(__import__("sys").prefix), imagine.__file__
assert find_spec("rewards") is None and find_spec("policy") is None
print(gymnasium.spec("imagine/G1Table-v0").id)
"""
    done = subprocess.run([str(python), "-c", code], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imagine/G1Table-v0"
    helped = subprocess.run([str(python.parent / "imagine"), "--help"], cwd=project, capture_output=True, text=True)
    assert helped.returncode == 0 and helped.stdout.startswith("usage: imagine COMMAND"), helped.stderr
