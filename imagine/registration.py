"""Names of our environments, registered with Gymnasium by ``import imagine``; nothing that they need is loaded here.

A process that never imports ``imagine``, as a spawned worker, writes the module into the id, as Gymnasium has it:
``gymnasium.make("imagine:imagine/Dream-v0")``.
"""

from __future__ import annotations

import gymnasium

_MAKE = "imagine.configs.make_env"
_IDS = {
    "imagine/Dream-v0": (f"{_MAKE}:make_env", f"{_MAKE}:make_vector_env"),
    "imagine/G1Table-v0": (f"{_MAKE}:make_env", f"{_MAKE}:make_vector_env"),
    "imagine/G1TableLatent-v0": (f"{_MAKE}:make_latent_env", f"{_MAKE}:make_latent_vector_env"),
    "sim/G1Table-v0": (f"{_MAKE}:make_sim_env", None),
    "real/G1Table-v0": (f"{_MAKE}:make_real_env", None),
}
"""Id to entry points of the scalar and of the vector environment."""


def register_envs() -> None:
    """Register every environment; harmless when repeated."""
    for name, (scalar, vector) in _IDS.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, scalar, vector_entry_point=vector)
