"""The stages of ``imagine train``; each reads what the one before it wrote."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagine.configs.commands.common import console
from imagine.configs.runfolder import RunFolder
from imagine.data.read import LeRobotDataset
from imagine.data.windows import Windows, build_cache
from imagine.embodiment import Embodiment
from imagine.files import write_json
from imagine.model.codec import FrameCodec
from imagine.model.model import WorldActionModel, load_weights, resolve
from imagine.train.joint import build_model, train_codec, train_joint
from imagine.types import ImagineError
from imagine.world.dream import DreamConfig
from imagine.world.fidelity import inverse_errors


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
        """Train the success head on the same latents and write it beside the model."""
        from imagine.configs.commands.train_judge import train_judge

        model = WorldActionModel.from_pretrained(self.out)
        where = self.folder / "judge_fit"
        train_judge(model, self.windows, self.recipe.head, self.recipe.judge_fit, where).save(self.out)
        rows = self.windows.rows("held_out")[:2000]
        cfg = DreamConfig()
        errors = inverse_errors(model, self.windows, rows, cfg) if len(rows) else np.array([np.inf])
        limit = float(np.quantile(errors, 0.99))  # as MOReL halts: beyond what dreams from real frames ever show
        write_json(self.out / "dream.json", cfg.model_copy(update={"hallucination_limit": limit}).model_dump())
        self.metrics["judge"] = _read(where / "metrics.json")
        write_json(self.out / "judge_metrics.json", self.metrics["judge"])

    def rollouts(self) -> None:
        """Teach the success head on whole dreams of many policies, labelled by the twin; ``judge.*`` in the model."""
        from imagine.configs.commands.train_rollouts import train_rollouts
        from imagine.rewards.latent import LatentJudge

        dreamer = self.out if (self.out / "config.json").is_file() else self.args.init
        if not dreamer:
            raise ImagineError("stage rollouts needs a joint model and its head; add the stages before, or --init one.")
        where, model = self.folder / "rollouts_fit", WorldActionModel.from_pretrained(dreamer)
        before, fit = LatentJudge.load(resolve(dreamer)), self.recipe.rollouts_fit
        self.out.mkdir(parents=True, exist_ok=True)
        train_rollouts(model, dreamer, before, self.recipe.rollouts, fit, where).save(self.out)
        self.metrics["rollouts"] = _read(where / "metrics.json")
        write_json(self.out / "judge_metrics.json", self.metrics["rollouts"])

    def paths(self) -> None:
        """Teach a judge of places and paths on whole dreams of many policies; ``path.*`` in the model."""
        from imagine.configs.commands.train_paths import train_paths

        dreamer = self.out if (self.out / "config.json").is_file() else self.args.init
        if not dreamer:
            raise ImagineError("stage paths needs a joint model to dream with; add the stage model, or --init one.")
        where, model = self.folder / "paths_fit", WorldActionModel.from_pretrained(dreamer)
        self.out.mkdir(parents=True, exist_ok=True)
        train_paths(model, dreamer, self.recipe.paths, self.recipe.paths_fit, where).save(self.out)
        self.metrics["paths"] = _read(where / "metrics.json")
        write_json(self.out / "path_metrics.json", self.metrics["paths"])

    def vlm(self) -> None:
        """Train a vision-language judge on the canvases and on what the model imagines; ``OUT/judge-tiny``."""
        from imagine.configs.commands.train_vlm import train_vlm
        from imagine.rewards.tiny import save_tiny

        dreamer = self.out if (self.out / "config.json").is_file() else self.args.init
        if not dreamer:
            raise ImagineError("stage vlm needs a joint model to dream with; add the stage model, or --init one.")
        model, where, out = (
            WorldActionModel.from_pretrained(dreamer),
            self.folder / "vlm_fit",
            self.folder / "judge-tiny",
        )
        windows = Windows(self._caches(None, ""), self.body, context_frames=2)
        save_tiny(train_vlm(model, dreamer, windows, self.recipe.vlm, self.recipe.vlm_fit, where), out)
        self.metrics["vlm"] = _read(where / "metrics.json")
        write_json(out / "training.json", self.metrics["vlm"])


def _read(path: Path) -> Any:
    import json

    return json.loads(path.read_text())
