"""Tells Gymnasium about our environments, whichever of the two packages is imported first.

Gymnasium 1.0 no longer reads the ``gymnasium.envs`` entry points that installed packages declare. So ``import imagine``
reads its own: at once where Gymnasium is loaded already, else in the moment it is. Nothing here imports Gymnasium.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

GROUP, DISTRIBUTION = "gymnasium.envs", "imagine-wam"


def register_with_gymnasium() -> None:
    """Register our environments now, or as soon as Gymnasium has been imported."""
    if "gymnasium" in sys.modules:
        _load_entry_points()
    elif not any(isinstance(finder, _UponImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _UponImport())


def _load_entry_points() -> None:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        ours = distribution(DISTRIBUTION).entry_points.select(group=GROUP)
    except PackageNotFoundError:  # a bare source tree: nothing is declared
        return
    for entry_point in ours:
        entry_point.load()()


class _UponImport(MetaPathFinder):
    """Lets Python find Gymnasium as usual, and runs the registration once its module body is through."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "gymnasium" else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_then_register(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            _load_entry_points()

        spec.loader.exec_module = execute_then_register  # type: ignore[method-assign]
        return spec
