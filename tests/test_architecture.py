"""Who may import whom, what stays light, and how long a file may be. Read from the source, not by running it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("imagine", "rewards", "agents", "policy", "configs")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))  # follows no links
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
LINES = 400

# layer -> the layers it may import besides itself
MAY_IMPORT = {
    "types": set(),
    "rewards": {"fit", "types"},
    "fit": {"core", "types"},
    "core": {"fit", "types"},
    "spaces": {"core", "types"},
    "env": {"spaces", "core", "types"},
    "policy": {"core", "types"},
    "plugin": {"core", "types"},
    "robots": {"plugin", "policy", "spaces", "core", "types"},
    "agents": {"plugin", "policy", "env", "spaces", "fit", "core", "types"},
    "configs": {"agents", "robots", "plugin", "policy", "rewards", "env", "spaces", "fit", "core", "types"},
}
GYMNASIUM = {"env", "spaces", "plugin", "robots", "agents", "configs"}
HEAVY = {"ray", "diffusers", "transformers", "stable_baselines3", "mujoco", "matplotlib", "peft", "accelerate"}
HEAVY_AT_HOME = {
    "policy/robots/g1_table/": "mujoco",
    "imagine/train/joint.py": "accelerate",
    "agents/sb3.py": "stable_baselines3",
    "agents/rllib.py": "ray",
}


def layer(module: str) -> str | None:
    """The layer a module of ours belongs to; None when it is not ours."""
    parts = module.split(".")
    if parts[0] != "imagine":
        return None
    if module in {f"imagine.{name}" for name in ("limits", "seeds", "files", "intact", "extras", "labels", "memo")}:
        return "types"
    if module == "imagine.train.fit":
        return "fit"  # the training loop knows no model, so judges are taught in it too
    if module == "imagine.registration":
        return "spaces"  # knows Gymnasium, and our environments by name alone
    if module in ("imagine.types", "imagine.world.spaces"):
        return parts[-1]
    if module.removeprefix("imagine.world.") in ("env", "interface", "dream", "foreign", "observed", "robot_env"):
        return "env"  # the world behind the environment belongs to its layer
    if module == "imagine.policy.robots.plugin":
        return "plugin"  # what may be asked of a robot; no robot
    if module.startswith("imagine.policy.robots"):
        return "robots"
    return parts[1] if parts[1:] and parts[1] in PACKAGES else "core"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name if name.split(".")[0] == "imagine" else f"imagine.{name}"


def imports(path: Path, nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Absolute dotted names that these nodes import; ``from x import y`` gives x.y where that is a module."""
    package = module_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from (home(source, alias.name) for alias in node.names)


def home(source: str, name: str) -> str:
    """Where ``from source import name`` really leads: a submodule, a lazy export of ``imagine``, or the source."""
    import imagine

    if source == "imagine" and name in imagine._HOME_OF:
        return f"imagine.{imagine._HOME_OF[name]}"
    inner = ROOT.joinpath(*source.split("."), name)
    return f"{source}.{name}" if inner.with_suffix(".py").exists() or (inner / "__init__.py").exists() else source


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_imports_follow_the_layers(path: Path) -> None:
    own = layer(module_of(path))
    if path == ROOT / "imagine/__init__.py":  # names for type checkers only; checked lazy below
        return
    for name in imports(path, ast.walk(tree(path))):
        other = layer(name)
        if other not in (None, own):
            assert other in MAY_IMPORT[own], f"{own} must not import {name}"
        if name.split(".")[0] == "gymnasium":
            assert own in GYMNASIUM, f"{own} must not import gymnasium"


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    relative = str(path.relative_to(ROOT))
    at_home = {library for prefix, library in HEAVY_AT_HOME.items() if relative.startswith(prefix)}
    optional = [inner for node in tree(path).body if isinstance(node, ast.With) for inner in node.body]
    top = {name.split(".")[0] for name in imports(path, [*tree(path).body, *optional])}
    assert top & HEAVY <= at_home


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_files_fit_in_a_few_screens(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES


COMMAND_LINES, FUNCTION_LINES = 80, 40
LONG_COMMANDS = {"check", "convert", "evaluate_judge", "finetune_joint", "judge_stages", "train_stages"}
"""Commands that still do more than wire; the list may only shrink."""
LONG_FUNCTIONS = {"configs/commands/convert.py:run", "policy/robots/g1_table/scene.py:build"}
"""Functions that are still longer than a screen, as file:name; the list may only shrink."""


def test_commands_wire_and_do_nothing_else() -> None:
    commands = [path for path in FILES if path.parent == ROOT / "configs/commands"]
    assert {p.stem for p in commands if len(p.read_text().splitlines()) > COMMAND_LINES} <= LONG_COMMANDS


def test_functions_fit_on_a_screen() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}"
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > FUNCTION_LINES
    }
    assert long <= LONG_FUNCTIONS


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_no_module_imports_a_private_name_of_another() -> None:
    reaching = [
        str(path.relative_to(ROOT))
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imagine")
        for alias in node.names
        if alias.name.startswith("_")
    ]
    assert not reaching


KNOW_THE_TABLE = (
    "policy/robots/g1_table/",  # its own folder
    "policy/robots/registry.py",  # the default robot
    "configs/defaults.py",  # the default model
    "imagine/registration.py",  # the environments' short names
)


def test_no_file_but_its_own_names_the_robot_that_is_shipped() -> None:
    settings = [path for package in PACKAGES for path in (ROOT / package).rglob("*.yaml")]
    naming = {
        str(path.relative_to(ROOT))
        for path in (*FILES, *settings)
        if any(name in path.read_text() for name in ("g1_table", "G1Table", "g1-table"))
    }
    assert {name for name in naming if not name.startswith(KNOW_THE_TABLE)} == set()


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter once it has run ``code``."""
    show = "import sys; print('\\n' + ' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    # Gymnasium, and numpy with it, is loaded: only so are our environments in its registry, whichever comes first.
    assert not loaded_after("import imagine") & {"torch", "pydantic", "yaml", "scipy", *HEAVY}


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_after("from imagine.configs.cli import main; main(['--help'])")
    assert not loaded & {"torch", "pydantic", "scipy", "tyro", "rich", *HEAVY}


def test_the_core_needs_few_libraries() -> None:
    core = [name for name in ("imagine.types", "imagine.model.model", "imagine.sampler") if find_spec(name)]
    assert not loaded_after(f"import {', '.join(core)}") & {"scipy", "pyarrow", "av", "tyro", *HEAVY}


@pytest.mark.parametrize("first", ["gymnasium, imagine", "imagine, gymnasium"])
def test_gymnasium_knows_our_environments_whichever_is_imported_first(first: str) -> None:
    known = "{'sim/G1Table-v0', 'imagine/G1Table-v0', 'imagine/Dream-v0'} <= set(gymnasium.registry)"
    assert "torch" not in loaded_after(f"import {first}\nassert {known}")


def test_gymnasium_make_can_import_us_itself() -> None:
    loaded_after(
        "import gymnasium\n"
        "from gymnasium.envs.registration import _find_spec\n"
        "assert _find_spec('imagine:imagine/Dream-v0').entry_point.endswith('make_env')"
    )


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that may run: all but what stands under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from (other, *runtime_nodes(other))
            continue
        yield child
        yield from runtime_nodes(child)


def test_modules_import_each_other_in_no_circle() -> None:
    """Imports inside functions count as well: a circle is one, however late it closes."""
    modules = {module_of(path): path for path in FILES}
    graph = {
        name: {n for n in imports(path, runtime_nodes(tree(path))) if n in modules and n != name}
        for name, path in modules.items()
        if path.name != "__init__.py"
    }
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    while outer := [n for n in graph if not any(n in needs for m, needs in graph.items() if m != n)]:
        for name in outer:
            del graph[name]
    assert not graph
