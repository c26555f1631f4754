"""Dream: the world behind an imagined environment. It asks the model DYNAMICS, and INVERSE whether to believe it.

Everything stays in latents; of a chunk only the newest frame is decoded, and others when a judge or a video asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from imagine.model.batching import named_in_tiles
from imagine.model.blocks import compile_blocks, packed_weights
from imagine.model.model import WorldActionModel, as_observation
from imagine.precision import has_bfloat16
from imagine.seeds import Stream, derive
from imagine.types import Context, ImagineError, RewardModel, ShapeError, pack_instruction
from imagine.world.env import Outcome
from imagine.world.history import HistoryCache
from imagine.world.interface import one_each
from imagine.world.spaces import action_space, observation_space
from imagine.world.starts import Start, Starts
from imagine.world.step import DreamConfig, EpisodeStart, Prediction, judge_clip, predict_chunk

__all__ = ["Dream", "DreamConfig", "Shaping"]


class Shaping(Protocol):
    """Pays for progress without changing which policy is best; ``imagine.rewards.progress.Potential``."""

    def reset(self, rows: Tensor | None = None) -> None:
        """Begin an episode in the environments where the (N,) bool mask is True."""
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
    """N imagined environments of one model, one judge and one source of starts.

    They are independent: the noise of one depends on its own seed and step alone, never on its neighbours.
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
            cfg: how it is imagined and checked.
            shaping: makes, for a number of environments, what pays for the judge's term ``progress``; None pays the
                judge's reward alone.
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
        """Make room for ``num_envs`` environments."""
        n, t, device = num_envs, self.model.cfg.context_frames, self.model.device
        _, *latent = self.model.chunk_shapes["video"]
        p = self.model.body.proprio_dim
        self.video = torch.zeros(n, t, *latent, device=device)
        self.proprio = torch.zeros(n, t, p, device=device)
        self.start_video = torch.zeros(n, *latent, device=device)
        self.start_proprio = torch.zeros(n, p, device=device)
        self.text = torch.zeros(n, *self.model.text_shape, device=device)
        self.image: Tensor | None = None  # of models that read the first frame again; made at the first reset
        self.condition: Tensor | None = None
        self.memory: Tensor | None = None  # of the scene, where the model has one; likewise
        self.history = None
        if self.cfg.history != "read":
            self.history = HistoryCache(self.model, self.cfg.history, n, self.cfg.tile)
        self.newest = torch.zeros(n, *self.model.chunk_shapes["video"], device=device)
        self.newest_proprio = torch.zeros(n, self.newest.shape[1], p, device=device)
        self.before = self.video.clone()  # the context of the newest chunk
        shape = (n, self.model.body.canvas_height, self.model.body.canvas_width, 3)
        self.canvas = torch.zeros(shape, dtype=torch.uint8, device=device)  # the newest frame, as it is observed
        self.start_canvas = self.canvas.clone()
        self.shaping = self._make_shaping(n) if self._make_shaping else None
        self.instruction = [""] * n
        self.packed = np.zeros((n, *self.single_observation_space["instruction"].shape), np.uint8)  # type: ignore[misc]
        self.seeds, self.steps = np.zeros(n, np.int64), np.zeros(n, np.int64)

    @torch.inference_mode()
    def reset(self, envs: np.ndarray, seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
        """Begin an episode in some environments; if this fails, nothing has changed.

        Args:
            envs: (M,) int indices.
            seeds: one per environment, in [0, 2^63); chooses the start and all noise of the episode.
            options: ``instruction`` (one text, or one per environment) to follow instead of the starts' own; the rest
                goes to the starts.

        Raises:
            ImagineError: the starts do not know an option, or a value of one.
        """
        each = one_each(options.get("instruction"), len(envs))
        starts = [self.starts(int(s), {**options, "instruction": i}) for s, i in zip(seeds, each, strict=True)]
        packed = np.stack([pack_instruction(s.instruction) for s in starts])
        numbers = np.asarray(seeds, np.int64)
        at = torch.as_tensor(envs, device=self.model.device)
        self._write(at, self._encode(starts))
        if self.history is not None:
            self.history.begin(self.context(), envs)
        for i, start in zip(envs.tolist(), starts, strict=True):
            self.instruction[i] = start.instruction
        self.packed[envs], self.seeds[envs], self.steps[envs] = packed, numbers, 0
        if self.shaping is not None:
            self.shaping.reset(torch.zeros(len(self.seeds), dtype=torch.bool).index_fill(0, at.cpu(), True))
        return {
            "instruction": np.array([s.instruction for s in starts], object),
            "start_id": np.array([s.start_id for s in starts], object),
        }

    def _encode(self, starts: Sequence[Start]) -> dict[str, Tensor]:
        """The fields of a context for M starts, the frame as observed (``canvas``) and as decoded."""
        canvas, proprio = np.stack([s.canvas for s in starts]), np.stack([s.proprio for s in starts])
        observed = as_observation(canvas[:, None], proprio[:, None])

        def encode(rows: Tensor) -> dict[str, Tensor]:
            context = self.model.encode(observed.index(rows), [starts[i].instruction for i in rows.tolist()])
            shown = self.model.decode(context.video[:, -1:], context.video[:, :-1])[:, 0]
            return {**context.named(), "start_canvas": shown}

        encoded = named_in_tiles(encode, len(starts), self.cfg.tile)
        return {**encoded, "canvas": observed.canvas[:, -1].to(self.canvas)}

    def _write(self, at: Tensor, fields: Mapping[str, Tensor]) -> None:
        """Begin an episode in rows ``at``: judges compare decoded frames, whoever acts sees what the robot sees."""
        video, proprio = fields["video"], fields["proprio"]
        derived = {
            "before": video,
            "start_video": video[:, -1],
            "start_proprio": proprio[:, -1],
            "newest": video[:, -1:].expand(-1, self.newest.shape[1], -1, -1, -1),
            "newest_proprio": proprio[:, -1:].expand(-1, self.newest.shape[1], -1),
        }
        for name, part in {**fields, **derived}.items():
            if getattr(self, name) is None:
                setattr(self, name, part.new_zeros(len(self.seeds), *part.shape[1:]))
            whole = getattr(self, name)
            whole[at] = part.to(whole)

    def judge_by(self, instructions: Sequence[str]) -> None:
        """Until their next reset, judge all environments by other instructions than those that are observed."""
        self.instruction = list(instructions)

    @torch.inference_mode()
    def instruct(self, instructions: Sequence[str]) -> None:
        """From now on, until their next reset, tell all environments to do something else.

        Args:
            instructions: one per environment.

        Raises:
            UnknownWord: the model never saw a word of them; nothing has changed then.
            ShapeError: there is another number of them.
        """
        each = [str(text) for text in one_each(list(instructions), len(self.seeds))]
        packed, text = np.stack([pack_instruction(t) for t in each]), self.model.embed_text(each)
        self.packed, self.text, self.instruction = packed, text.to(self.text), each
        if self.history is not None:
            self.history.begin(self.context(), np.arange(len(each)))

    def context(self) -> Context:
        """What the model is given in every environment now."""
        return Context(self.video, self.proprio, self.text, self.image, self.condition, self.memory)

    @torch.inference_mode()
    def step(self, actions: np.ndarray) -> Outcome:
        """Imagine one chunk in every environment.

        Args:
            actions: (N, K, A) float32, robot units, relative to the chunk's first state where the embodiment says so.

        Raises:
            ShapeError: the actions are misshapen, not finite or in wrong units.
            ImagineError: there is shaping, but the judge reports no progress.
        """
        commanded = torch.from_numpy(self.model.body.check_action(actions)).to(self.model.device)
        packed = packed_weights(self.model.device) if self.cfg.compile else nullcontext()
        half = self.cfg.autocast and has_bfloat16(self.model.device)
        with packed, torch.autocast(self.model.device.type, torch.bfloat16, enabled=half):
            out = named_in_tiles(lambda rows: self._imagine(rows, commanded[rows]), len(commanded), self.cfg.tile)
        outcome = self._outcome(out)
        after = self.model.after(self.context(), out["video"], out["proprio"], out.get("memory"))
        self.memory = after.memory
        self.before, self.newest, self.video, self.proprio = self.video, out["video"], after.video, after.proprio
        self.newest_proprio = out["proprio"]
        self.canvas, self.steps = out["canvas"], self.steps + 1
        return outcome

    def _imagine(self, rows: Tensor, commanded: Tensor) -> dict[str, Tensor]:
        """The next chunk of some environments, and its judgement; terms of the reward under ``terms/NAME``."""
        model, picked = self.model, rows.tolist()
        context, action = self.context().index(rows), model.normalise_action(commanded)
        seeds = [derive(int(self.seeds[i]), int(self.steps[i]), Stream.WORLD) for i in picked]
        chunk = self.predict(rows, context, action, seeds)
        canvas = model.decode(chunk.video[:, -1:], torch.cat([context.video, chunk.video[:, :-1]], 1))[:, 0]
        start = EpisodeStart(self.start_video[rows], self.start_proprio[rows], self.start_canvas[rows])
        clip = judge_clip(model, start, context, chunk, commanded, canvas)
        score = self.judge(clip, [self.instruction[i] for i in picked])
        error = torch.zeros(len(rows), device=commanded.device) if chunk.inverse_error is None else chunk.inverse_error
        numbers = {
            **{"video": chunk.video, "proprio": chunk.proprio, "inverse_error": error},
            **{"reward": score.reward, "success": score.success, **{f"terms/{k}": v for k, v in score.terms.items()}},
        }
        if chunk.memory is not None:
            numbers["memory"] = chunk.memory
        flags = {"valid": score.valid, "terminated": score.terminated}
        return {**{k: v.float() for k, v in numbers.items()}, **flags, "canvas": canvas}  # a judge may answer in halves

    def predict(self, rows: Tensor, context: Context, action: Tensor, seeds: Sequence[int]) -> Prediction:
        """Imagine one chunk in the environments ``rows``, under normalised actions (B, K, A)."""
        if self.history is None:
            return predict_chunk(self.model, context, action, self.cfg, seeds=seeds)
        return self.history.predict(rows, context, action, self.cfg, seeds)

    def _outcome(self, out: Mapping[str, Tensor]) -> Outcome:
        """Reward and end of a step, of what :meth:`_imagine` gave for all N environments."""
        error, success, reward, valid, terminated = (
            out[k].cpu() for k in ("inverse_error", "success", "reward", "valid", "terminated")
        )
        terms = {k.removeprefix("terms/"): v.cpu() for k, v in out.items() if k.startswith("terms/")}
        reward = torch.where(valid, reward, torch.zeros_like(reward))
        if self.shaping is not None:
            if "progress" not in terms:
                raise ImagineError(
                    f"shaping pays for the judge's term 'progress', but {type(self.judge).__name__} reports "
                    f"{sorted(terms) or 'no terms'}; give a judge with that term, or leave shaping out."
                )
            known = valid & ~terms["progress"].isnan()
            terms["shaping"] = self.shaping.step(terms["progress"], terminated, known)
            reward = reward + terms["shaping"]
        if self.cfg.inverse_error_cost:
            terms["inverse_error_cost"] = -self.cfg.inverse_error_cost * error
            reward = reward + terms["inverse_error_cost"]
        limit = self.cfg.hallucination_limit
        info: dict[str, Any] = {"hallucination": error, "success_probability": success, "valid": valid}
        info = {k: v.numpy() for k, v in info.items()} | {"reward_terms": {k: v.numpy() for k, v in terms.items()}}
        believable = torch.ones_like(valid) if limit is None else error <= limit
        return Outcome(reward.numpy(), terminated.numpy(), believable.numpy(), info)

    @torch.inference_mode()
    def observe(self) -> dict[str, np.ndarray]:
        """The newest observation of every environment, in the spaces of the real robot."""
        canvas = self.canvas.cpu().numpy().copy()  # a later reset writes into ours
        proprio = self.model.restore_proprio(self.proprio[:, -1]).cpu().numpy()
        return {**self.model.body.untile(canvas), "proprio": proprio, "instruction": self.packed.copy()}

    def motion(self, env: int) -> np.ndarray:
        """(F, P) float32, robot units: proprioception during the newest chunk of one environment."""
        return self.model.restore_proprio(self.newest_proprio[env]).cpu().numpy()

    @torch.inference_mode()
    def frames(self, env: int) -> np.ndarray:
        """(F, H, W, 3) uint8, the newest chunk of one environment."""
        one = slice(env, env + 1)
        return self.model.decode_frames(self.newest[one], self.before[one])[0].cpu().numpy()

    _STATE = (
        *("video", "proprio", "canvas", "text", "image", "condition", "memory"),
        *("newest", "newest_proprio", "before", "packed", "seeds", "steps"),
        *("start_video", "start_proprio", "start_canvas"),
    )

    def snapshot(self) -> dict[str, Any]:
        """Everything that the future of all environments depends on."""
        copy = {k: _copy(getattr(self, k)) for k in self._STATE}
        shaping = None if self.shaping is None else self.shaping.snapshot()
        history = None if self.history is None else self.history.snapshot()
        return {**copy, "instruction": list(self.instruction), "shaping": shaping, "history": history}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a snapshot; it can be restored any number of times.

        Raises:
            ShapeError: it was taken of another dream; nothing has changed then.
        """
        self._check_snapshot(state)
        if self.shaping is not None:
            self.shaping.restore(state["shaping"])
        if self.history is not None:
            self.history.restore(state["history"])
        for name in self._STATE:
            setattr(self, name, _copy(state[name]))
        self.instruction = list(state["instruction"])

    def _check_snapshot(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise ShapeError(f"the snapshot is a {type(state).__name__}, expected what a dream's snapshot() returned.")
        own: dict[str, Any] = {k: getattr(self, k) for k in (*self._STATE, "instruction")}
        own["shaping"] = None if self.shaping is None else self.shaping.snapshot()
        own["history"] = None if self.history is None else []
        if wrong := sorted(set(own) ^ set(state)):
            raise ShapeError(f"the snapshot differs from this dream in {wrong}; restore it in the dream it is from.")
        for name, mine in own.items():
            theirs, optional = state[name], name in ("image", "condition", "memory")
            if optional and (mine is None or theirs is None):
                continue
            if (a := _kind(mine)) != (b := _kind(theirs)):
                raise ShapeError(
                    f"the snapshot's {name} is {b}, expected {a}; restore it in the dream that it was taken of."
                )
        one_each(state["instruction"], len(self.seeds))
        if self.history is not None:
            self.history.check(state["history"])


def _kind(value: Any) -> str:
    """What two moments of one dream have in common."""
    name = type(value).__name__
    return f"{name} {value.dtype} {tuple(value.shape)}" if hasattr(value, "dtype") else name


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else None if value is None else value.copy()
