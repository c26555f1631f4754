"""The stages of ``imagine train``; each reads what the one before it wrote."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from imagine.configs.commands import judge_stages
from imagine.configs.commands.check import examine
from imagine.configs.commands.common import console
from imagine.configs.dream_limits import measured_limits
from imagine.configs.runfolder import RunFolder
from imagine.data.cache import fingerprint
from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.embodiment import Embodiment
from imagine.files import atomic_write, write_json
from imagine.model.codec import FrameCodec
from imagine.model.model import WorldActionModel, load_weights, resolve
from imagine.model.text import TextConfig
from imagine.policy.robots.registry import DEFAULT, load_robot, remember, spec_of
from imagine.train.joint import build_model, train_codec, train_joint
from imagine.types import ImagineError
from imagine.world.starts import MOST_SAVED, EpisodeStarts, save_starts

READ_RECORDINGS = {"codec", "model", "judge", "vlm"}
"""Stages that need the dataset; the others dream."""


class Training:
    """Datasets, caches and the three stages of one training run."""

    def __init__(self, args: Any, recipe: Any, folder: RunFolder):
        self.args, self.recipe, self.folder = args, recipe, folder
        self.out = folder.path / args.name
        self.metrics: dict[str, Any] = dict(folder.metrics)
        self.init = WorldActionModel.from_pretrained(args.init) if args.init else None
        known = DEFAULT if self.init is None else spec_of(resolve(args.init))
        self.robot: str | Path | None = args.robot or args.embodiment or known
        self.body = self._embodiment()

    def _embodiment(self) -> Embodiment:
        given = Embodiment.load(self.args.embodiment) if self.args.embodiment else None
        if self.init is not None:
            if given is not None and given != self.init.body:
                raise ImagineError(
                    f"--init {self.args.init} is a model of embodiment {self.init.body.name!r}, which --embodiment "
                    f"{self.args.embodiment} differs from; leave --embodiment out, or train a new model without --init"
                )
            return self.init.body
        body = given or load_robot(self.robot or DEFAULT).embodiment()
        if body is None:
            raise ImagineError(f"robot {self.robot!r} has no embodiment of its own; give --embodiment FILE")
        return body

    def prepare(self) -> None:
        """Find what would fail later, and refuse to go on with another dataset, embodiment or recipe.

        Raises:
            ImagineError: names what cannot work, or what has changed since the run folder was started.
        """
        if not set(self.args.stages) & READ_RECORDINGS:
            return
        datasets = {str(i): fingerprint(d) for i, d in enumerate(self.datasets)}
        known = self.init.text.cfg.words if self.init and isinstance(self.init.cfg.text, TextConfig) else None
        examine(self.datasets, self.body, None if self.init else self.recipe, known)
        self.folder.keep("recipe.yaml", self.recipe, f"the recipe {self.args.preset}")
        self.folder.keep("embodiment.yaml", self.body.model_dump(mode="json"), "the embodiment")
        self.folder.keep("datasets.yaml", datasets, "the dataset")

    @functools.cached_property
    def datasets(self) -> list[LeRobotDataset]:
        """The opened datasets."""
        return [LeRobotDataset.open(Path(d)) for d in self.args.dataset]

    def _caches(self, codec: FrameCodec | None, tag: str) -> list[Path]:
        kind = "canvas" if codec is None else f"latents-{tag}"

        @torch.no_grad()
        def encode(canvas: torch.Tensor) -> torch.Tensor:
            assert codec is not None
            return codec.encode(canvas.to(codec.mean.device)).cpu()

        caches = []
        for i, dataset in enumerate(self.datasets):
            console.print(f"decoding {dataset.root} into {kind}")
            where = self.folder.path / "cache" / f"{i}-{kind}"
            caches.append(build_cache(dataset, self.body, None if codec is None else encode, where, tag=tag))
        return caches

    def codec(self) -> None:
        """Train the codec on every frame of the training episodes, unless ``init`` brings one."""
        if self.init or (self.folder / "codec.safetensors").is_file():
            return
        from safetensors.torch import save

        canvases = Windows(self._caches(None, ""), self.body, context_frames=1)
        frames = canvases.video[canvases.training_frames()]
        codec = train_codec(frames, self.recipe.codec, self.recipe.codec_fit, self.folder / "codec")
        weights = save({k: v.contiguous() for k, v in codec.state_dict().items()})
        atomic_write(self.folder / "codec.safetensors", weights)

    def load_codec(self) -> FrameCodec:
        """The trained codec, in eval mode."""
        if self.init:
            return self.init.codec
        codec = FrameCodec(self.recipe.codec)
        codec.load_state_dict(load_weights(self.folder / "codec.safetensors"))
        return codec.eval()

    @functools.cached_property
    def windows(self) -> Windows:
        """Latent windows over all datasets."""
        import hashlib

        codec = self.load_codec()
        tag = hashlib.sha256(b"".join(v.numpy().tobytes() for v in codec.state_dict().values())).hexdigest()[:8]
        return Windows(self._caches(codec, tag), self.body, context_frames=2)

    def model(self) -> None:
        """Train the joint model."""
        torch.manual_seed(self.recipe.model_fit.seed)
        model = self.init or build_model(
            self.windows, self.load_codec(), self.recipe.dit, self.recipe.joint, name=self.args.name
        )
        console.print(f"{sum(p.numel() for p in model.dit.parameters()) / 1e6:.2f} M parameters in the transformer")
        fit, where = self.recipe.model_fit, self.folder / "model_fit"
        model = train_joint(self.windows, model, self.recipe.joint, fit, where, out=self.out)
        self.metrics["model"] = _read(where / "metrics.json")
        held_out = [start for d in self.datasets for start in EpisodeStarts(d, self.body).held_out()]
        save_starts(held_out[:: -(-len(held_out) // MOST_SAVED)], self.out)
        if self.robot:
            remember(self.robot, self.out)
        if not (self.out / "dream.json").is_file():
            write_json(self.out / "dream.json", measured_limits(model, self.windows, self.canvases).model_dump())

    def judge(self) -> None:
        """Success heads; see :func:`imagine.configs.commands.judge_stages.judge`."""
        if self.windows.tells_success:
            judge_stages.judge(self)
        else:
            console.print("no success head: the dataset has no feature next.success (bool per row: the task is done)")

    def rollouts(self) -> None:
        """More success heads; see :func:`imagine.configs.commands.judge_stages.rollouts`."""
        judge_stages.rollouts(self)

    def vlm(self) -> None:
        """A vision-language judge; see :func:`imagine.configs.commands.judge_stages.vlm`."""
        judge_stages.vlm(self)

    def dreamer(self, stage: str) -> str:
        """The folder or name of the model that dreams for a judge.

        Raises:
            ImagineError: none was trained or named.
        """
        found = self.out if (self.out / "config.json").is_file() else self.args.init
        if not found:
            raise ImagineError(
                f"stage {stage} needs a joint model to dream with; add the stages before, or --init one."
            )
        return str(found)

    @functools.cached_property
    def canvases(self) -> Windows:
        """Windows of canvases over all datasets."""
        return Windows(self._caches(None, ""), self.body, context_frames=2)

    def keep(self, stage: str, where: Path, file: Path) -> None:
        """Take over what a stage measured, and write it beside what it trained."""
        self.metrics[stage] = _read(where / "metrics.json")
        write_json(file, self.metrics[stage])


def _read(path: Path) -> Any:
    import json

    return json.loads(path.read_text())
