"""The stages of ``imagine train``; each reads what the one before it wrote."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from imagine.configs.commands import judge_stages
from imagine.configs.commands.common import console
from imagine.configs.runfolder import RunFolder
from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.embodiment import Embodiment
from imagine.files import write_json
from imagine.model.codec import FrameCodec
from imagine.model.model import WorldActionModel, load_weights
from imagine.train.joint import build_model, train_codec, train_joint
from imagine.types import ImagineError


class Training:
    """Datasets, caches and the three stages of one training run."""

    def __init__(self, args: Any, recipe: Any, folder: RunFolder):
        self.args, self.recipe, self.folder = args, recipe, folder
        self.out = folder.path / args.name
        self.metrics: dict[str, Any] = dict(folder.metrics)
        init = WorldActionModel.from_pretrained(args.init) if args.init else None
        self.init = init
        self.body = init.body if init else Embodiment.load(args.embodiment)

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
        from safetensors.torch import save_file

        canvases = Windows(self._caches(None, ""), self.body, context_frames=1)
        frames = canvases.video[canvases.training_frames()]
        codec = train_codec(frames, self.recipe.codec, self.recipe.codec_fit, self.folder / "codec")
        save_file({k: v.contiguous() for k, v in codec.state_dict().items()}, self.folder / "codec.safetensors")

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
        train_joint(self.windows, model, self.recipe.joint, fit, where, out=self.out)
        self.metrics["model"] = _read(where / "metrics.json")

    def judge(self) -> None:
        """Success heads; see :func:`imagine.configs.commands.judge_stages.judge`."""
        judge_stages.judge(self)

    def rollouts(self) -> None:
        """More success heads; see :func:`imagine.configs.commands.judge_stages.rollouts`."""
        judge_stages.rollouts(self)

    def trajectory(self) -> None:
        """A judge of trajectories; see :func:`imagine.configs.commands.judge_stages.trajectory`."""
        judge_stages.trajectory(self)

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
