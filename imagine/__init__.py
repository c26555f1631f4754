"""One joint world-action model: a robot's policy, and the gym in which that policy is improved.

Names are loaded when first used, so that ``import imagine`` costs nothing and ``imagine.types`` needs no Gymnasium.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register_with_gymnasium

_HOMES = {
    "model": ["WorldActionModel"],
    "questions": ["Question", "POLICY", "DYNAMICS", "INVERSE", "JOINT", "VIDEO"],
    "sampler": ["sample"],
    "embodiment": ["Embodiment"],
    "env": ["WorldModelVectorEnv", "WorldModelEnv"],
    "types": [
        "Observation",
        "Context",
        "Chunk",
        "NoiseLevels",
        "Clip",
        "Score",
        "Policy",
        "RewardModel",
        "Robot",
        "ImagineError",
        "ShapeError",
        "UntrainedQuestion",
        "UnknownWord",
        "CheckpointMismatch",
        "DatasetError",
        "RewardUnavailable",
    ],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from .embodiment import Embodiment as Embodiment
    from .env import WorldModelEnv as WorldModelEnv
    from .env import WorldModelVectorEnv as WorldModelVectorEnv
    from .model import WorldActionModel as WorldActionModel
    from .questions import DYNAMICS as DYNAMICS
    from .questions import INVERSE as INVERSE
    from .questions import JOINT as JOINT
    from .questions import POLICY as POLICY
    from .questions import VIDEO as VIDEO
    from .questions import Question as Question
    from .sampler import sample as sample
    from .types import CheckpointMismatch as CheckpointMismatch
    from .types import Chunk as Chunk
    from .types import Clip as Clip
    from .types import Context as Context
    from .types import DatasetError as DatasetError
    from .types import ImagineError as ImagineError
    from .types import NoiseLevels as NoiseLevels
    from .types import Observation as Observation
    from .types import Policy as Policy
    from .types import RewardModel as RewardModel
    from .types import RewardUnavailable as RewardUnavailable
    from .types import Robot as Robot
    from .types import Score as Score
    from .types import ShapeError as ShapeError
    from .types import UnknownWord as UnknownWord
    from .types import UntrainedQuestion as UntrainedQuestion


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("imagine-wam")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'imagine' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*_HOME_OF, "__version__"])


register_with_gymnasium()
