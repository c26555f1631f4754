"""What a Wan or DreamZero folder holds, from its config and the headers of its files; weights are not read.

Whether names are Wan's original ones or diffusers', and what comes before them, is seen from the names themselves, so
one path reads every layout. What a network looks like is read from the checkpoint's config, or from the shapes of its
tensors where the config does not say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from imagine.model.action_registers import RegisterConfig
from imagine.model.dit import DiTConfig
from imagine.types import CheckpointMismatch
from imagine.wan import names
from imagine.wan.shards import Header, headers, read_json

REGISTERS_FILE = "registers.safetensors"
COMPONENTS = ("vae", "text_encoder", "tokenizer", "image_encoder", "image_processor", "scheduler")
UNLIMITED = 21
"""Latent frames that DreamZero attends to where its config sets no limit (``max_chunk_size`` -1)."""


LIKE_WAN = {"action_patch": 1, "see_last_frame": False, "pooled_text": False, "prediction": "velocity"}
"""Fields of :class:`DiTConfig` that are the same in every Wan."""


@dataclass(frozen=True)
class Foreign:
    """What a folder holds, as far as its config and the headers of its files tell.

    Attributes:
        folder: where the transformer's weights are.
        layout: whose names its tensors have, and whether DreamZero's registers are among them.
        dit: our configuration; ``action_dim`` and ``proprio_dim`` are the registers' full widths, the robot's own may
            be given to :func:`imagine.wan.convert.load_dit`.
        action_horizon: actions of a chunk; 0 without registers.
        block_frames: latent frames of a chunk; 1 without registers.
        max_chunks: chunks that the model was trained to see at once, -1 for no limit; 0 without registers.
        first_frame: whether the first frame's latents, and their mask, are concatenated to the noisy ones.
        frame_tokens: tokens of one latent frame that it was trained at, or None where the config does not say.
        text_length: tokens that an instruction is filled up to, likewise.
        canvas: height and width in pixels of the whole canvas, likewise.
        lora: a LoRA lies beside the weights that it changes; :func:`imagine.wan.convert.compose_lora` merges it.
        components: folders of a pipeline's other parts.
    """

    folder: Path
    layout: Literal["wan", "diffusers", "dreamzero", "dreamzero-diffusers"]
    dit: DiTConfig
    action_horizon: int = 0
    block_frames: int = 1
    max_chunks: int = 0
    first_frame: bool = False
    frame_tokens: int | None = None
    text_length: int | None = None
    canvas: tuple[int, int] | None = None
    lora: bool = False
    components: Mapping[str, Path] = field(default_factory=dict)


def inspect(folder: str | Path) -> Foreign:
    """What a folder holds; reads its config and the headers of its weight files, no weights.

    Raises:
        CheckpointMismatch: nothing of the family, a field that neither config nor tensors tell (it is named), or a
            LoRA without the weights that it changes.
    """
    source = Source.open(Path(folder))
    if source.alone:
        raise CheckpointMismatch(source.needs_base())
    return source.describe()


@dataclass
class Source:
    """A folder's config, and the headers of its tensors under our names.

    Attributes:
        folder: where the weights are.
        config: the file that describes them.
        sections: of the config, from the network's own out to the root.
        dialect: whose names the tensors have.
        pieces: the network's tensors.
        strange: names that mean nothing.
        factors: of a LoRA, "A" and "B" by the weight that they change.
    """

    folder: Path
    config: Path
    sections: list[dict[str, Any]]
    dialect: names.Dialect
    pieces: dict[str, Header] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)
    factors: dict[str, dict[str, Header]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Source:
        """Read a folder's config and headers, and sort its tensors."""
        places = _configs(folder)
        config = next((p for p in places if p.is_file()), None)
        if config is None:
            raise CheckpointMismatch(f"{folder} has none of {', '.join(str(p.relative_to(folder)) for p in places)}.")
        folder, about = config.parent, read_json(config)
        found = headers(folder, REGISTERS_FILE)
        homes = {place for name in found if (place := names.home(name))}
        if len(homes) != 1:
            many = f"networks under {sorted(p for p, _ in homes)}" if homes else "no Wan transformer"
            raise CheckpointMismatch(f"{folder} holds {many}; expected one, as in blocks.0.self_attn.q.weight.")
        ((prefix, dialect),) = homes
        source = cls(folder, config, _chain(about) or [about], dialect)
        source._check_kind()
        for name, header in found.items():
            if name.startswith(prefix):
                source._sort(name[len(prefix) :].replace(".base_layer.", "."), header)
            elif names.register(name):  # under a prefix of its own
                source._sort(name, header)
        return source

    @property
    def alone(self) -> bool:
        """Whether this is a LoRA without any of the weights that it changes."""
        return bool(self.factors) and not any(name in self.pieces for name in self.factors)

    @property
    def has_registers(self) -> bool:
        """Whether tensors or config speak of registers."""
        return any(map(names.is_register, self.pieces)) or self.get("action_horizon") is not None

    def needs_base(self) -> str:
        """What to do with a LoRA alone."""
        known = self.get("base")
        return (
            f"{self.folder} holds LoRA factors without the weights that they change; give compose_lora base=, the very "
            f"checkpoint it was trained on{f' (its config says {known!r})' if known else ''}. On a plain Wan, a LoRA "
            "of a DreamZero degrades silently (dreamzero#82)."
        )

    def get(self, key: str) -> Any:
        """A field of the config by our word for it, the innermost that is set; else None."""
        given = (s[alias] for s in self.sections for alias in names.FIELDS[key] if s.get(alias) is not None)
        return next(given, None)

    def need(self, key: str, default: float | None = None) -> Any:
        """A number from the config, or else what its tensors say."""
        value = self.get(key)
        try:
            number = float(default if value is None else value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            what = " or ".join(names.FIELDS[key])
            raise CheckpointMismatch(
                f"{self.config} gives {value!r} as {what}, and no tensor tells it; expected a number."
            ) from None
        return int(number) if number.is_integer() else number

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor as we hold it; () where it is missing."""
        shape = self.pieces[name].shape if name in self.pieces else ()
        return names.turned(shape) if names.is_register(name) else shape

    def axis(self, name: str, axis: int) -> int | None:
        """Length of one axis of a tensor, None where it is missing."""
        shape = self.shape(name)
        return shape[axis] if axis < len(shape) else None

    def describe(self) -> Foreign:
        """What it is; see :func:`inspect`."""
        need, axis, get = self.need, self.axis, self.get
        patch, inputs, channels = self._channels()
        heads = need("heads")
        dim = need("dim", heads * get("head_dim") if get("head_dim") else axis("patch_embedding.weight", 0))
        first_frame = inputs > channels if get("first_frame") is None else bool(get("first_frame"))
        if dim % heads or inputs < channels or first_frame != (inputs > channels):
            raise CheckpointMismatch(
                f"{self.config} contradicts itself: width {dim} of {heads} heads, {inputs} input and {channels} output "
                f"channels, concat_first_frame_latent {get('first_frame')}."
            )
        registers = self._registers()
        block, chunks = (int(need("block_frames")), int(need("max_chunks"))) if registers else (1, 0)
        shape = self._shape_of_blocks(heads, dim)
        shape |= {"patch": patch, "channels": channels, "condition_channels": inputs - channels}
        if registers:
            shape |= {"registers": registers, "action_dim": registers.action_dim, "proprio_dim": registers.state_dim}
            # With the chunk itself, the first frame and so many blocks are what it was trained at.
            most = chunks if chunks > 0 else (UNLIMITED - 1) // block
            shape |= {"block": block, "first_alone": True, "max_context_blocks": most}
        theirs: Literal["wan", "diffusers"] = "wan" if self.dialect == "original" else "diffusers"
        zero: Literal["dreamzero", "dreamzero-diffusers"] = "dreamzero" if theirs == "wan" else "dreamzero-diffusers"
        root = self.folder.parent if self.folder.name == "transformer" else self.folder
        height, width = get("height"), get("width")
        return Foreign(
            folder=self.folder,
            layout=zero if registers else theirs,
            dit=DiTConfig.model_validate(shape | LIKE_WAN),
            action_horizon=int(need("action_horizon")) if registers else 0,
            block_frames=block,
            max_chunks=chunks,
            first_frame=first_frame,
            frame_tokens=get("frame_tokens"),
            text_length=get("text_length"),
            canvas=(height, width) if height and width else None,
            lora=bool(self.factors),
            components={name: root / name for name in COMPONENTS if (root / name).is_dir()},
        )

    def _shape_of_blocks(self, heads: Any, dim: Any) -> dict[str, Any]:
        """Numbers of :class:`DiTConfig` that the config or the tensors of the blocks and embedders tell."""
        need, axis = self.need, self.axis
        last = max((int(n.split(".")[1]) for n in self.pieces if n.startswith("blocks.")), default=-1)
        embedder = "condition_embedder"
        return {
            "layers": need("layers", last + 1 or None),
            "heads": heads,
            "head_dim": dim // heads,
            "ffn_dim": need("ffn_dim", axis("blocks.0.ffn.net.0.proj.weight", 0)),
            "text_dim": need("text_dim", axis(f"{embedder}.text_embedder.linear_1.weight", 1)),
            "freq_dim": need("freq_dim", axis(f"{embedder}.time_embedder.linear_1.weight", 1)),
            "eps": need("eps"),
            "image_dim": self.get("image_dim") or axis(f"{embedder}.image_embedder.norm1.weight", 0) or 0,
        }

    def _channels(self) -> tuple[list[int], int, int]:
        """Patch (3), and channels in and out."""
        patch = self.get("patch") or list(self.shape("patch_embedding.weight")[2:])
        if len(patch) != 3 or not all(isinstance(p, int) for p in patch):
            raise CheckpointMismatch(f"{self.config} gives patch_size {patch}, and no tensor tells it; expected three.")
        inputs = self.need("inputs", self.axis("patch_embedding.weight", 1))
        rows = self.axis("proj_out.weight", 0)
        return patch, inputs, self.need("channels", None if rows is None else rows // math.prod(patch))

    def _registers(self) -> RegisterConfig | None:
        """Widths of the registers from their tensors: the ``hidden_size`` of a config is the surrounding head's."""
        if not self.has_registers:
            return None
        if many := [n for n in self.pieces if names.is_register(n) and len(self.shape(n)) > 2]:
            header = self.pieces[many[0]]
            raise CheckpointMismatch(
                f"{header.name} is {header.shape}, registers of several embodiments; expected one, (1, in, out)."
            )
        if (states := self.need("block_states")) != 1:
            raise CheckpointMismatch(f"{self.config} has num_state_per_block {states}, expected 1.")
        state = self.shape("registers.state_encoder.linear_1.weight")
        width = self.axis("registers.action_encoder.w1.weight", 1)
        if width is None or len(state) != 2:
            raise CheckpointMismatch(f"{self.folder} lacks registers: action_encoder.W1.W or state_encoder.layer1.W.")
        return RegisterConfig(action_dim=width, state_dim=state[1], hidden=state[0])

    def _sort(self, name: str, header: Header) -> None:
        factor = names.lora(name)
        ours = names.ours(name if factor is None else f"{factor[0]}.weight", self.dialect)
        if ours is None:
            self.strange.append(header.name)
        elif factor is not None:
            self.factors.setdefault(ours, {})[factor[1]] = header
        elif ours in self.pieces:
            raise CheckpointMismatch(f"{header.name!r} and {self.pieces[ours].name!r} are the same tensor; keep one.")
        elif not ours.endswith("norm_added_q.weight"):  # diffusers once wrote it, nothing ever used it
            self.pieces[ours] = header

    def _check_kind(self) -> None:
        """Refuse a config that says it is something else, or asks for what our blocks do not have."""
        inner = self.sections[0]
        wanted: dict[str, tuple[Any, ...]] = {
            "_class_name": (None, *names.NETWORKS),
            "qk_norm": (None, True, "rms_norm_across_heads"),
            "cross_attn_norm": (None, True),
            "pos_embed_seq_len": (None,),
        }
        for key, allowed in wanted.items():
            if inner.get(key) not in allowed:
                expected = f"one of {allowed[1:]}" if allowed[1:] else "none"
                raise CheckpointMismatch(f"{self.config} has {key} {inner[key]!r}, expected {expected}.")


def _configs(folder: Path) -> list[Path]:
    """Where a folder may say what it is, most telling first."""
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json")
        if any(index.get("transformer_2") or []) or (folder / "transformer_2").is_dir():
            raise CheckpointMismatch(f"{folder} has a transformer per noise level (Wan 2.2 A14B), expected one.")
    return [folder / "transformer" / "config.json", folder / "config.json", folder / "adapter_config.json"]


def _chain(node: dict[str, Any]) -> list[dict[str, Any]] | None:
    """From the section that describes the network, wherever it is, out to ``node``; None without one."""
    if isinstance(inner := node.get(names.SECTION), dict):
        return [inner, node]
    for child in node.values():
        if isinstance(child, dict) and (found := _chain(child)):
            return [*found, node]
    return None
