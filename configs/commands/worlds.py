"""Options of the commands that have a robot, and of those that run its episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imagine.configs.commands.common import Common, Pairs, at_least, options_of
from imagine.configs.defaults import MODEL
from imagine.types import ImagineError

if TYPE_CHECKING:
    from imagine.configs.build import Loaded


@dataclass(frozen=True, kw_only=True)
class OfRobot(Common):
    """Options of commands that have a model and its robot.

    Attributes:
        model: a shipped model's name, a folder, or a hub id.
        robot: whose episodes: a plug-in's name, module:object, or a YAML file; by default the one that the model folder
            remembers.
        option: what the robot's episodes are varied by, as blocks=3 or families=pick_up,push_left; any number of times.
    """

    model: str = MODEL
    robot: str = ""
    option: Pairs = ()

    def options(self) -> dict[str, str]:
        """The robot's options by name."""
        return options_of(self.option)

    def load(self) -> Loaded:
        """The model with its robot; ImagineError where there is no such model, robot or option."""
        from imagine.configs import build

        return build.load(self.model, self.robot, self.options())


@dataclass(frozen=True, kw_only=True)
class Episodes(OfRobot):
    """Options of commands that run episodes.

    Attributes:
        episodes: how many; episode i starts from seed SEED + i, the same start in every world.
        judge: who scores a dream: a shipped judge's name; latent, heads beside the model's weights; a folder or hub id
            of an image-text-to-text model; http://HOST/v1#MODEL; or module:name. By default the shipped judge
            where it knows the robot, else the one beside the weights.
        starts: where dreams begin: sim, saved (in the model folder), or the folder of a LeRobot dataset; by default sim
            if the robot has a simulator, else saved.
        num_envs: episodes run side by side.
        seed: first start seed; nothing shipped was trained on seeds from 900000 on.
    """

    judge: str = ""
    starts: str = ""
    episodes: int = 100
    num_envs: int = 16
    seed: int = 900_000

    def seeds(self) -> list[int]:
        """The start seeds; ImagineError for no episodes, nothing side by side, or a negative seed."""
        at_least(self, episodes=1, num_envs=1, seed=0)
        return list(range(self.seed, self.seed + self.episodes))


def world_of(name: str, known: tuple[str, ...] = ("sim", "imagined")) -> str:
    """The world of a name.

    Raises:
        ImagineError: there is no such world.
    """
    if name not in known:
        raise ImagineError(f"--world is {name!r}, expected {', '.join(known[:-1])} or {known[-1]}.")
    return name
