"""One joint world-action model: a robot's policy, and the gym in which that policy is improved.

Names are loaded when first used, so that ``import imagine`` costs no more than importing Gymnasium, in whose registry
it writes the names of our environments.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from imagine.registration import register_envs

_HOMES = {
    "model.model": ["WorldActionModel"],
    "questions": ["Question", "POLICY", "DYNAMICS", "INVERSE", "JOINT", "VIDEO"],
    "sampler": ["sample"],
    "embodiment": ["Embodiment"],
    "world.env": ["WorldModelVectorEnv", "WorldModelEnv"],
    "world.starts": ["Start"],
    "configs.make_env": ["make_env"],
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
    from imagine.configs.make_env import make_env as make_env
    from imagine.embodiment import Embodiment as Embodiment
    from imagine.model.model import WorldActionModel as WorldActionModel
    from imagine.questions import DYNAMICS as DYNAMICS
    from imagine.questions import INVERSE as INVERSE
    from imagine.questions import JOINT as JOINT
    from imagine.questions import POLICY as POLICY
    from imagine.questions import VIDEO as VIDEO
    from imagine.questions import Question as Question
    from imagine.sampler import sample as sample
    from imagine.types import CheckpointMismatch as CheckpointMismatch
    from imagine.types import Chunk as Chunk
    from imagine.types import Clip as Clip
    from imagine.types import Context as Context
    from imagine.types import DatasetError as DatasetError
    from imagine.types import ImagineError as ImagineError
    from imagine.types import NoiseLevels as NoiseLevels
    from imagine.types import Observation as Observation
    from imagine.types import Policy as Policy
    from imagine.types import RewardModel as RewardModel
    from imagine.types import RewardUnavailable as RewardUnavailable
    from imagine.types import Robot as Robot
    from imagine.types import Score as Score
    from imagine.types import ShapeError as ShapeError
    from imagine.types import UnknownWord as UnknownWord
    from imagine.types import UntrainedQuestion as UntrainedQuestion
    from imagine.world.env import WorldModelEnv as WorldModelEnv
    from imagine.world.env import WorldModelVectorEnv as WorldModelVectorEnv
    from imagine.world.starts import Start as Start


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("imagine-wam")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'imagine' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*_HOME_OF, "__version__"])


register_envs()
