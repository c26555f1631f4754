"""Dream: the world behind an imagined environment. It asks the model DYNAMICS, and INVERSE whether to believe it.

Everything stays in latents; of a chunk only the newest frame is decoded, and others when a judge or a film asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from imagine.model.batching import TILE, in_tiles
from imagine.model.blocks import compile_blocks, packed_weights
from imagine.model.model import WorldActionModel, as_observation
from imagine.types import Clip, Context, ImagineError, RewardModel, Score, pack_instruction
from imagine.world.env import Outcome
from imagine.world.history import Memory
from imagine.world.spaces import action_space, observation_space
from imagine.world.starts import Starts
from imagine.world.step import follow
from imagine.world.trajectory import begun, went_on


class DreamConfig(BaseModel):
    """How a dream is dreamt and doubted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = 1  # denoising steps per chunk
    tile: int = TILE  # lanes per network call; fixed, so that a lane's bytes do not depend on N; 0: all at once
    inverse_steps: int = 2  # denoising steps of the check; 0 leaves the check out
    hallucination_limit: float | None = None  # above it (normalised action units) a lane is no longer believable
    adapter: str | None = None  # LoRA folder beside the weights that the dream has and the policy has not
    memory: Literal["read", "extend", "kept", "reset"] = "read"  # see `imagine.world.history`
    compile: bool = False  # fuse the model's blocks, whose weights never change then; needs a C++ compiler on a CPU
    autocast: bool = False  # imagine in bfloat16: about twice as fast on chips that have it; the last bits differ
    doubt_cost: float = 0.0  # reward lost per normalised action unit of doubt, every chunk (MOPO, arXiv:2005.13239)


class Shaping(Protocol):
    """Pays for progress without changing which policy is best; ``imagine.rewards.progress.Potential``."""

    def reset(self, lanes: Tensor | None = None) -> None:
        """Begin an episode in the (N,) bool lanes."""
        ...

    def step(self, phi: Tensor, terminal: Tensor, valid: Tensor | None = None) -> Tensor:
        """What is added to the reward (N,) of a step that led to progress ``phi``."""
        ...

    def snapshot(self) -> Tensor:
        """What :meth:`restore` needs."""
        ...

    def restore(self, snapshot: Tensor) -> None:
        """Go back."""
        ...


class Dream:
    """N imagined lanes of one model, one judge and one source of starts.

    Lanes are independent: a lane's noise depends on its own seed and step alone, never on its neighbours.
    """

    def __init__(
        self,
        model: WorldActionModel,
        judge: RewardModel,
        starts: Starts,
        cfg: DreamConfig | None = None,
        shaping: Callable[[int], Shaping] | None = None,
    ) -> None:
        """Dream with a model.

        Args:
            model: imagines.
            judge: scores what was imagined; an episode ends where its score says ``terminated``.
            starts: where episodes begin.
            cfg: how it is dreamt and doubted.
            shaping: makes, for a number of lanes, what pays for the judge's term ``progress``; None pays for success
                alone.
        """
        self._make_shaping = shaping
        self.shaping: Shaping | None = None
        self.model, self.judge, self.starts, self.cfg = model, judge, starts, cfg or DreamConfig()
        if self.cfg.compile:
            compile_blocks(model.dit)
        self.single_observation_space = observation_space(model.body)
        self.single_action_space = action_space(model.body)
        hz = model.body.control_hz
        self.metadata = {"control_hz": hz, "render_fps": hz / model.body.frame_stride}

    def allocate(self, num_envs: int) -> None:
        """Make room for ``num_envs`` lanes."""
        n, t, device = num_envs, self.model.cfg.context_frames, self.model.device
        _, *latent = self.model.chunk_shapes["video"]
        p = self.model.body.proprio_dim
        self.video = torch.zeros(n, t, *latent, device=device)
        self.proprio = torch.zeros(n, t, p, device=device)
        self.start_video = torch.zeros(n, *latent, device=device)
        self.start_proprio = torch.zeros(n, p, device=device)
        self.path = begun(self.model, self.start_proprio).clone()
        self.text = torch.zeros(n, *self.model.text_shape, device=device)
        self.image: Tensor | None = None  # what the first frame tells some giants, from the first reset on
        self.condition: Tensor | None = None
        self.memory = None if self.cfg.memory == "read" else Memory(self.model, self.cfg.memory, n, self.cfg.tile)
        self.newest = torch.zeros(n, *self.model.chunk_shapes["video"], device=device)
        self.before = self.video.clone()  # the context of the newest chunk
        seen = (n, self.model.body.canvas_height, self.model.body.canvas_width, 3)
        self.canvas = torch.zeros(seen, dtype=torch.uint8, device=device)  # the newest frame, as anybody sees it
        self.start_canvas = self.canvas.clone()
        self.shaping = self._make_shaping(n) if self._make_shaping else None
        self.instruction = [""] * n
        self.packed = np.zeros((n, *self.single_observation_space["instruction"].shape), np.uint8)  # type: ignore[misc]
        self.seeds, self.steps = np.zeros(n, np.int64), np.zeros(n, np.int64)

    @torch.inference_mode()
    def reset(self, lanes: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Begin an episode in some lanes.

        Args:
            lanes: (M,) int indices.
            seeds: one per lane; chooses the start and all noise of the episode.
            options: ``instruction`` (one text, or one per lane) to follow instead of the starts' own.
        """
        told = options.get("instruction")
        each = [told] * len(lanes) if told is None or isinstance(told, str) else list(told)
        started = [self.starts(int(s), {**options, "instruction": i}) for s, i in zip(seeds, each, strict=True)]
        seen = as_observation(
            np.stack([b.canvas for b in started])[:, None], np.stack([b.proprio for b in started])[:, None]
        )
        heard = [b.instruction for b in started]

        names: list[str] = []

        def encode(rows: Tensor) -> tuple[Tensor, ...]:
            context = self.model.encode(seen.index(rows), [heard[i] for i in rows.tolist()])
            names[:] = context.named()
            shown = self.model.decode(context.video[:, -1:], context.video[:, :-1])[:, 0]
            return *context.named().values(), shown

        *parts, canvas = in_tiles(encode, len(started), self.cfg.tile)
        at = torch.as_tensor(lanes, device=self.model.device)
        for name, part in zip(names, parts, strict=True):
            if getattr(self, name) is None:
                setattr(self, name, part.new_zeros(len(self.seeds), *part.shape[1:]))
            getattr(self, name)[at] = part
        video, proprio = self.video[at], self.proprio[at]
        self.path[at] = begun(self.model, proprio[:, -1])
        self.start_video[at], self.start_proprio[at], self.before[at] = video[:, -1], proprio[:, -1], video
        if self.memory is not None:
            self.memory.begin(self.context(), lanes)
        self.start_canvas[at] = canvas  # judges compare what was decoded with what was decoded
        self.canvas[at] = seen.canvas[:, -1].to(self.canvas)  # whoever acts sees what the robot sees
        self.newest[at] = video[:, -1:].expand(-1, self.newest.shape[1], -1, -1, -1)
        for lane, seed, start in zip(lanes, seeds, started, strict=True):
            self.instruction[lane] = start.instruction
            self.packed[lane] = pack_instruction(start.instruction)
            self.seeds[lane], self.steps[lane] = seed, 0
        if self.shaping is not None:
            self.shaping.reset(torch.zeros(len(self.seeds), dtype=torch.bool).index_fill(0, at.cpu(), True))
        return {
            "instruction": np.array([b.instruction for b in started], object),
            "start_id": np.array([b.start_id for b in started], object),
        }

    def judge_by(self, instructions: Sequence[str]) -> None:
        """Until their next reset, judge all lanes by other instructions than those they were told."""
        self.instruction = list(instructions)

    def context(self) -> Context:
        """What the model is given in every lane now."""
        return Context(self.video, self.proprio, self.text, self.image, self.condition)

    @torch.inference_mode()
    def step(self, actions: np.ndarray) -> Outcome:
        """Imagine one chunk in every lane.

        Args:
            actions: (N, K, A) float32, robot units, relative to the chunk's first state where the embodiment says so.

        Raises:
            ShapeError: the actions are misshapen, not finite or in wrong units.
        """
        chunk = self.model.body.check_action(actions)
        robot_units = torch.from_numpy(chunk).to(self.model.device)
        action = self.model.normalise_action(robot_units)
        seeds = [int(s) * 1_000_003 + int(k) for s, k in zip(self.seeds, self.steps, strict=True)]
        names: list[str] = []

        def imagine(rows: Tensor) -> tuple[Tensor, ...]:
            picked = rows.tolist()
            video, proprio, doubt = self._imagine(rows, action[rows], [seeds[i] for i in picked])
            passed = torch.cat([self.video[rows], video[:, :-1]], 1)
            canvas = self.model.decode(video[:, -1:], passed)[:, 0]
            score = self._judge(rows, video, proprio, canvas, robot_units[rows], doubt)
            names[:] = score.terms
            numbers = (score.reward, score.success, *score.terms.values())
            reward, success, *terms = (x.float() for x in numbers)  # a judge may answer in the model's precision
            return video, proprio, canvas, doubt.float(), reward, success, score.valid, score.terminated, *terms

        packed = packed_weights(self.model.device) if self.cfg.compile else nullcontext()
        with packed, torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.cfg.autocast):
            video, proprio, self.canvas, doubt, reward, success, valid, terminated, *terms = in_tiles(
                imagine, len(chunk), self.cfg.tile
            )
        video, proprio = video.float(), proprio.float()
        after = self.model.after(self.context(), video, proprio)
        self.before, self.newest, self.video, self.proprio = self.video, video, after.video, after.proprio
        self.path = went_on(self.model, self.path, proprio, robot_units)
        self.steps = self.steps + 1
        limit = self.cfg.hallucination_limit
        told = {"hallucination": doubt, "success_probability": success, "valid": valid}
        info: dict[str, Any] = {k: v.cpu().numpy() for k, v in told.items()}
        parts = {k: v.cpu() for k, v in zip(names, terms, strict=True)}
        valid, done = valid.cpu(), terminated.cpu()
        reward = torch.where(valid, reward.cpu(), torch.zeros(len(chunk)))
        if self.shaping is not None:
            if "progress" not in parts:
                raise ImagineError(
                    f"shaping pays for the judge's term 'progress', but {type(self.judge).__name__} reports "
                    f"{sorted(parts) or 'no terms'}; give a judge with that term, or leave shaping out."
                )
            parts["shaping"] = self.shaping.step(parts["progress"], done, valid & ~parts["progress"].isnan())
            reward = reward + parts["shaping"]
        if self.cfg.doubt_cost:
            parts["doubt_cost"] = -self.cfg.doubt_cost * doubt.cpu()
            reward = reward + parts["doubt_cost"]
        info["reward_terms"] = {k: v.numpy() for k, v in parts.items()}
        return Outcome(
            reward.numpy(),
            done.numpy(),
            np.ones(len(chunk), bool) if limit is None else info["hallucination"] <= limit,
            info,
        )

    def _imagine(self, rows: Tensor, action: Tensor, seeds: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Next frames, proprioception and doubt of some lanes; doubt is (n,), normalised action units.

        Doubt is the root mean square between the action and the one that INVERSE reads from what was imagined.
        """
        context = self.context().index(rows)
        ask: dict[str, Any] = {"steps": self.cfg.steps, "inverse_steps": self.cfg.inverse_steps}
        if self.memory is None:
            seen = follow(self.model, context, action, seeds=seeds, **ask)
        else:
            seen = self.memory.follow(rows, context, action, seeds=seeds, **ask)
        return seen.video, seen.proprio, seen.doubt

    def _judge(
        self, rows: Tensor, video: Tensor, proprio: Tensor, canvas: Tensor, action: Tensor, doubt: Tensor
    ) -> Score:
        latents = torch.cat([self.start_video[rows, None], video], 1)
        anchor, anchored = self.model.anchor, self.model.anchored
        before = self.model.restore_proprio(self.proprio[rows, -1])[:, anchor] * anchored
        moved = action + before[:, None]
        clip = Clip(
            latents=latents,
            proprio=torch.cat([self.start_proprio[rows, None], proprio], 1),
            decode=self.model.film(
                latents, {0: self.start_canvas[rows], video.shape[1]: canvas}, before=self.video[rows]
            ),
            action=moved,
            pose=torch.where(anchored > 0, before, moved[:, 0]),  # an absolute command tells no pose; none is assumed
            doubt=doubt if self.cfg.inverse_steps else None,
            path=went_on(self.model, self.path[rows], proprio, action),
        )
        return self.judge(clip, [self.instruction[i] for i in rows.tolist()])

    @torch.inference_mode()
    def observe(self) -> dict[str, np.ndarray]:
        """The newest observation of every lane, in the spaces of the real robot."""
        canvas = self.canvas.cpu().numpy().copy()  # a later reset writes into ours
        proprio = self.model.restore_proprio(self.proprio[:, -1]).cpu().numpy()
        return {**self.model.body.untile(canvas), "proprio": proprio, "instruction": self.packed.copy()}

    @torch.inference_mode()
    def frames(self, lane: int) -> np.ndarray:
        """(F, H, W, 3) uint8, the newest chunk of one lane."""
        one = slice(lane, lane + 1)
        return self.model.motion(self.newest[one], self.before[one])[0].cpu().numpy()

    _STATE = (
        *("video", "proprio", "canvas", "text", "image", "condition", "newest", "before", "packed", "seeds", "steps"),
        *("start_video", "start_proprio", "start_canvas", "path"),
    )

    def snapshot(self) -> dict[str, Any]:
        """Everything that the future of all lanes depends on."""
        copy = {k: _copy(getattr(self, k)) for k in self._STATE}
        paid = None if self.shaping is None else self.shaping.snapshot()
        known = None if self.memory is None else self.memory.snapshot()
        return {**copy, "instruction": list(self.instruction), "shaping": paid, "memory": known}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a snapshot; it can be restored any number of times."""
        for name in self._STATE:
            setattr(self, name, _copy(state[name]))
        self.instruction = list(state["instruction"])
        if self.shaping is not None:
            self.shaping.restore(state["shaping"])
        if self.memory is not None:
            self.memory.restore(state["memory"])


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else None if value is None else value.copy()
