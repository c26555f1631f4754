"""Names of our environments, registered with Gymnasium by :mod:`imagine.registration`; imports nothing else of ours.

``real/`` is a robot or the simulator that stands in for it, ``imagine/`` the dream of the same name and spaces.
"""

from __future__ import annotations

import gymnasium


def register_dreams() -> None:
    """Register every environment in the namespace ``imagine``; harmless when repeated."""
    _register(
        "imagine/G1Table-v0", "imagine.configs.build:make_dream_env", "imagine.configs.build:make_dream_vector_env"
    )
    _register("imagine/G1TableLatent-v0", None, "imagine.configs.build:make_steered_vector_env")


def register_robots() -> None:
    """Register every environment in the namespace ``real``; harmless when repeated."""
    _register("real/G1Table-v0", "imagine.policy.robots.g1_table.env:G1TableEnv")


def _register(name: str, entry_point: str | None, vector_entry_point: str | None = None) -> None:
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point, vector_entry_point=vector_entry_point)
