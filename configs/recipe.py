"""What a preset of ``imagine train`` says: how each stage is shaped and fitted."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from imagine.agents.labelled_rollouts import RolloutConfig
from imagine.model.codec import CodecConfig
from imagine.model.dit import DiTConfig
from imagine.rewards.latent import HeadConfig
from imagine.rewards.train.vlm import VLMConfig
from imagine.train.fit import FitConfig
from imagine.train.losses import JointConfig


class Recipe(BaseModel):
    """Every stage of ``imagine train``; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    codec: CodecConfig = CodecConfig()
    codec_fit: FitConfig = FitConfig()
    dit: DiTConfig = DiTConfig()
    joint: JointConfig = JointConfig()
    model_fit: FitConfig = FitConfig()
    head: HeadConfig = HeadConfig()
    judge_fit: FitConfig = FitConfig()
    judge_dreams: int = 9000  # recorded frames to dream on from; each gives up to three imagined ones with labels
    rollouts: RolloutConfig = RolloutConfig()
    rollouts_fit: FitConfig = FitConfig()
    vlm: VLMConfig = VLMConfig()
    vlm_fit: FitConfig = FitConfig()
